"""What the block cache has of a fetch, looked up in threads of its own, and whether the cache's disk gives answers.

Algorithm of a look: ask the block cache for each part; where one is missing, for a run of pieces in the block that a stream left, or for
a block in the pieces that reads out of order left.

Rules:

- Nothing but looks runs in these threads: a store that is silent may hold all threads of its pool for the whole of `--timeout`, and what is
  cached stays readable meanwhile. Few other threads look (`aside`), so that a disk that hangs leaves enough that bring bytes from a store.
- The disk hangs as long as a look is running that began more than `patience` seconds ago, unless one that began later found something in time: then
  it is that one read which hangs. So looks that hang tell, by ending, that the disk answers; and every `TRY_AGAIN` seconds another may try,
  as long as enough threads are left. A miss proves nothing, as the kernel answers it without the disk; nor does a hit on a block
  that was written lately, which the page cache may have. So at most `MOST_HANGING` looks are taken for single reads that hang.

Lock: `_lock` guards what stands below it. It is a leaf, held over nothing else.
"""

import logging
import threading
from collections.abc import Callable

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockCache, BlockKey
from optfs.reading.fetches import Fetch, Part
from optfs.reading.readahead import PIECE
from optfs.values import Clock, ObjectInfo
from optfs.workers import Job, Priority, WorkerPool

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that the block cache has for what a reader waits for, or a third of `--timeout` if that is less: a disk that hangs costs time, not bytes."""

TRY_AGAIN = 5.0
"""Seconds. Each look at a disk that hangs takes a thread."""

MOST_HANGING = 4
"""Looks that may hang, each on its own, while others are tried: half of the threads."""

ASIDE = 6
"""Fetching threads that may look at once, a sixth of them. With none, eight streams took 4 % more time: what isn't cached changed threads twice."""

Found = list[bytes | Buffer | None]
"""What the block cache has: of each part of a fetch, or of all of them as one."""


class Lookups:
    """The way from the block cache into memory."""

    def __init__(
        self, cache: BlockCache, pool: WorkerPool, uri: Callable[[ObjectInfo], str], *, block: int, timeout: float, clock: Clock
    ) -> None:
        """Look for blocks of `block` bytes, and pieces of those, in `cache`, by the threads of `pool`.

        `uri` names objects for the cache; `timeout` is that of reads, in seconds by `clock`.
        """
        self._cache = cache
        self._uri = uri
        self._block = block
        self._clock = clock
        self.submit: Callable[[Job, Priority], bool] = pool.submit
        self.patience = min(PATIENCE, timeout / 3)
        """How long a reader waits for a look, seconds."""
        self.aside = threading.BoundedSemaphore(ASIDE)
        """Had by fetching threads that look."""
        self._lock = threading.Lock()
        # Guarded by _lock: all below. The looks that run, the oldest first, with the time when each began; how many more run that count
        # as hanging each on its own; when the last one began that found something in time; when one was last let try; whether it was logged
        # that the disk hangs.
        self._running: dict[Fetch, float] = {}
        self._stuck = 0
        self._answered = float("-inf")
        self._tried_at = 0.0
        self._logged = False

    def hangs(self) -> bool:
        """Return whether the cache's disk seems to hang, so that it is better not asked."""
        if not self._running:  # the usual case, kept short
            return False
        with self._lock:
            overdue = self._clock() - self.patience
            self._set_aside(overdue)
            began = next(iter(self._running.values()), None)
            if began is None or began > overdue:
                return False
            first = not self._logged  # once a run: a disk may be slow now and then
            self._logged = True
        if first:
            logger.info("the cache's disk doesn't answer: what it holds is fetched again until it does")
        return True

    def may_try(self) -> bool:
        """Return whether it is time to try whether the disk, which seems to hang, answers."""
        with self._lock:
            now = self._clock()
            if now - self._tried_at < TRY_AGAIN or self._stuck + len(self._running) >= MOST_HANGING:
                return False
            self._tried_at = now
            return True

    def find(self, fetch: Fetch, buffer: Buffer) -> Found:
        """Return what the block cache has of each part, or of all of them as one; a single part is read into `buffer`. One at a time for a fetch."""
        found: Found = []
        began = self._clock()
        with self._lock:
            self._running[fetch] = began
        try:
            found = self._find(fetch, buffer)
        finally:
            with self._lock:
                if self._running.pop(fetch, None) is None:
                    self._stuck -= 1
                if found.count(None) < len(found) and self._clock() - began < self.patience:
                    self._answered = max(self._answered, began)
        return found

    def _set_aside(self, overdue: float) -> None:
        """Of looks that began at `overdue` or before, count those no more after which the disk has answered another. Called with the lock."""
        for fetch, began in list(self._running.items()):
            if began > overdue or began >= self._answered or self._stuck >= MOST_HANGING:
                break
            del self._running[fetch]
            self._stuck += 1

    def offer(self, info: ObjectInfo, part: Part, view: memoryview) -> None:
        """Have a part kept in the block cache; see `BlockCache.put`."""
        self._cache.put(self._key(info, part), view)

    def _find(self, fetch: Fetch, buffer: Buffer) -> Found:
        into = buffer if len(fetch.parts) == 1 else None
        found: Found = [self._cached(fetch.info, part, into) for part in fetch.parts]
        if None in found and (run := self._run_of_block(fetch)) is not None:
            found = [run]
        return [self._block_of_pieces(fetch)] if found == [None] else found

    def _cached(self, info: ObjectInfo, part: Part, into: Buffer | None = None) -> bytes | Buffer | None:
        data = self._cache.get(self._key(info, part), into)
        return data if data is not None and len(data) == part[2] else None

    def _block_of_pieces(self, fetch: Fetch) -> bytes | None:
        """Return a block of a big file that reads out of order left in the cache piece by piece, or None."""
        ident, start, length = fetch.parts[0]
        if length <= PIECE or fetch.info.size <= self._block:
            return None
        found = []
        for at in range(start, start + length, PIECE):
            data = self._cached(fetch.info, (ident, at, min(PIECE, start + length - at)))
            if data is None:
                return None
            found.append(data)
        return b"".join(found)

    def _run_of_block(self, fetch: Fetch) -> bytes | None:
        """Return a run of pieces, be it all of a block, out of a cached block, or None."""
        begin = fetch.start - fetch.start % self._block
        whole = (fetch.parts[0][0], begin, min(self._block, fetch.info.size - begin))
        if fetch.parts[0] == whole or fetch.start + fetch.length > begin + whole[2]:
            return None
        data = self._cache.get_range(self._key(fetch.info, whole), fetch.start, fetch.length)
        return data if data is not None and len(data) == fetch.length else None

    def _key(self, info: ObjectInfo, part: Part) -> BlockKey:
        return BlockKey(self._uri(info), info.version, info.size, part[1], part[2])
