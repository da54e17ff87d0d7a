"""Open files: what a read needs of memory, block cache and store, and what is fetched before it is asked for.

Algorithm of a read: the policy (`readahead.AccessPattern`) says whether it belongs to a stream. Each block that the read touches is taken from memory,
else joined if it is on its way, else demanded: whole, if the file is small or a stream covers it; in the pieces that are touched
otherwise, adjacent missing ones by one request. All demands of a read are made before the first is waited for. Then what is ahead of the
stream, and at a file's first read what is ahead of the walk (`siblings.Walks`), is queued, and last the read waits for its own bytes, each as
soon as it has arrived.

Rules:

- A read returns all its bytes or raises; it waits `timeout` seconds at most.
- Blocks of a version that is gone are still served from memory and block cache.
- What is ahead of streams shares half of the memory (`Shares`), files ahead of walks a quarter; the rest is for readers.
- A block that a stream has passed is given up (the kernel has its pages); small files stay until their room is needed.
- A walk is told of a file when it is first read, not when it is opened: what the kernel's page cache answers needs nothing fetched ahead.
- Where a fetch ahead failed that a reader had joined, or any for want of memory, which may be there again, the reader tries for itself.

- Who gives up, killed or overdue, takes along the fetches that nobody else waits for.

Threads: `read` runs in libfuse's; fetches in the pools' (`fetcher`).
Locks: `OpenFile._lock` guards its sequence and what goes with it; `Files._lock` guards shares and walks. Neither is held while the other is taken, or
over a call into another module but the pure ones.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from optfs.cache.protocol import BlockCache
from optfs.errors import DeadlineExceeded, OptfsError, OutOfMemory
from optfs.reading.blocks import Blocks, Refusal
from optfs.reading.counters import Counters
from optfs.reading.fetcher import Fetcher, Gone
from optfs.reading.fetches import Fetch, Ident, Part, Ticket
from optfs.reading.lookups import Lookups
from optfs.reading.readahead import BLOCK, PIECE, AccessPattern, Shares
from optfs.reading.siblings import Walks
from optfs.stores.protocol import Store
from optfs.values import Clock, Deadline, ObjectInfo, Provider, never
from optfs.workers import WorkerPool

Following = Callable[[int], Sequence[ObjectInfo]]
"""Gives up to so many files that a walk meets after an open one."""

_Source = tuple[memoryview | Fetch, int, int, int]
"""Where bytes come from: the view or fetch, the offset of its first byte in the file, and the range `[low, high)` wanted of it."""

ATTEMPTS = 3
"""How often a reader tries: after fetches ahead that failed or were cancelled as it joined them, its own comes last."""


def grain_for(limit: int) -> int:
    """Return the block's size for a bound on memory, bytes: at least 16 must fit, or readers wait for one another."""
    block = BLOCK
    while block > PIECE and block * 16 > limit:
        block //= 2
    return block


