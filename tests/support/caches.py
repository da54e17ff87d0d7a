"""Block caches on a temporary folder: clocks moved by hand, keys, contents that follow from the key, and what the folder takes."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from optfs.cache.blockfile import block_name, parse_name
from optfs.cache.disk import BACKLOG, DiskCache
from optfs.cache.folder import BLOCKS, Folder
from optfs.cache.protocol import BlockKey
from optfs.units import FreeFloor
from optfs.values import KiB, MiB

WAIT = 30.0
"""Seconds that a test waits for the writer at most; it takes milliseconds."""
URI = "s3://bucket/v1/account_id=1/type=decisions/date=2026-11-01/experiment=42/part-0.parquet"
BLOCK = 64 * KiB


class HandClock:
    """A clock that moves only when told."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def make_cache(
    folder: Path,
    *,
    limit: int = 64 * MiB,
    min_free: FreeFloor = FreeFloor(),  # noqa: B008 - frozen
    backlog: int = BACKLOG,
    clock: HandClock | None = None,
    wall: HandClock | None = None,
    statvfs: Callable[[Folder], tuple[int, int]] | None = None,
) -> DiskCache:
    """Return a cache whose clocks stand still unless handed in."""
    return DiskCache(
        folder,
        limit=limit,
        min_free=min_free,
        backlog=backlog,
        clock=clock or HandClock(),
        wall=wall or HandClock(),
        statvfs=statvfs,
    )


def block_key(number: int, length: int = BLOCK, *, version: str = "etag", uri: str = URI) -> BlockKey:
    """Return the key of the object's block of this number."""
    return BlockKey(uri, version, 1 << 40, number * length, length)


def content(key: BlockKey) -> bytes:
    """Return bytes that follow from the key."""
    return hashlib.shake_128(repr(key).encode()).digest(key.length)


def fill(cache: DiskCache, *keys: BlockKey) -> None:
    """Put blocks and wait until they are written."""
    for key in keys:
        cache.put(key, memoryview(content(key)))
    assert cache.flush(WAIT)


def held(cache: DiskCache, *keys: BlockKey) -> list[bool]:
    """Tell which blocks are in the cache; what is there must be right."""
    found = []
    for key in keys:
        data = cache.get(key)
        assert data is None or data == content(key)
        found.append(data is not None)
    return found


def file_of(folder: Path, key: BlockKey) -> Path:
    """Return where a block's file is."""
    name = block_name(key)
    return folder / BLOCKS / name[0] / name


def keys_in(folder: Path, length: int) -> list[BlockKey]:
    """Return the keys of the blocks of one length that lie in a folder."""
    ranges = [parse_name(path.name) for path in (folder / BLOCKS).rglob("*")]
    return [block_key(start // length, length) for _, start, size in filter(None, ranges) if size == length]


def index_of(folder: Path) -> Path:
    """Return where the index is."""
    return folder / BLOCKS / "cache.db"


def disk_usage(folder: Path) -> int:
    """Return what `du` shows for a folder, bytes; less what a file system (XFS) allocates ahead for files still being written."""
    total = 0
    for path, _, files in os.walk(folder):
        total += os.lstat(path).st_blocks * 512
        for name in files:
            found = os.lstat(Path(path, name))
            total += min(found.st_blocks * 512, -(-found.st_size // 4096) * 4096)
    return total


KEYS = [block_key(number) for number in range(8)]
ALL = [True] * len(KEYS)
NONE = [False] * len(KEYS)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the cache so far."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and record.name.startswith("optfs.cache")]
