"""Brings parts into memory: from the block cache or, in the pools' threads, from a store.

Algorithm of a fetch: ask the block cache for each part; bring each run of the others by one ranged GET, in order, so that the watermark
rises; then offer those to the block cache. A run of pieces whose block a stream left in the cache is cut out of that block, and a block all
of whose pieces are in the cache is made of them.

Rules:

- What a reader waits for is looked for in the block cache by a pool of its own (`looks`), before anything is queued for a store: one that is
  silent may hold all threads of its pool for the whole of `--timeout`, and what is cached stays readable meanwhile. Each provider has a pool of its
  own, for the same reason.
- A disk may hang, too: nobody has begun a fetch that is looked for. What the disk doesn't give a reader in time is asked of the store (`go_on`), and
  until a look tells that the disk answers nothing else is looked for, but for what one reader wants every `TRY_AGAIN` seconds. One that finds
  nothing tells so only if it took long: what isn't in the folder takes no disk, and each look that it lets others begin may hang, too. What a look
  finds after all is given to the readers, whatever the store does (`Fetch.overtake`).
- A fetch ahead that a reader comes for while it is queued is queued again, before all others; the job that comes second finds it taken.
- A fetch that nobody waits for any more ends in the queue, or between two tries.
- Failures of fetches ahead are logged for debugging only. A bug or want of memory in here ends the fetch, not the reader's patience.

Locks: none of its own; what stands below "any thread's" may be read late, which costs a look or a request too many. Called with no lock held.
"""

import logging
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVarTuple

from optfs.cache.protocol import BlockCache, BlockKey
from optfs.errors import OptfsError, OutOfMemory, ServiceError, ServiceUnavailable, VersionGone
from optfs.reading.blocks import Blocks, nothing
from optfs.reading.fetches import Fetch, Part, Ticket
from optfs.reading.readahead import PIECE
from optfs.stores.protocol import Store
from optfs.values import Clock, Deadline, ObjectInfo, Provider
from optfs.workers import Priority, WorkerPool

logger = logging.getLogger(__name__)

Gone = Callable[[ObjectInfo], None]
"""Told of versions that aren't there any more, by fetching threads; sends nothing."""

TRY_AGAIN = 5.0
"""Seconds. On a disk that hangs, each look takes a thread and its reader two seconds."""

_Arguments = TypeVarTuple("_Arguments")

_Found = list[bytes | bytearray | None]
"""What the block cache has: of each part, or of all parts as one."""