class Files:
    """All open files of one mount."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        cache: BlockCache | None,
        *,
        pools: Mapping[Provider, WorkerPool],
        looks: WorkerPool,
        memory: int,
        timeout: float,
        clock: Clock = time.monotonic,
        gone: Gone = lambda _info: None,
    ) -> None:
        """Read from `stores`, which retry by themselves.

        Args:
            stores: by provider.
            cache: blocks on disk, or None.
            pools: run the fetches, each those of one provider, so that one that is silent holds up its own alone.
            looks: looks up what the block cache has.
            memory: bound on blocks in memory and on their way to it, bytes; 2 MiB at least. What `cache` still holds of evicted ones, and
                the workers that offer them to it, comes on top.
            timeout: seconds that one read may take.
            clock: monotonic.
            gone: told of each version that a fetch didn't find any more, or was denied.

        """
        limit = max(memory, 16 * PIECE)
        self.timeout = timeout
        self.clock = clock
        self.block = grain_for(limit)
        self.blocks = Blocks(limit, self.block, clock)
        lookups = None
        if cache is not None:
            lookups = Lookups(
                cache, looks, lambda info: stores[info.provider].root.uri(info.key), block=self.block, timeout=timeout, clock=clock
            )
        self.fetcher = Fetcher(stores, lookups, pools, self.blocks, timeout, clock, gone)
        self._lock = threading.Lock()
        # Guarded by _lock: all below.
        self._shares: Shares[OpenFile] = Shares(limit // 2, 2 * self.block)
        self._walks = Walks(self.block, limit // 4)

    def open(self, info: ObjectInfo, following: Following) -> "OpenFile":
        """Open one version of an object; sends nothing.

        Args:
            info: the version that every read of the open file returns bytes of.
            following: called by reading threads, with no lock held; is to answer from what is known.

        """
        return OpenFile(self, info, following)

    def counters(self) -> Counters:
        """Return a copy of what was counted so far."""
        return self.blocks.counters()

    def close(self, timeout: float) -> bool:
        """Begin nothing more, wait up to `timeout` seconds for fetches that run, and let go of the memory; return whether all have ended."""
        self.blocks.close()
        idle = self.blocks.wait_idle(Deadline.after(self.clock, timeout))
        self.blocks.clear()
        return idle

    def cap(self, stream: "OpenFile") -> int:
        """Return how many bytes may be ahead of a stream now."""
        with self._lock:
            return self._shares.cap(stream, self.clock())

    def leave(self, stream: "OpenFile") -> bool:
        """A stream has ended; return whether another one reads the same version."""
        with self._lock:
            return any(other.info == stream.info for other in self._shares.leave(stream))

    def walk(self, info: ObjectInfo, offset: int, following: Following) -> None:
        """A file is read for the first time, from `offset` on: fetch what a walk will read next."""
        with self._lock:
            noted = self._walks.note(info, offset)
        if noted is None:
            return
        walk, position, count = noted
        known = following(count) if count else ()
        with self._lock:
            walk.learn(position, known)
            wanted = self._walks.wanted(walk)
        for each in wanted:
            ident, stop = ident_of(each.info), each.start + each.length
            parts = pieces(ident, each.start, stop) if each.start else ((ident, 0, stop),)
            if each.length and self.fetcher.ahead(each.info, parts) is Refusal.NO_ROOM:
                with self._lock:
                    self._walks.give_back(walk, each.position)
                return

    def walked(self, info: ObjectInfo, *, head: bool) -> None:
        """A large file that was read is closed; `head`: as many bytes as half a block has were read of its first one."""
        with self._lock:
            self._walks.ended(info, head=head)


class OpenFile:
    """One handle on one version of one object. Any thread may call any method."""

    def __init__(self, files: Files, info: ObjectInfo, following: Following) -> None:
        """Made by `Files.open`."""
        self.info = info
        self._files = files
        self._blocks = files.blocks
        self._block = files.block
        self._size = info.size
        self._following = following
        self._ident = ident_of(info)
        self._small = info.size <= files.block
        self._walked = False
        self._lock = threading.Lock()
        # Guarded by _lock: all below.
        self._sequence = AccessPattern(info.size, files.block)
        self._passed = 0  # the stream's blocks before this one were given up
        self._tickets: deque[Ticket] = deque()  # of fetches ahead, to be cancelled at the end
        self._head = 0  # bytes read of a large file's first block

    def read(self, offset: int, length: int, abandoned: Callable[[], bool] = never) -> list[memoryview]:
        """Return the bytes from `offset` on: `length` of them, fewer only where the file ends.

        Raises:
            VersionGone: the version is gone, and the bytes aren't in memory or block cache.
            AccessError, ServiceError, DeadlineExceeded: see `optfs.errors`.
            Abandoned: `abandoned`, asked now and then while waiting, said that nobody needs them any more.

        """
        end = min(offset + length, self._size)
        if end <= offset:
            return []
        ahead: list[tuple[int, int]] = []
        if not self._small:
            ahead = self._note(offset, end)
        begin = offset - offset % self._block
        if end <= begin + self._block:  # the usual case, kept short
            view = self._blocks.find(self._part(begin), end - offset)
            if view is not None:
                if ahead:
                    self._fetch_ahead(ahead)
                if not self._walked:
                    self._walk(offset)
                return [view[offset - begin : end - begin]]
        return self._gather(offset, end, ahead, abandoned)

    def close(self) -> None:
        """End the file: fetches ahead that haven't begun are cancelled, and what was fetched ahead is the first to go when room is needed.

        That stays another's which reads the same version.
        """
        with self._lock:
            tickets = list(self._tickets)
            self._tickets.clear()
            sequence, head = self._sequence, self._head
            unread = range(sequence.frontier - sequence.frontier % self._block, sequence.scheduled, self._block)
        shared = self._files.leave(self)
        if self._walked and not self._small:
            self._files.walked(self.info, head=2 * head >= self._block)
        for ticket in tickets:
            fetch = ticket.fetch
            if fetch is not None:
                self._blocks.cancel(fetch)
        for begin in () if shared else unread:
            self._blocks.abandon(self._part(begin))

    def _part(self, begin: int) -> Part:
        return (self._ident, begin, min(self._block, self._size - begin))

    def _note(self, offset: int, end: int) -> list[tuple[int, int]]:
        """Tell the policy of a read, give up what the stream has passed, and return what to fetch ahead."""
        sequence = self._sequence
        streaming = sequence.streaming or offset == 0  # without the lock: a stale value is put right by the next read
        cap = self._files.cap(self) if streaming else 2 * self._block
        with self._lock:
            self._head += max(0, min(end, self._block) - offset)
            sequence.note(offset, end)
            ahead = sequence.ahead(cap)
            passed, ended = self._pass(min(offset, sequence.frontier)), sequence.ended
        for begin in passed:
            self._blocks.drop(self._part(begin))
        if ended:
            self._files.leave(self)
        return ahead

    def _pass(self, edge: int) -> range:
        """Return the blocks that the stream, now at `edge`, has passed; the one behind is kept for requests that come late."""
        sequence, block = self._sequence, self._block
        if not sequence.streaming:
            return range(0)
        first = -(-sequence.origin // block) * block
        stop = edge - edge % block - block
        if not first <= self._passed <= max(first, stop):
            self._passed = first
        passed = range(self._passed, stop, block)
        self._passed = max(self._passed, stop)
        return passed

    def _walk(self, offset: int) -> None:
        self._walked = True
        self._files.walk(self.info, offset, self._following)

    def _fetch_ahead(self, ahead: list[tuple[int, int]]) -> None:
        tickets = []
        refused = None
        for start, length in ahead:
            parts = (self._part(start),) if start % self._block == 0 else pieces(self._ident, start, start + length)
            fetch = self._files.fetcher.ahead(self.info, parts)
            if fetch is Refusal.NO_ROOM:
                refused = start
                break
            if isinstance(fetch, Fetch):
                tickets.append(fetch.ticket)
        with self._lock:
            if refused is not None:  # no room: it is wanted again by the next read
                self._sequence.scheduled = min(self._sequence.scheduled, refused)
            while self._tickets and self._tickets[0].fetch is None:
                self._tickets.popleft()
            self._tickets += tickets

    def _gather(self, offset: int, end: int, ahead: list[tuple[int, int]], abandoned: Callable[[], bool]) -> list[memoryview]:
        deadline = Deadline.after(self._files.clock, self._files.timeout, abandoned)
        sources = self._sources(offset, end, deadline)
        if ahead:
            self._fetch_ahead(ahead)
        if not self._walked:
            self._walk(offset)
        return self._collect(sources, deadline, ATTEMPTS)

    def _sources(self, offset: int, end: int, deadline: Deadline, *, missed: bool = False) -> list[_Source]:
        """Return where `[offset, end)` comes from, in order, all demanded; for `missed` see `Fetcher.demand`."""
        sources: list[_Source] = []
        try:
            self._add_sources(sources, offset, end, deadline, missed)
        except BaseException:
            self._leave(sources)
            raise
        return sources

    def _add_sources(self, sources: list[_Source], offset: int, end: int, deadline: Deadline, missed: bool) -> None:
        for begin in range(offset - offset % self._block, end, self._block):
            low, high = max(offset, begin), min(end, begin + self._block)
            part = self._part(begin)
            source = self._held(part, low, high)
            if source is None and not self._small:
                with self._lock:
                    by_block = self._sequence.by_block(begin)
                if not by_block:
                    self._add_pieces(sources, begin, low, high, deadline, missed)
                    continue
            sources.append(source or self._demanded(sources, (part,), low, high, deadline, missed))

    def _add_pieces(self, sources: list[_Source], begin: int, low: int, high: int, deadline: Deadline, missed: bool) -> None:
        wanted = pieces(self._ident, low - low % PIECE, min(begin + self._block, self._size, high + -high % PIECE))
        at = 0
        while at < len(wanted):
            part = wanted[at]
            start = max(low, part[1])
            source = self._held(part, start, min(high, part[1] + part[2]))
            if source is None:
                stop = at + 1
                while stop < len(wanted) and not self._blocks.known(wanted[stop]):
                    stop += 1
                last = wanted[stop - 1]
                source = self._demanded(sources, wanted[at:stop], start, min(high, last[1] + last[2]), deadline, missed)
            sources.append(source)
            at += 1
            while at < len(wanted) and wanted[at][1] < source[3]:
                at += 1

    def _held(self, part: Part, low: int, high: int) -> _Source | None:
        """Return a part that is in memory or on its way."""
        view = self._blocks.find(part, high - low)
        if view is not None:
            return view, part[1], low, high
        fetch = self._blocks.flight(part)
        if fetch is None:
            return None
        return self._joined(fetch, low, high)

    def _joined(self, fetch: Fetch, low: int, high: int) -> _Source:
        if fetch.filled < high - fetch.start:
            self._blocks.check(fetch.parts)
            self._files.fetcher.join(fetch)
        return fetch, fetch.start, low, high

    def _demanded(self, before: list[_Source], parts: tuple[Part, ...], low: int, high: int, deadline: Deadline, missed: bool) -> _Source:
        """Return `[low, high)` of `parts`, or a first piece of it, by a fetch that the reader needn't share the fate of others' for.

        Where there is no room for it, what is `before` it in the read is copied, so that no whole blocks are held by who waits.
        """
        while True:
            fetch = self._files.fetcher.demand(self.info, parts, deadline, lambda: self._copy(before, deadline), missed=missed)
            if fetch is not None:
                return fetch, fetch.start, low, min(high, fetch.start + fetch.length)
            first = parts[0]
            stop = min(high, first[1] + first[2])
            view = self._blocks.find(first, stop - low)
            if view is not None:
                return view, first[1], low, stop

    def _copy(self, sources: list[_Source], deadline: Deadline) -> None:
        """Replace each source by a copy of what is wanted of it; one that failed stays."""
        sources[:] = map(_trimmed, sources)
        for at, (source, start, low, high) in enumerate(sources):
            if isinstance(source, memoryview):
                continue
            try:
                view = self._files.fetcher.wait(source, high - start, deadline)
            except OptfsError as error:
                if source.failed:
                    continue
                if isinstance(error, DeadlineExceeded):
                    self._blocks.overdue(source, error)
                raise
            self._blocks.count_read(high - low)
            sources[at] = _trimmed((view, start, low, high))

    def _collect(self, sources: list[_Source], deadline: Deadline, attempts: int) -> list[memoryview]:
        """Wait for each source and cut what is wanted out of it. Who waits holds copies, no whole blocks that may be evicted meanwhile."""
        at = 0
        try:
            for at, (source, start, low, high) in enumerate(sources):
                if isinstance(source, memoryview):
                    continue
                if source.filled < high - start:
                    sources[:] = map(_trimmed, sources)
                try:
                    view = self._files.fetcher.wait(source, high - start, deadline)
                except OptfsError as error:
                    if isinstance(error, DeadlineExceeded) and not source.failed:
                        self._blocks.overdue(source, error)
                    no_room = source.gave_up  # the next one waits for room: no attempt
                    if not (source.failed and (attempts > 1 or no_room) and (source.speculative or isinstance(error, OutOfMemory))):
                        raise
                    if deadline.remaining() <= 0:
                        raise DeadlineExceeded("a read took longer than --timeout") from None
                    again = self._collect(self._sources(low, high, deadline, missed=source.missed), deadline, attempts - (not no_room))
                    sources[at] = (memoryview(b"".join(again)), low, low, high)
                    continue
                sources[at] = (view, start, low, high)
                self._blocks.count_read(high - low)
        except BaseException:
            self._leave(sources[at:])
            raise
        return [view[low - start : high - start] for view, start, low, high in sources if isinstance(view, memoryview)]

    def _leave(self, sources: list[_Source]) -> None:
        """Want the rest no more."""
        for source, _, _, _ in sources:
            if isinstance(source, Fetch):
                self._blocks.leave(source)


def _trimmed(source: _Source) -> _Source:
    """Return a source that holds no more than what is wanted of a part that is there; one that is on its way stays what it is."""
    view, start, low, high = source
    if isinstance(view, Fetch) or len(view) == high - low:
        return source
    return memoryview(bytes(view[low - start : high - start])), low, low, high


def ident_of(info: ObjectInfo) -> Ident:
    """Return what names one version of one object."""
    return (info.provider, info.key, info.version)


def pieces(ident: Ident, start: int, stop: int) -> tuple[Part, ...]:
    """Return the pieces from `start` (a multiple of a piece) to `stop`; the last one is shorter where the file ends."""
    return tuple((ident, at, min(PIECE, stop - at)) for at in range(start, stop, PIECE))
