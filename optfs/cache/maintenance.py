"""Bringing files and rows together, and what `optfs cache info|clear|verify` does.

Mounts may be using the folder meanwhile. Rules that allow it:
- Rows come before files (`index`). So a shard's files are listed first and its rows read second: a file without a row is an orphan. A
  row without a file may be one that another process is about to write; it is dropped when it is older than `IN_FLIGHT`.
- Removing a block that a mount reads is a miss for it, or nothing, where it has the file open.
- Looking (`inspect_cache`) takes names and sizes from the folder and doesn't touch the index.

Threads: the caller's. `clear_cache` and `verify_cache` open and close the index themselves; `sweep_shard` and `adopt` are given an open one.
"""

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from optfs.cache import blockfile
from optfs.cache.folder import IN_FLIGHT, TEMPORARY, Folder, open_folder, read_block
from optfs.cache.index import BlockIndex, is_damage, open_index, remove_index
from optfs.cache.room import charge
from optfs.errors import ConfigError, ServiceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What lies in a cache folder.

    Attributes:
        path: the folder of blocks.
        blocks: how many.
        size: what they take on the disk, bytes.
        data: the bytes of objects in them.
        oldest: when the oldest was stored, seconds since the epoch; None without any.
        newest: when the newest was stored.

    """

    path: Path
    blocks: int
    size: int
    data: int
    oldest: float | None
    newest: float | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify_cache` found.

    Attributes:
        checked: blocks that were read.
        damaged: blocks that failed their check and were dropped.
        orphans: files that no row knew, removed.
        rows: rows whose file was missing, removed.

    """

    checked: int
    damaged: int
    orphans: int
    rows: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What was removed."""

    orphans: int
    rows: int


def sweep_shard(folder: Folder, index: BlockIndex, shard: int, now: float) -> Swept:
    """Remove files without rows and rows without files; bounded by what one shard holds.

    Raises:
        OSError, sqlite3.Error: the disk or the index fails.

    """

    def job() -> Swept:
        files = set(folder.names(shard))
        rows = dict(index.shard_rows(shard))
        orphans = 0
        for name in files - rows.keys():
            stored = rows.get(name.removesuffix(TEMPORARY))
            if stored is None or abs(now - stored) > IN_FLIGHT:
                orphans += folder.unlink_in(shard, name)
        missing = [name for name, stored in rows.items() if name not in files and abs(now - stored) > IN_FLIGHT]
        index.remove(missing)
        return Swept(orphans, len(missing))

    return index.run(job)


def adopt(folder: Folder, index: BlockIndex) -> None:
    """Fill a new index from the names of the files that are there, and make it ready. Their content is checked when they are read.

    Raises:
        OSError, sqlite3.Error: the disk or the index fails.

    """
    for shard, digit in enumerate(blockfile.SHARDS):

        def job(shard: int = shard, digit: str = digit) -> None:
            known = {name for name, _ in index.shard_rows(shard)}
            for name in folder.names(shard):
                if name in known:
                    continue
                found = folder.stat(name) if name.startswith(digit) and blockfile.parse_name(name) else None
                if found is not None and stat.S_ISREG(found.st_mode):
                    index.add(name, charge(found.st_size), found.st_mtime)
                else:
                    folder.unlink_in(shard, name)

        index.run(job)
    index.run(index.set_ready)


def inspect_cache(cache_dir: Path) -> CacheInfo:
    """Return what lies in a cache folder, made where it is missing.

    Raises:
        ConfigError: the folder isn't this user's own, or can't be used.

    """
    return _guarded(cache_dir, _inspect)


def clear_cache(cache_dir: Path) -> CacheInfo:
    """Remove every block; return what there was.

    Raises:
        ConfigError: the folder isn't this user's own, or can't be used.
        ServiceError: the index can't be used.

    """
    return _guarded(cache_dir, _clear)


def verify_cache(cache_dir: Path, *, wall: Callable[[], float] = time.time) -> VerifyReport:
    """Read every block, drop what fails its check, and bring files and rows together. Raises as `clear_cache` does."""
    return _guarded(cache_dir, lambda folder: _verify(folder, wall))


def _guarded(cache_dir: Path, job: Callable[[Folder], T]) -> T:
    try:
        return job(open_folder(cache_dir))
    except sqlite3.Error as error:
        raise ServiceError(f"the cache's index can't be used ({error}): try again when no mount is writing to {cache_dir}") from None
    except OSError as error:
        raise ConfigError(f"--cache-dir: {cache_dir} can't be used: {error.strerror or error}") from None


def _inspect(folder: Folder) -> CacheInfo:
    blocks = size = data = 0
    times: list[float] = []
    for shard in range(len(blockfile.SHARDS)):
        for name in folder.names(shard):
            parsed = blockfile.parse_name(name)
            found = folder.stat(name) if parsed else None
            if parsed and found:
                blocks += 1
                size += found.st_blocks * 512
                data += parsed[2]
                times.append(found.st_mtime)
    return CacheInfo(folder.path, blocks, size, data, min(times, default=None), max(times, default=None))


def _clear(folder: Folder) -> CacheInfo:
    before = _inspect(folder)
    index = open_index(folder)
    try:

        def job() -> None:
            for shard in range(len(blockfile.SHARDS)):
                for name in folder.names(shard):
                    folder.unlink_in(shard, name)
            index.forget()

        index.run(job)
        index.run(index.set_ready)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        remove_index(folder)
    finally:
        index.close()
    return before


def _verify(folder: Folder, wall: Callable[[], float]) -> VerifyReport:
    checked = damaged = orphans = rows = 0
    index = open_index(folder)
    try:
        if not index.ready:
            adopt(folder, index)
        for shard in range(len(blockfile.SHARDS)):
            swept = sweep_shard(folder, index, shard, wall())
            orphans += swept.orphans
            rows += swept.rows
            bad: list[str] = []
            for name in folder.names(shard):
                sound = _is_sound(folder, name)
                checked += sound is not None
                if sound is False:
                    folder.unlink_in(shard, name)
                    bad.append(name)
            damaged += len(bad)
            if bad:
                # Not `remove`: a mount may have written one of them anew meanwhile.
                index.run(lambda bad=bad: index.forget_missing(bad, wall()))  # type: ignore[misc]  # mypy can't infer a lambda with a default
    finally:
        index.close()
    return VerifyReport(checked, damaged, orphans, rows)


def _is_sound(folder: Folder, name: str) -> bool | None:
    """Tell whether a block passes its check; None where it isn't a block, or has gone."""
    if not blockfile.parse_name(name):
        return None
    try:
        fd = folder.open(name)
        try:
            key = blockfile.parse_key(os.pread(fd, blockfile.MAX_HEADER, 0))
        finally:
            os.close(fd)
        return key is not None and blockfile.block_name(key) == name and read_block(folder, key) is not None
    except FileNotFoundError:
        return None
    except OSError:
        return False
