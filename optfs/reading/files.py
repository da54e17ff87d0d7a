"""Open files: what a read needs of memory, block cache and store, and what is fetched before it is asked for.

Algorithm of a read: the policy (`readahead.Sequence`) says whether it belongs to a stream. Each block that the read touches is taken from memory,
else joined if it is on its way, else demanded: whole, if the file is small or a stream covers it; in the pieces that are touched
otherwise, adjacent missing ones by one request. All demands of a read are made before the first is waited for. Then what is ahead of the stream is
queued, and last the read waits for its own bytes, each as soon as it has arrived.

A worker that takes a fetch asks the block cache first and the store second, and offers what the store sent to the block cache.

Rules:

- A read returns all its bytes or raises; it waits `timeout` seconds at most.
- Blocks of a version that is gone are still served from memory and cache.
- What is ahead of streams shares half of the memory (`Shares`), files ahead of a walk a quarter; the rest is for readers.
- A block that a stream has passed is given up at once; small files stay until their room is needed.

Threads: `read` runs in libfuse's, `_run` in the pool's.
Locks: `OpenFile._lock` guards its sequence; `Files._lock` guards shares, walk and counters. Both are leaves but for `Blocks._room`, which may be taken
under neither: they are never held over a call into `Blocks`, the pool or another layer.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from optfs.cache.protocol import BlockCache, BlockKey
from optfs.errors import OptfsError, ServiceError
from optfs.reading.blocks import Blocks
from optfs.reading.counters import Counters
from optfs.reading.fetches import Fetch, Ident, Part, Ticket
from optfs.reading.readahead import BLOCK, PIECE, Shares
from optfs.reading.readahead import Sequence as ReadSequence
from optfs.reading.siblings import WIDEST, Walk
from optfs.stores.protocol import Store
from optfs.values import Clock, Deadline, MiB, ObjectInfo, Provider
from optfs.workers import Priority, WorkerPool

Following = Callable[[int], Sequence[ObjectInfo]]
"""Gives up to so many files that a walk meets after an open one."""

PASSED = 2
"""Blocks behind a stream's position that are kept: late requests of the kernel's readahead still want them."""


def grain_for(memory: int) -> int:
    """Return the block's size for a bound on memory, bytes: at least 16 must fit, or readers wait for one another."""
    block = BLOCK
    while block > PIECE and block * 16 > memory:
        block //= 2
    return block


