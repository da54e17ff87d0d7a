"""Brings parts into memory: from the block cache or, in the pools' threads, from a store.

Algorithm of a fetch: it is looked for in the block cache (`lookups`); what that lacks is brought by one ranged GET for each run of adjacent
parts, in order, so that the watermark rises, and offered to the block cache.

Rules:

- Looks have threads of their own, and each provider's requests have: who is silent holds up its own alone. Only what nobody waits for is looked for
  by the provider's threads themselves, by `lookups.ASIDE` of them at most.
- A disk may hang: nobody has begun a fetch that is looked for. What the disk doesn't give a reader in time is asked of the store (`wait`), and
  nothing else is looked for until it answers, but for what a reader wants now and then, of which the store is asked at once. What a look finds
  after all is given to the readers, whatever the store does (`Fetch.overtake`).
- A fetch ahead that a reader comes for while it is queued is queued again, before all others; the job that comes second finds it taken.
- A fetch that nobody waits for any more ends in the queue, or between two tries. One whose bytes go on coming has time (`_SteadyClock`).
- Fewer fetches run ahead of readers where those that wait for the service have waited long (`pace`).
- Failures of fetches ahead are logged for debugging only. A bug or want of memory in here ends the fetch, not the reader's patience.

Lock: `_lock` guards the paces; a pool's own is taken under it. Called with no lock held.
"""

import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVarTuple

from optfs.errors import DeadlineExceeded, OptfsError, OutOfMemory, ReadDenied, ServiceError, ServiceUnavailable, VersionGone
from optfs.reading.blocks import Blocks, Refusal, nothing
from optfs.reading.fetches import Fetch, Part, Ticket
from optfs.reading.lookups import Found, Lookups
from optfs.reading.pace import Pace
from optfs.reading.readahead import PIECE
from optfs.stores.protocol import Store
from optfs.values import Clock, Deadline, ObjectInfo, Provider
from optfs.workers import Job, Priority, WorkerPool

logger = logging.getLogger(__name__)

Gone = Callable[[ObjectInfo], None]
"""Told of versions that aren't there any more, or perhaps not, by fetching threads; sends nothing."""

_Arguments = TypeVarTuple("_Arguments")


