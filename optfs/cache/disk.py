"""The block cache on disk: what the reading layer calls, and the state that calls and the writer share.

Reading: a block's name follows from its key, so `get` opens the file, reads and checks it, and `get_range` a part of it; the index isn't
asked. What fails the check is removed. Writing, eviction and everything else that needs the index is `writer`'s, in the thread
`cache-writer`; `put` hands over.

Rules: no method raises, and `put` waits for the disk no longer than `handover.PATIENCE`. Data that waits to be written holds at most
`backlog` bytes (they count towards `--memory`); what comes on top is dropped and fetched again another time. A use is noted at most once a
minute a block.

Locks: `_lock` guards the counter of damage; it is a leaf, never held over I/O, as are those of `handover` and `health`. The folder is
replaced by the writer as a whole; a reader takes one reference and uses that, and descriptors live as long as a reference does.

Threads: any thread calls `get`, `get_range`, `put`, `cached_bytes`, `stats`; make a cache after forking, as threads don't survive a fork.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from optfs.buffers import Buffer
from optfs.cache.blockfile import SHARDS, block_name, object_id, parse_name, union_length
from optfs.cache.folder import Folder, read_block, read_range
from optfs.cache.handover import Handover
from optfs.cache.health import Health
from optfs.cache.protocol import BlockKey
from optfs.cache.writer import Limits, Writer
from optfs.units import FreeFloor
from optfs.values import Clock, MiB, ObjectInfo

logger = logging.getLogger(__name__)

_Data = TypeVar("_Data", bound=bytes | Buffer)

BACKLOG = 32 * MiB
"""Bytes that may wait to be written: eight blocks, half a second of a slow disk."""

SMALLEST = MiB
"""The least limit: empty folders and an empty index take a quarter of it."""

_CLOSE_LIMIT = 5.0
"""Seconds that `close` waits for the writer: `umount` must not hang on a dead disk."""

_ITS_OWN = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
"""Failures to open that say something about this block alone: a link, a socket, or closed to this user."""

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Failures to open that say nothing about the block: this process or machine has come to its limits."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache did since it was made, and how it is.

    Attributes:
        state: "on", "off" (by configuration), or why it doesn't work.
        limit: bytes.
        size: what the blocks of all mounts take, bytes, when the writer last looked.
        stored, stored_bytes: blocks written, and their bytes.
        dropped: blocks that weren't written, as the disk didn't keep up, had no room, or failed.
        damaged: blocks that failed their check.
        evicted: blocks removed to make room.

    """

    state: str
    limit: int
    size: int = 0
    stored: int = 0
    stored_bytes: int = 0
    dropped: int = 0
    damaged: int = 0
    evicted: int = 0


class DiskCache:
    """Blocks in a folder, shared with other processes."""

    def __init__(
        self,
        folder: Path,
        *,
        limit: int,
        min_free: FreeFloor,
        backlog: int = BACKLOG,
        clock: Clock = time.monotonic,
        wall: Callable[[], float] = time.time,
        statvfs: Callable[[Folder], tuple[int, int]] | None = None,
    ) -> None:
        """Open the cache in `folder` (`--cache-dir`), at most `limit` bytes large, `min_free` of the file system left free.

        A folder that can't be used means no caching and one warning, no exception. `statvfs` returns (free, total) bytes; tests hand in
        their own.
        """
        self._clock = clock
        self._wall = wall
        self._limit = limit
        self._reading = Health("reading", clock)
        self._handover = Handover(backlog)
        self._writer = Writer(folder, Limits(limit, min_free, statvfs), self._handover, Health("writing", clock), wall)
        # Guarded by _lock, a leaf.
        self._lock = threading.Lock()
        self._damaged = 0
        self._warned_of_damage = False
        self._writer.start()

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Return the block, checked, or None; see `BlockCache`."""
        return self._read(key, lambda folder: read_block(folder, key, into))

    def get_range(self, key: BlockKey, start: int, length: int) -> bytes | None:
        """Return a range of a block, checked, or None; see `BlockCache`."""
        return self._read(key, lambda folder: read_range(folder, key, start, length))

    def put(self, key: BlockKey, data: memoryview) -> None:
        """Offer a block; see `BlockCache`. `data` must not change any more."""
        if len(data) != key.length or key.length <= 0 or not self._writer.usable():
            self._handover.count_dropped()
            return
        self._handover.put(key, data)

    def cached_bytes(self, uri: str, info: ObjectInfo) -> int:
        """Return how many bytes of this version are in the cache; see `BlockCache`. Contents aren't checked."""
        folder = self._writer.folder
        if folder is None:
            return 0
        wanted = object_id(uri, info.version, info.size)
        try:
            names = folder.names(SHARDS.index(wanted[0]))
        except OSError:
            return 0
        parsed = [parse_name(name) for name in names if name.startswith(wanted)]
        return union_length([(start, length) for _, start, length in filter(None, parsed)])

    def stats(self) -> CacheStats:
        """Return counters and state."""
        written = self._handover.counters()
        with self._lock:
            return CacheStats(
                state=self._writer.health.reason or self._reading.reason or "on",
                limit=self._limit,
                size=written.size,
                stored=written.stored,
                stored_bytes=written.stored_bytes,
                dropped=written.dropped,
                damaged=self._damaged,
                evicted=written.evicted,
            )

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all that was handed over is written or dropped; return whether it is."""
        return self._handover.flush(timeout)

    def close(self) -> None:
        """Write what was taken, for a few seconds at most, and let go of the folder."""
        self._handover.close(self._clock() + _CLOSE_LIMIT, self._clock)
        self._writer.join(_CLOSE_LIMIT * 1.2)  # the block being written when time was up

    def _read(self, key: BlockKey, read: Callable[[Folder], _Data | None]) -> _Data | None:
        """Return what `read` returns of the block."""
        folder = self._writer.folder
        if folder is None or key.length <= 0 or self._handover.closed or not self._reading.usable():
            return None
        name = block_name(key)
        try:
            data = read(folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _OURS:
                self._drop(folder, name, str(error.strerror), disk=error.errno not in _ITS_OWN)
            return None
        if data is None:
            self._drop(folder, name, "its checksum or its identity is wrong", disk=False)
            return None
        self._reading.works()
        self._handover.note_use(name, self._clock(), self._wall())
        return data

    def _drop(self, folder: Folder, name: str, reason: str, *, disk: bool) -> None:
        """Remove a damaged block; `disk`: whether the disk may be what failed. One that can't be removed stays, as a miss."""
        try:
            folder.unlink(name)
        except OSError as error:
            if disk:  # neither readable nor removable: not this block's damage but the disk's
                self._reading.failed(f"{folder.path}: {error.strerror}")
        self._handover.note_gone(name)
        with self._lock:
            self._damaged += 1
            first = not self._warned_of_damage
            self._warned_of_damage = True
        if first:
            logger.warning(
                "a block of the cache in %s was damaged and is fetched again (%s): `optfs cache verify` checks all", folder.path, reason
            )


def open_cache(folder: Path, *, limit: int, min_free: FreeFloor, backlog: int = BACKLOG) -> DiskCache | None:
    """Return the block cache in `folder`, or None where `limit` is 0 or too small to be of use."""
    if limit >= SMALLEST:
        return DiskCache(folder, limit=limit, min_free=min_free, backlog=backlog)
    if limit > 0:
        logger.warning("the block cache is off: --cache-size is less than its own folders and index need (%d bytes)", SMALLEST)
    return None