class Fetcher:
    """The way from store and block cache into memory."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        cache: BlockCache | None,
        pools: Mapping[Provider, WorkerPool],
        looks: WorkerPool,
        blocks: Blocks,
        timeout: float,
        clock: Clock,
        gone: Gone,
    ) -> None:
        """Run fetches in the `pools` of their providers, each at most `timeout` seconds by `clock`, into `blocks`; see the rules for `looks`."""
        self._stores = stores
        self._cache = cache
        self._pools = pools
        self._looks = looks
        self._blocks = blocks
        self._timeout = timeout
        self._clock = clock
        self._gone = gone
        # Any thread's: whether the cache's disk seems to hang, when that was last found out or tried, and whether it was logged.
        self._hangs = False
        self._tried_at = 0.0
        self._logged = False

    def demand(
        self, info: ObjectInfo, parts: tuple[Part, ...], deadline: Deadline, let_go: Callable[[], None] = nothing, *, missed: bool = False
    ) -> Fetch | None:
        """Return the fetch that brings the first of `parts` at least, queued before all that is ahead; None: that part is resident by now.

        With `missed` the block cache isn't asked first: it was, and lacks some of them. Raises as `Blocks.demand` does, where `let_go` is told.
        """
        fetch = Fetch(info, parts, demanded=True)
        fetch.bound = fetch.missed = missed or self._cache is None or (self._hangs and not self._may_try())
        admitted = self._blocks.demand(fetch, deadline, let_go)
        if admitted is fetch:
            self._start(fetch)
        elif admitted is not None:
            self.join(admitted)
        return admitted

    def join(self, fetch: Fetch) -> None:
        """Note that a reader wants a fetch that somebody else began."""
        if fetch.demand():
            if self._hangs and not fetch.missed:
                self._ask_store(fetch)
            else:
                self._start(fetch)

    def go_on(self, fetch: Fetch) -> None:
        """Ask the store for what the block cache hasn't given in time."""
        if fetch.missed or fetch.begun:
            return
        self._tried_at = self._clock()
        self._hangs = True
        if not self._logged:  # once a run: a disk may be slow now and then
            self._logged = True
            logger.info("the cache's disk doesn't answer: what it holds is fetched again until it does")
        self._ask_store(fetch)

    def _ask_store(self, fetch: Fetch) -> None:
        fetch.missed = True
        if self._blocks.bind(fetch):
            self._submit(fetch)

    def _may_try(self) -> bool:
        """Return whether it is time to look whether the cache's disk answers again."""
        now = self._clock()
        if now - self._tried_at < TRY_AGAIN:
            return False
        self._tried_at = now
        return True

    def ahead(self, info: ObjectInfo, parts: tuple[Part, ...]) -> Fetch | bool:
        """Queue a fetch that nobody waits for and return it; True: it is known already; False: there is no room now."""
        fetch = Fetch(info, parts, demanded=False)
        fetch.missed = self._cache is None or self._hangs
        admitted = self._blocks.ahead(fetch)
        if not admitted:
            return admitted is None
        self._submit(fetch)
        return fetch

    def _start(self, fetch: Fetch) -> None:
        """Bring what a reader waits for: from the block cache where it has it, else from a store."""
        if fetch.missed:
            self._submit(fetch)
        else:
            fetch.asked_at = self._clock()
            self._queue(self._looks, self._look, fetch)

    def _look(self, ticket: Ticket) -> None:
        fetch = ticket.fetch
        if fetch is not None:
            self._guard(fetch, self._bring_or_submit)

    def _bring_or_submit(self, fetch: Fetch) -> None:
        if not self._found(fetch):
            self._ask_store(fetch)

    def _found(self, fetch: Fetch) -> bool:
        """Bring a fetch that no worker has begun from the block cache, if that has all of it; return whether it did, or there is nothing left to do."""
        try:
            buffer = fetch.take_buffer()
            found = self._lookup(fetch, buffer)
            some = found.count(None) < len(found)
            if some or fetch.missed or fetch.begun:
                self._hangs = False
            if None in found:
                fetch.keep_buffer(buffer)
                if some:
                    fetch.found = found
                fetch.missed = True
                return False
            view = _whole(found)
        except BaseException:
            if fetch.begin():
                raise
            return True  # it is in a worker's hands already, or ended: not to be ended by this
        if fetch.begin():
            self._land(fetch, view, [], fetch.length)
        else:
            fetch.overtake(view)
        return True

    def _submit(self, fetch: Fetch) -> None:
        """Queue a fetch for its store."""
        self._queue(self._pools[fetch.info.provider], self._run, fetch)

    def _queue(self, pool: WorkerPool, work: Callable[[Ticket], None], fetch: Fetch) -> None:
        """Have a pool do something for a fetch, or end it, unless a worker has it in hand already."""
        error: OptfsError = ServiceUnavailable("the mount is ending")
        priority = Priority.DEMAND if fetch.demanded else Priority.PREFETCH
        try:
            if pool.submit(partial(work, fetch.ticket), priority):
                return
        except MemoryError:
            error = _out_of_memory()
        if fetch.begin():
            self._fail(fetch, error)

    def _run(self, ticket: Ticket) -> None:
        fetch = ticket.fetch
        if fetch is not None:
            self._guard(fetch, self._bring)

    def _guard(self, fetch: Fetch, work: Callable[[Fetch, *_Arguments], None], *arguments: *_Arguments) -> None:
        """Do something for a fetch; whatever goes wrong with it ends the fetch."""
        try:
            work(fetch, *arguments)
        except OptfsError as error:
            # Some of its frames refer to it: a circle that would keep buffers until it is looked for.
            traceback.clear_frames(error.__traceback__)
            self._told(fetch, error)
        except MemoryError as error:
            traceback.clear_frames(error.__traceback__)
            self._fail(fetch, _out_of_memory())
        except BaseException:
            self._fail(fetch, ServiceError("a read failed for a reason that isn't foreseen; see the log"))
            raise

    def _told(self, fetch: Fetch, error: OptfsError) -> None:
        """End a fetch with what a store said."""
        try:
            if fetch.speculative:
                logger.debug("fetching %a ahead failed: %s %s", fetch.info.key, error.message, error.detail)
            if isinstance(error, VersionGone):  # before readers hear of it, who may open the file again at once
                self._gone(fetch.info)
        finally:
            self._fail(fetch, error)

    def _fail(self, fetch: Fetch, error: OptfsError) -> None:
        try:
            self._blocks.failed(fetch, error)
        finally:
            fetch.fail(error)

    def _lookup(self, fetch: Fetch, buffer: bytearray) -> _Found:
        """Return what the block cache has of each part, or of all of them as one; a single part is read into `buffer`."""
        if self._cache is None:
            return [None] * len(fetch.parts)
        into = buffer if len(fetch.parts) == 1 else None
        found: _Found = [self._cached(fetch.info, part, into) for part in fetch.parts]
        if None in found and (run := self._cached_run(fetch)) is not None:
            found = [run]
        return [self._cached_pieces(fetch)] if found == [None] else found

    def _bring(self, fetch: Fetch) -> None:
        if (fetch.missed or not self._found(fetch)) and fetch.begin():
            self._receive(fetch)

    def _receive(self, fetch: Fetch) -> None:
        """Have the store bring what the block cache lacks."""
        found: _Found = fetch.found or [None] * len(fetch.parts)
        fetch.found = None
        view = memoryview(fetch.take_buffer())
        readable = view.toreadonly()
        fetch.fill(readable)
        deadline = Deadline.after(self._clock, self._timeout, fetch.deserted)
        store = self._stores[fetch.info.provider]
        fresh: list[int] = []
        at = 0
        while at < len(found):
            begin = fetch.parts[at][1] - fetch.start
            data = found[at]
            if data is not None:
                view[begin : begin + len(data)] = data
                fetch.advance(begin + len(data))
                at += 1
                continue
            first = at
            while at < len(found) and found[at] is None:
                at += 1
            fresh += range(first, at)
            stop = fetch.parts[at - 1][1] + fetch.parts[at - 1][2] - fetch.start

            def progress(filled: int, begin: int = begin) -> None:
                fetch.advance(begin + filled)

            store.read_into(fetch.info, fetch.start + begin, view[begin:stop], progress, deadline)
            fetch.advance(stop)
        self._land(fetch, readable, fresh, fetch.length - sum(fetch.parts[index][2] for index in fresh))

    def _land(self, fetch: Fetch, view: memoryview, fresh: list[int], from_disk: int) -> None:
        """Hand over all bytes; the parts numbered in `fresh` are offered to the block cache."""
        self._blocks.arrived(fetch, from_disk=from_disk)
        views = [view[part[1] - fetch.start :][: part[2]] for part in fetch.parts]
        if self._cache is not None and fresh:
            fetch.finish(view)  # readers don't wait for the disk
            try:
                for index in fresh:
                    self._cache.put(self._key(fetch.info, fetch.parts[index]), views[index])
            finally:
                self._blocks.landed(fetch, views)
        else:
            self._blocks.landed(fetch, views)
            fetch.finish(view)

    def _cached(self, info: ObjectInfo, part: Part, into: bytearray | None = None) -> bytes | bytearray | None:
        if self._cache is None:
            return None
        data = self._cache.get(self._key(info, part), into)
        return data if data is not None and len(data) == part[2] else None

    def _cached_pieces(self, fetch: Fetch) -> bytes | None:
        """Return a block of a big file that reads out of order left in the cache piece by piece, or None."""
        ident, start, length = fetch.parts[0]
        if length <= PIECE or fetch.info.size <= self._blocks.block:
            return None
        found = []
        for at in range(start, start + length, PIECE):
            data = self._cached(fetch.info, (ident, at, min(PIECE, start + length - at)))
            if data is None:
                return None
            found.append(data)
        return b"".join(found)

    def _cached_run(self, fetch: Fetch) -> bytes | None:
        """Return a run of pieces, be it all of a block, out of a cached block, or None."""
        block = self._blocks.block
        begin = fetch.start - fetch.start % block
        whole = (fetch.parts[0][0], begin, min(block, fetch.info.size - begin))
        if self._cache is None or fetch.parts[0] == whole or fetch.start + fetch.length > begin + whole[2]:
            return None
        data = self._cache.get_range(self._key(fetch.info, whole), fetch.start, fetch.length)
        return data if data is not None and len(data) == fetch.length else None

    def _key(self, info: ObjectInfo, part: Part) -> BlockKey:
        uri = self._stores[info.provider].root.uri(info.key)
        return BlockKey(uri, info.version, info.size, part[1], part[2])


def _whole(found: _Found) -> memoryview:
    """Return what the block cache had, all of it, as one."""
    data = [part for part in found if part is not None]
    return memoryview(data[0] if len(data) == 1 else b"".join(data)).toreadonly()


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory("there is no memory for a read; let the mount have more, or give it a smaller --memory")