class Fetcher:
    """The way from store and block cache into memory."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        lookups: Lookups | None,
        pools: Mapping[Provider, WorkerPool],
        blocks: Blocks,
        timeout: float,
        clock: Clock,
        gone: Gone,
    ) -> None:
        """Run fetches in the `pools` of their providers, each at most `timeout` seconds by `clock`, into `blocks`; None: there is no block cache."""
        self._stores = stores
        self._lookups = lookups
        self._pools = pools
        self._blocks = blocks
        self._timeout = timeout
        self._clock = clock
        self._gone = gone
        self._lock = threading.Lock()
        self._paces = {provider: Pace(pool.most_prefetch, timeout) for provider, pool in pools.items()}  # guarded by _lock

    def demand(
        self, info: ObjectInfo, parts: tuple[Part, ...], deadline: Deadline, let_go: Callable[[], None] = nothing, *, missed: bool = False
    ) -> Fetch | None:
        """Return the fetch that brings the first of `parts` at least, queued before all that is ahead; None: that part is resident by now.

        With `missed` the block cache isn't asked first: it was, and lacks some of them. Raises as `Blocks.demand` does, where `let_go` is told.
        """
        fetch = Fetch(info, parts, demanded=True)
        fetch.bound = fetch.missed = missed or self._lookups is None
        admitted = self._blocks.demand(fetch, deadline, let_go)
        if admitted is fetch:
            self._start_demanded(fetch)
        elif admitted is not None:
            self.join(admitted)
        return admitted

    def join(self, fetch: Fetch) -> None:
        """Note that a reader wants a fetch that somebody else began."""
        if fetch.demand():
            self._start_demanded(fetch)

    def ahead(self, info: ObjectInfo, parts: tuple[Part, ...]) -> Fetch | Refusal:
        """Queue a fetch that nobody waits for and return it, or why there is none."""
        fetch = Fetch(info, parts, demanded=False)
        fetch.missed = self._lookups is None or self._lookups.hangs()
        refusal = self._blocks.ahead(fetch)
        if refusal is not None:
            return refusal
        self._start(fetch)
        return fetch

    def wait(self, fetch: Fetch, upto: int, deadline: Deadline) -> memoryview:
        """Wait for a fetch's first `upto` bytes, as `Fetch.wait` does; those that the block cache doesn't give in time are asked of the store.

        Time counts from when a reader asked for it: a read of several ranges waits for them one after the other, and a third of `--timeout` for
        each is all.
        """
        if fetch.filled >= upto:
            return fetch.wait(upto, deadline)
        pool, pace = self._pools[fetch.info.provider], self._paces[fetch.info.provider]
        began, running = self._clock(), pool.running()
        view = self._wait(fetch, upto, deadline)
        now = self._clock()
        if fetch.missed and now - began >= pace.long:
            with self._lock:
                pace.waited_long(now, *running)
                pool.limit_prefetch(pace.allowed)
        return view

    def _wait(self, fetch: Fetch, upto: int, deadline: Deadline) -> memoryview:
        if self._lookups is not None and not fetch.missed:
            waited = max(0.0, self._clock() - fetch.asked_at)
            try:
                return fetch.wait(upto, deadline.sooner(self._lookups.patience - waited))
            except DeadlineExceeded:  # also where it failed at this moment: what by, the second wait tells
                if not (fetch.failed or fetch.missed or fetch.begun) and deadline.remaining() > 0:
                    self._ask_store(fetch)
        return fetch.wait(upto, deadline)

    def _start_demanded(self, fetch: Fetch) -> None:
        """Start what a reader waits for; asked after the wait for room, in which a disk may have begun to hang."""
        fetch.asked_at = self._clock()
        if fetch.missed or self._lookups is None or not self._lookups.hangs():
            self._start(fetch)
            return
        if not fetch.looked and self._lookups.may_try():  # beside the store, so that nobody waits for it
            with contextlib.suppress(MemoryError):
                self._lookups.submit(partial(self._guard, fetch, self._bring_cached, self._lookups), Priority.DEMAND)
        self._ask_store(fetch)

    def _start(self, fetch: Fetch) -> None:
        """Queue a fetch for the block cache if a reader waits for it, or for its store, which looks for itself if it still has to."""
        if fetch.missed or self._lookups is None or not fetch.demanded:
            self._submit(fetch)
        else:
            self._queue(self._lookups.submit, self._look, fetch)

    def _submit(self, fetch: Fetch) -> None:
        """Queue a fetch for its store."""
        self._queue(self._pools[fetch.info.provider].submit, self._run, fetch)

    def _ask_store(self, fetch: Fetch) -> None:
        """Have the store bring what the block cache lacks, or hasn't given in time."""
        fetch.missed = True
        if self._blocks.bind(fetch):
            self._submit(fetch)

    def _queue(self, submit: Callable[[Job, Priority], bool], work: Callable[[Ticket], None], fetch: Fetch) -> None:
        """Have a pool do something for a fetch, or end it, unless a worker has it in hand already."""
        error: OptfsError = ServiceUnavailable("the mount is ending")
        priority = Priority.DEMAND if fetch.demanded else Priority.PREFETCH
        try:
            if submit(partial(work, fetch.ticket), priority):
                return
        except MemoryError:
            error = _out_of_memory()
        if fetch.begin():
            self._fail(fetch, error)

    def _look(self, ticket: Ticket) -> None:
        fetch = ticket.fetch
        if fetch is not None and self._lookups is not None:
            self._guard(fetch, self._bring_cached, self._lookups)

    def _bring_cached(self, fetch: Fetch, lookups: Lookups) -> None:
        """Bring a fetch from the block cache if that has all of it, else hand it on to its store."""
        if not self._is_brought(fetch, lookups):
            self._ask_store(fetch)

    def _is_brought(self, fetch: Fetch, lookups: Lookups) -> bool:
        """Bring a fetch from the block cache if that has all of it; return whether it did, or others do what is left to do."""
        if not fetch.begin_look():
            return True
        try:
            buffer = fetch.take_buffer()
            found = lookups.find(fetch, buffer)
            view = None if None in found else _whole(found)
        except BaseException:
            if fetch.begin():
                raise
            return True  # it is in a worker's hands already, or ended: not to be ended by this
        if view is None:
            fetch.keep_buffer(buffer)
            if fetch.missed:
                return True
            fetch.found = found if found.count(None) < len(found) else None
            return False
        if fetch.begin():
            self._land(fetch, view, [], fetch.length)
        else:
            fetch.overtake(view)
        return True

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
            if isinstance(error, VersionGone | ReadDenied):  # before readers hear of it, who may open the file again at once
                self._gone(fetch.info)
        finally:
            self._fail(fetch, error)

    def _fail(self, fetch: Fetch, error: OptfsError) -> None:
        try:
            self._blocks.failed(fetch, error)
        finally:
            fetch.fail(error)

    def _bring(self, fetch: Fetch) -> None:
        lookups = self._lookups
        if not fetch.missed and lookups is not None:
            if not lookups.aside.acquire(blocking=False):
                self._queue(lookups.submit, self._look, fetch)
                return
            try:
                if self._is_brought(fetch, lookups):
                    return
            finally:
                lookups.aside.release()
            fetch.missed = True
        if fetch.begin():
            self._receive(fetch)

    def _receive(self, fetch: Fetch) -> None:
        """Have the store bring what the block cache lacks."""
        found: Found = fetch.found or [None] * len(fetch.parts)
        fetch.found = None
        view = memoryview(fetch.take_buffer())
        readable = view.toreadonly()
        fetch.fill(readable)
        clock = _SteadyClock(self._clock)
        deadline = Deadline.after(clock, self._timeout, fetch.deserted)
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
                clock.came(begin + filled)

            store.read_into(fetch.info, fetch.start + begin, view[begin:stop], progress, deadline)
            fetch.advance(stop)
        self._land(fetch, readable, fresh, fetch.length - sum(fetch.parts[index][2] for index in fresh))

    def _land(self, fetch: Fetch, view: memoryview, fresh: list[int], from_disk: int) -> None:
        """Hand over all bytes; the parts numbered in `fresh` are offered to the block cache."""
        self._blocks.arrived(fetch, from_disk=from_disk)
        if from_disk < fetch.length:
            with self._lock:
                pace = self._paces[fetch.info.provider]
                pace.landed(self._clock())
                self._pools[fetch.info.provider].limit_prefetch(pace.allowed)
        views = [view[part[1] - fetch.start :][: part[2]] for part in fetch.parts]
        if self._lookups is not None and fresh:
            fetch.finish(view)  # readers don't wait for the disk
            try:
                for index in fresh:
                    self._lookups.offer(fetch.info, fetch.parts[index], views[index])
            finally:
                self._blocks.landed(fetch, views)
        else:
            self._blocks.landed(fetch, views)
            fetch.finish(view)


class _SteadyClock:
    """A clock of one fetch that begins anew with each `PIECE` bytes that have come.

    So a link that is slow but steady has `--timeout` for each piece: many blocks share it, and none would come in time as a whole. Readers have
    deadlines of their own.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()
        self._behind = 0.0
        self._next = PIECE

    def __call__(self) -> float:
        return self._clock() - self._behind

    def came(self, filled: int) -> None:
        """Note how many bytes have come."""
        if filled >= self._next:
            self._next = filled + PIECE
            self._behind = self._clock() - self._began


def _whole(found: Found) -> memoryview:
    """Return what the block cache had, all of it, as one."""
    data = [part for part in found if part is not None]
    return memoryview(data[0] if len(data) == 1 else b"".join(data)).toreadonly()


def _out_of_memory() -> OutOfMemory:
    return OutOfMemory("there is no memory for a read; let the mount have more, or give it a smaller --memory")