class Files:
    """All open files of one mount."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        cache: BlockCache | None,
        *,
        pool: WorkerPool,
        memory: int,
        timeout: float,
        clock: Clock = time.monotonic,
    ) -> None:
        """Read from `stores`, which retry by themselves.

        Args:
            stores: by provider.
            cache: blocks on disk, or None.
            pool: runs the fetches.
            memory: bound on blocks in memory and on their way, bytes.
            timeout: seconds that one read may take.
            clock: monotonic.

        """
        self.stores = stores
        self.timeout = timeout
        self.clock = clock
        self.block = grain_for(memory)
        self.blocks = Blocks(memory, clock)
        self._cache = cache
        self._pool = pool
        self._walk_limit = memory // 4
        self._lock = threading.Lock()
        # Guarded by _lock: all below.
        self._shares = Shares(memory // 2, 2 * self.block)
        self._walk = Walk()
        self._counters = Counters()

    def open(self, info: ObjectInfo, following: Following) -> "OpenFile":
        """Open one version of an object; sends nothing for it, but may fetch files that a walk will open next."""
        after = following(WIDEST)
        allowed = self._walk_limit - self.blocks.unread_bytes()
        with self._lock:
            wanted = self._walk.opened(info, after, allowed)
        for file in wanted:
            if file.size > 0:
                self.ahead(file, 0, min(file.size, self.block))
        return OpenFile(self, info)

    def counters(self) -> Counters:
        """Return what was counted so far."""
        taken, _, wasted = self.blocks.usage()
        fresh = self.blocks.unread_bytes()
        with self._lock:
            counted = self._counters
            return Counters(
                memory_hits=counted.memory_hits,
                disk_hits=counted.disk_hits,
                misses=counted.misses,
                fetched_bytes=counted.fetched_bytes,
                disk_bytes=counted.disk_bytes,
                read_bytes=counted.read_bytes,
                unused_bytes=wasted,
                fresh_bytes=fresh,
                resident_bytes=taken,
            )

    def cap(self, stream: object) -> int:
        """Return how many bytes may be ahead of a stream now."""
        with self._lock:
            return self._shares.cap(stream, self.clock())

    def leave(self, stream: object) -> None:
        """A stream has ended."""
        with self._lock:
            self._shares.leave(stream)

    def count_read(self, length: int, hits: int) -> None:
        """Count a read of `length` bytes, `hits` parts of which were in memory."""
        with self._lock:
            self._counters.read_bytes += length
            self._counters.memory_hits += hits

    def demand(self, info: ObjectInfo, parts: Sequence[Part], deadline: Deadline) -> Fetch:
        """Return the fetch that brings the first of `parts` at least, queued before all that is ahead."""
        fetch, new = self.blocks.demand(info, parts, deadline)
        if fetch.demand() or new:
            self._submit(fetch, Priority.DEMAND)
        return fetch

    def join(self, fetch: Fetch) -> None:
        """A reader wants a fetch that somebody began: if it still waits among those ahead, it is queued before them."""
        if fetch.demand():
            self._submit(fetch, Priority.DEMAND)

    def ahead(self, info: ObjectInfo, start: int, length: int) -> bool:
        """Fetch `[start, start + length)` for later; return False where there is no room."""
        ident = ident_of(info)
        parts = [(ident, start, length)] if start % self.block == 0 else pieces(ident, start, start + length)
        for part in parts:
            fetch = self.blocks.ahead(info, part)
            if fetch is not None:
                self._submit(fetch, Priority.PREFETCH)
            elif not self.blocks.known(part):
                return False
        return True

    def _submit(self, fetch: Fetch, priority: Priority) -> None:
        if not self._pool.submit(partial(self._run, fetch.ticket), priority):
            self._fail(fetch, ServiceError("the mount is ending"))

    def _run(self, ticket: Ticket) -> None:
        fetch = ticket.fetch
        if fetch is None or not fetch.begin():
            return
        try:
            self._bring(fetch)
        except OptfsError as error:
            self._fail(fetch, error)
        except BaseException:
            self._fail(fetch, ServiceError("reading failed for a reason that isn't foreseen; see the log"))
            raise

    def _fail(self, fetch: Fetch, error: OptfsError) -> None:
        self.blocks.failed(fetch, error, holds=fetch.demanded and not fetch.speculative)
        fetch.fail(error)

    def _bring(self, fetch: Fetch) -> None:
        found = self._from_cache(fetch)
        if found is not None:
            with self._lock:
                self._counters.disk_hits += 1
                self._counters.disk_bytes += fetch.length
            self._land(fetch, found)
            return
        buffer = bytearray(fetch.length)
        view = memoryview(buffer)
        readable = view.toreadonly()
        fetch.fill(readable)
        deadline = Deadline.after(self.clock, self.timeout)
        self.stores[fetch.info.provider].read_into(fetch.info, fetch.start, view, fetch.advance, deadline)
        with self._lock:
            self._counters.misses += 1
            self._counters.fetched_bytes += fetch.length
        self._land(fetch, readable)
        if self._cache is not None:
            for part in fetch.parts:
                at = part[1] - fetch.start
                self._cache.put(self._key(fetch.info, part), readable[at : at + part[2]])

    def _land(self, fetch: Fetch, view: memoryview) -> None:
        if len(fetch.parts) == 1:
            views = [view]
        else:  # copies: a slice would keep the whole run's buffer alive as long as one of its pieces is wanted
            views = [memoryview(bytes(view[part[1] - fetch.start : part[1] - fetch.start + part[2]])) for part in fetch.parts]
        self.blocks.landed(fetch, views)
        fetch.finish(view)

    def _from_cache(self, fetch: Fetch) -> memoryview | None:
        if self._cache is None:
            return None
        found = []
        for part in fetch.parts:
            data = self._cache.get(self._key(fetch.info, part))
            if data is None:
                return self._from_cached_block(fetch)
            found.append(data)
        return memoryview(found[0] if len(found) == 1 else b"".join(found))

    def _from_cached_block(self, fetch: Fetch) -> memoryview | None:
        """Return a run of pieces out of a block that a stream left in the cache."""
        begin = fetch.start - fetch.start % self.block
        length = min(self.block, fetch.info.size - begin)
        if self._cache is None or (fetch.start == begin and fetch.length == length):
            return None
        data = self._cache.get(self._key(fetch.info, (fetch.parts[0][0], begin, length)))
        if data is None:
            return None
        at = fetch.start - begin
        return memoryview(bytes(memoryview(data)[at : at + fetch.length]))

    def _key(self, info: ObjectInfo, part: Part) -> BlockKey:
        uri = self.stores[info.provider].root.uri(info.key)
        return BlockKey(uri, info.version, info.size, part[1], part[2])


class OpenFile:
    """One handle on one version of one object. Any thread may call any method."""

    def __init__(self, files: Files, info: ObjectInfo) -> None:
        """Made by `Files.open`."""
        self.info = info
        self._files = files
        self._ident = ident_of(info)
        self._small = info.size <= files.block
        self._lock = threading.Lock()
        self._sequence = ReadSequence(info.size, files.block)  # guarded by _lock

    def read(self, offset: int, length: int) -> list[memoryview]:
        """Return the bytes from `offset` on: `length` of them, fewer only where the file ends.

        Raises:
            VersionGone: the version is gone, and the bytes aren't in memory or cache.
            AccessError, ServiceError, DeadlineExceeded: see `optfs.errors`.

        """
        end = min(offset + length, self.info.size)
        if end <= offset:
            return []
        files = self._files
        deadline = Deadline.after(files.clock, files.timeout)
        with self._lock:
            in_stream = self._sequence.note(offset, end)
            streaming = self._sequence.streaming
        found: list[tuple[memoryview | Fetch, int, int, int]] = []
        hits = 0
        for begin in range(offset - offset % files.block, end, files.block):
            low, high = max(offset, begin), min(end, begin + files.block)
            for source, start in self._sources(begin, low, high, deadline):
                hits += isinstance(source, memoryview)
                found.append((source, start, low, high))
        if streaming and in_stream and not self._small:
            self._fetch_ahead()
        views = _collect(found, deadline)
        files.count_read(end - offset, hits)
        if in_stream and not self._small:
            self._give_up_passed(offset)
        return views

    def close(self) -> None:
        """End the file; what it fetched stays in memory until the room is needed."""
        self._files.leave(self)

    def _sources(self, begin: int, low: int, high: int, deadline: Deadline) -> list[tuple[memoryview | Fetch, int]]:
        """Return where `[low, high)` of the block at `begin` comes from: bytes or fetches, each with its first byte's offset, in order."""
        files = self._files
        whole = (self._ident, begin, min(files.block, self.info.size - begin))
        held = files.blocks.find(whole)
        if held is not None:
            if isinstance(held, Fetch):
                files.join(held)
            return [(held, begin)]
        with self._lock:
            by_block = self._small or self._sequence.by_block(begin)
        if by_block:
            return [(files.demand(self.info, [whole], deadline), begin)]
        return self._piecewise(begin, low, high, deadline)

    def _piecewise(self, begin: int, low: int, high: int, deadline: Deadline) -> list[tuple[memoryview | Fetch, int]]:
        files = self._files
        sources: list[tuple[memoryview | Fetch, int]] = []
        stop = min(begin + files.block, self.info.size, high + -high % PIECE)
        wanted = pieces(self._ident, low - low % PIECE, stop)
        at = 0
        while at < len(wanted):
            held = files.blocks.find(wanted[at])
            if held is not None:
                if isinstance(held, Fetch):
                    files.join(held)
                    sources.append((held, held.start))
                    at += 1
                    while at < len(wanted) and wanted[at] in held.parts:
                        at += 1
                    continue
                sources.append((held, wanted[at][1]))
                at += 1
                continue
            run = [wanted[at]]
            while at + len(run) < len(wanted) and not files.blocks.known(wanted[at + len(run)]):
                run.append(wanted[at + len(run)])
            fetch = files.demand(self.info, run, deadline)
            sources.append((fetch, fetch.start))
            at += 1
            while at < len(wanted) and wanted[at] in fetch.parts:
                at += 1
        return sources

    def _fetch_ahead(self) -> None:
        cap = self._files.cap(self)
        with self._lock:
            scheduled = self._sequence.scheduled
            wanted = list(self._sequence.ahead(cap))
        for start, length in wanted:
            if not self._files.ahead(self.info, start, length):
                with self._lock:  # no room: what follows is asked for again by the next read
                    self._sequence.scheduled = max(scheduled, min(self._sequence.scheduled, start))
                return

    def _give_up_passed(self, offset: int) -> None:
        """Give up the block that a stream has left behind."""
        block = self._files.block
        begin = offset - offset % block - PASSED * block
        if begin >= 0 and offset % block < MiB:
            self._files.blocks.drop((self._ident, begin, block))


def ident_of(info: ObjectInfo) -> Ident:
    """Return what names one version of one object."""
    return (info.provider, info.key, info.version)


def pieces(ident: Ident, start: int, stop: int) -> list[Part]:
    """Return the pieces from `start` (a multiple of a piece) to `stop`; the last one is shorter where the file ends."""
    return [(ident, at, min(PIECE, stop - at)) for at in range(start, stop, PIECE)]


def _collect(found: list[tuple[memoryview | Fetch, int, int, int]], deadline: Deadline) -> list[memoryview]:
    """Wait for each source and cut what is wanted out of it."""
    views: list[memoryview] = []
    at = -1
    for source, start, low, high in found:
        at = max(at, low)
        if isinstance(source, Fetch):
            upto = min(high, start + source.length) - start
            view = source.wait(upto, deadline)
        else:
            view = source
        stop = min(high, start + len(view))
        if stop > at:
            views.append(view[at - start : stop - start])
            at = stop
    return views
