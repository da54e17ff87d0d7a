"""What is in memory: parts that have arrived, fetches on their way, failures that still hold, and the bound on all of it.

Algorithm: a part (a block, or a piece of one) is resident, in flight, failed a moment ago, or unknown. Room is taken by its length when a
fetch is admitted and becomes its parts' when it has ended, so the sum never passes `limit`. To make room go, in this order: buffers kept for
reuse; parts fetched ahead that nobody will read; parts that were read, least recently used first; for a reader also other parts fetched ahead and
not read yet, newest first (the oldest are wanted next), and then fetches ahead that no worker has begun.

Rules:

- What stores may have to bring (`Fetch.bound`) takes at most `SHARE` of the room for one provider, and leaves `RESERVE` of it in all: while one
  is silent, its fetches take room for the whole of `--timeout`, and readers of the block cache, or of the other one, need some. So what a
  reader demands is bound once the block cache was asked, and if there is no room for that it gives up the room it has, and waits.
- Who fetches ahead never waits for room: without room nothing is fetched. A reader waits for it, within its deadline, holding nothing: of what
  it had already of its read it keeps copies (200 readers took 650 MiB of 406 allowed, as many blocks were evicted that somebody still held).
  Who came first is first, or a read could be overtaken until its time is up.
- Parts fetched ahead are safe from other fetches ahead for `FRESH` seconds: streams would push out each other's otherwise. After that
  they go as well, after those that were read.
- A failure is the answer for its parts for `FAILURE_HOLDS` seconds: the kernel asks again for every page of a failed readahead, and a program
  would wait for the timeout again each time. Want of memory isn't held: all that is resident is given up, and then it may be over.
- The buffers of blocks that went are filled again (`spares`), and count as long as they are kept.
- Nothing is admitted ahead while a reader waits for room for the same provider.

Lock: `_lock` (and `_room`, a condition on it) guards all fields below it. A fetch's own lock may be taken under it, never the other way round;
nothing else is called under it.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import Enum
from typing import get_args

from optfs.errors import DeadlineExceeded, OptfsError, OutOfMemory, ServiceUnavailable, bare
from optfs.reading.counters import Counters
from optfs.reading.fetches import Fetch, Part
from optfs.reading.spares import Spares
from optfs.values import LOOK_AGAIN, Clock, Deadline, Provider

SHARE = 3 / 4
RESERVE = 1 / 8
FAILURE_HOLDS = 0.5
FRESH = 10.0
ABANDONED = float("-inf")
"""When a part arrived that was fetched ahead and that nobody will read."""
MOST_FAILURES = 1000


class Refusal(Enum):
    """Why a fetch ahead isn't admitted."""

    KNOWN = 0
    """Its first part is resident or in flight already."""
    NO_ROOM = 1
    """There is none for it now, or readers of the provider wait for some."""


def nothing() -> None:
    """Hold nothing, so have nothing to let go."""


class Blocks:
    """The memory of one mount. Every method may be called by any thread."""

    def __init__(self, limit: int, block: int, clock: Clock) -> None:
        """Hold at most `limit` bytes, fetches on their way included; `block`: the length of the buffers worth keeping for reuse."""
        self._limit = limit
        self.block = block
        self._clock = clock
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        # Guarded by _lock: all below. Invariants: a part is in at most one of _read and _ahead; _taken is the sum of the lengths of resident
        # parts and of fetches in flight, and with what _spares keeps <= _limit; _ahead_bytes is the sum of the lengths in _ahead; _bound, of each
        # provider, of bound fetches in flight; _queues are the fetches whose readers wait for room, bound ones apart.
        self._read: OrderedDict[Part, memoryview] = OrderedDict()
        self._ahead: OrderedDict[Part, tuple[memoryview, float]] = OrderedDict()
        self._flights: dict[Part, Fetch] = {}
        self._failures: dict[Part, tuple[OptfsError, float]] = {}  # with the time until which each holds, in that order
        self._spares = Spares(block)
        self._taken = 0
        self._ahead_bytes = 0
        self._bound: Counter[Provider] = Counter()
        self._queues: dict[tuple[Provider, bool], deque[Fetch]] = {
            (provider, bound): deque() for provider in get_args(Provider) for bound in (False, True)
        }
        self._closed = False
        self._counters = Counters()

    def find(self, part: Part, length: int) -> memoryview | None:
        """Return the bytes of a resident part, of which a reader is given `length`, or None."""
        with self._lock:
            view = self._read.get(part)
            if view is not None:
                self._read.move_to_end(part)
            else:
                fresh = self._ahead.get(part)
                if fresh is None:
                    return None
                view = self._read[part] = fresh[0]  # first: there may be no memory for the entry
                del self._ahead[part]
                self._ahead_bytes -= part[2]
            self._counters.memory_hits += 1
            self._counters.read_bytes += length
            return view

    def flight(self, part: Part) -> Fetch | None:
        """Return the fetch that brings a part, for a reader, or None."""
        with self._lock:
            return self._given(part)

    def known(self, part: Part) -> bool:
        """Return whether a part is resident or in flight; doesn't count as reading it."""
        with self._lock:
            return part in self._read or part in self._ahead or part in self._flights

    def check(self, parts: Iterable[Part]) -> None:
        """Raise the failure that still holds for one of `parts`."""
        if not self._failures:
            return
        with self._lock:
            self._check(parts)

    def demand(self, fetch: Fetch, deadline: Deadline, let_go: Callable[[], None] = nothing) -> Fetch | None:
        """Admit a fetch that a reader waits for, as soon as there is room, and return it; or the one that brings its first part already.

        Returns None if that part is resident by now. `let_go` is called, with no lock held, before a wait for room: what it raises ends that.

        Raises:
            OptfsError: it failed a moment ago.
            DeadlineExceeded: all memory is in use, and stays so.
            Abandoned: nobody needs the bytes any more.

        """
        queue = self._queues[fetch.info.provider, fetch.bound]
        try:
            return self._demand(fetch, deadline, let_go, queue)
        except BaseException:
            with self._lock:
                self._leave_queue(fetch, queue)
            raise

    def _demand(self, fetch: Fetch, deadline: Deadline, let_go: Callable[[], None], queue: deque[Fetch]) -> Fetch | None:
        first = fetch.parts[0]
        holding = True
        look_at = self._clock()
        while True:
            with self._lock:
                while True:
                    if first in self._read or first in self._ahead:
                        self._leave_queue(fetch, queue)
                        return None
                    flight = self._given(first)
                    if flight is not None:
                        self._leave_queue(fetch, queue)
                        return flight
                    self._check(fetch.parts)
                    if self._closed:
                        raise ServiceUnavailable("the mount is ending")
                    if (not queue or queue[0] is fetch) and self._make_room(fetch, for_reader=True):
                        self._admit(fetch)
                        self._leave_queue(fetch, queue)
                        return fetch
                    left = deadline.remaining()
                    if left <= 0:
                        raise self._overdue(fetch)
                    if holding:
                        break
                    if fetch not in queue:
                        queue.append(fetch)
                    if self._clock() >= look_at:
                        break
                    self._room.wait(min(left, LOOK_AGAIN))
            if holding:
                let_go()
                holding = False
            else:
                deadline.check_abandoned()
            look_at = self._clock() + LOOK_AGAIN

    def _leave_queue(self, fetch: Fetch, queue: deque[Fetch]) -> None:
        """Wait for room no more. Called with the lock."""
        if fetch in queue:
            queue.remove(fetch)
            self._room.notify_all()  # the next one's turn

    def _overdue(self, fetch: Fetch) -> DeadlineExceeded:
        """Return what a fetch failed by that found no room in time; it holds."""
        message = "a read took longer than --timeout: all memory is in use; raise --memory"
        if fetch.bound and not self._may_bind(fetch, for_reader=False):
            message = "a read took longer than --timeout, as others did for which the service gives no bytes; check the network"
        error = DeadlineExceeded(message)
        self._hold(fetch.parts, error)
        return error

    def bind(self, fetch: Fetch) -> bool:
        """Count a fetch that the block cache lacks as its store's, or end it where that may take no more: its readers demand it anew."""
        with self._lock:
            if not fetch.admitted or fetch.bound or fetch.begun:  # also one that has arrived and waits for the cache's writer
                return True
            if self._may_bind(fetch, for_reader=True):
                fetch.bound = True
                self._bound[fetch.info.provider] += fetch.length
                return True
            if fetch.give_up():
                fetch.spare = None  # its readers hold the fetch while they wait again
                self._forget(fetch)
                self._room.notify_all()
            return False

    def ahead(self, fetch: Fetch) -> Refusal | None:
        """Admit a fetch that nobody waits for, or return why not."""
        first = fetch.parts[0]
        with self._lock:
            if first in self._read or first in self._ahead or first in self._flights:
                self._want_again(first)
                return Refusal.KNOWN
            waited_for = any(self._queues[fetch.info.provider, bound] for bound in (False, True))
            if self._closed or waited_for or not self._make_room(fetch, for_reader=False):
                return Refusal.NO_ROOM
            self._admit(fetch)
            return None

    def arrived(self, fetch: Fetch, *, from_disk: int) -> None:
        """All bytes of a fetch are there, `from_disk` of them from the block cache; its room stays taken until `landed`."""
        with self._lock:
            if fetch.bound and fetch.admitted:
                fetch.bound = False
                self._bound[fetch.info.provider] -= fetch.length
                self._room.notify_all()
            self._counters.disk_bytes += from_disk
            self._counters.fetched_bytes += fetch.length - from_disk
            if from_disk == fetch.length:
                self._counters.disk_hits += 1
            else:
                self._counters.misses += 1

    def landed(self, fetch: Fetch, views: Sequence[memoryview]) -> None:
        """A fetch that has arrived has ended: its parts are resident, and may be evicted."""
        if len(views) > 1:  # a slice would keep the whole run's buffer alive as long as one of its pieces is wanted
            views = [memoryview(bytes(view)) for view in views]
        with self._lock:
            if fetch.admitted:
                self._forget(fetch)
            for part, view in zip(fetch.parts, views, strict=True):
                self._insert(part, view, read=fetch.used)
                if fetch.passed:
                    self._give_up(part)
            self._room.notify_all()

    def failed(self, fetch: Fetch, error: OptfsError) -> None:
        """A fetch has ended without its parts. The failure holds, unless no reader wanted it when it began."""
        with self._lock:
            if not fetch.admitted:  # it had landed; what failed came after
                return
            self._forget(fetch)
            self._room.notify_all()
            if isinstance(error, OutOfMemory):
                self._clear()
            elif not fetch.speculative:
                self._hold(fetch.parts, error)

    def overdue(self, fetch: Fetch, error: OptfsError) -> None:
        """A reader's own deadline passed before a fetch brought its bytes."""
        with self._lock:
            self._hold(fetch.parts, error)

    def cancel(self, fetch: Fetch) -> None:
        """End a fetch that no worker has begun and no reader wants."""
        with self._lock:
            if fetch.cancel():
                self._forget(fetch)
                self._room.notify_all()

    def leave(self, fetch: Fetch) -> None:
        """A reader wants a fetch no more: it ends if nobody else waits for it and no worker has begun it."""
        with self._lock:
            if fetch.leave():
                self._forget(fetch)
                self._room.notify_all()

    def drop(self, part: Part) -> None:
        """Give up a part that a stream has passed, or as soon as the cache's writer has taken it."""
        with self._lock:
            if part in self._read:
                self._evict_read(part)
                self._room.notify_all()
            elif part in self._flights:
                self._flights[part].passed = True

    def abandon(self, part: Part) -> None:
        """Nobody will read this part that was fetched ahead or is being so, as far as it is known: it goes before others."""
        with self._lock:
            if part in self._ahead:
                self._give_up(part)
            elif part in self._flights and not self._flights[part].used:
                self._flights[part].passed = True

    def _want_again(self, part: Part) -> None:
        """Have a part that was given up be as any other that was fetched ahead."""
        if part in self._flights:
            self._flights[part].passed = False
        elif part in self._ahead and self._ahead[part][1] == ABANDONED:
            self._ahead[part] = (self._ahead[part][0], self._clock())
            self._ahead.move_to_end(part)

    def _give_up(self, part: Part) -> None:
        """Evict a part that was read, and have one that wasn't go first."""
        if part in self._read:
            self._evict_read(part)
        elif part in self._ahead:
            self._ahead[part] = (self._ahead[part][0], ABANDONED)
            self._ahead.move_to_end(part, last=False)

    def count_read(self, length: int) -> None:
        """Count bytes handed out that a fetch brought."""
        with self._lock:
            self._counters.read_bytes += length

    def counters(self) -> Counters:
        """Return a copy of what was counted so far."""
        with self._lock:
            return replace(self._counters, fresh_bytes=self._ahead_bytes, resident_bytes=self._taken + self._spares.size)

    def close(self) -> None:
        """Admit nothing more, and cancel what no worker has begun and no reader wants."""
        with self._lock:
            self._closed = True
            for fetch in list(dict.fromkeys(self._flights.values())):
                if fetch.cancel():
                    self._forget(fetch)
            self._room.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until nothing is in flight; return whether that came about in time."""
        with self._lock:
            while self._flights:
                left = deadline.remaining()
                if left <= 0:
                    return False
                self._room.wait(min(left, LOOK_AGAIN))
            return True

    def clear(self) -> None:
        """Give up everything that is resident."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        while self._read:
            self._evict_read(next(iter(self._read)))
        while self._ahead:
            self._evict_ahead(next(iter(self._ahead)))
        self._spares.clear()

    def _check(self, parts: Iterable[Part]) -> None:
        for part in parts:
            held = self._failures.get(part)
            if held is None:
                continue
            if self._clock() < held[1]:
                raise bare(held[0])
            del self._failures[part]

    def _hold(self, parts: Iterable[Part], error: OptfsError) -> None:
        now, kept = self._clock(), bare(error)
        failures = self._failures
        while failures and (len(failures) >= MOST_FAILURES or next(iter(failures.values()))[1] <= now):
            del failures[next(iter(failures))]
        for part in parts:
            failures.pop(part, None)  # to be the last again
            failures[part] = (kept, now + FAILURE_HOLDS)

    def _given(self, part: Part) -> Fetch | None:
        flight = self._flights.get(part)
        if flight is not None:
            flight.used = True
            flight.passed = False
        return flight

    def _admit(self, fetch: Fetch) -> None:
        fetch.admitted = True
        self._taken += fetch.length
        self._bound[fetch.info.provider] += fetch.length * fetch.bound
        try:
            for part in fetch.parts:
                self._flights.setdefault(part, fetch)
        except MemoryError:
            self._forget(fetch)
            raise

    def _forget(self, fetch: Fetch) -> None:
        """Take a fetch, and the room of its length, out of what is in flight."""
        fetch.admitted = False
        self._taken -= fetch.length
        self._bound[fetch.info.provider] -= fetch.length * fetch.bound
        for part in fetch.parts:
            if self._flights.get(part) is fetch:
                del self._flights[part]

    def _insert(self, part: Part, view: memoryview, *, read: bool) -> None:
        if part in self._read or part in self._ahead:
            return
        if self._closed:
            self._counters.unused_bytes += 0 if read else part[2]
            return
        if read:
            self._read[part] = view
        else:
            self._ahead[part] = (view, self._clock())
            self._ahead_bytes += part[2]
        self._taken += part[2]  # last: there may be no memory for the entry

    def _left(self) -> int:
        """Return how much room nothing takes."""
        return self._limit - self._taken - self._spares.size

    def _make_room(self, fetch: Fetch, *, for_reader: bool) -> bool:
        """Evict until the fetch fits; return whether it does."""
        if fetch.length > self._limit or (fetch.bound and not self._may_bind(fetch, for_reader=for_reader)):
            return False
        if fetch.length != self.block:
            self._spares.settle(self._left())
        while True:
            if fetch.length == self.block and fetch.spare is None:
                fetch.spare = self._spares.take(self._left())
            if fetch.length <= self._left():
                return True
            if self._spares.let_go():
                continue
            if self._ahead and next(iter(self._ahead.values()))[1] == ABANDONED:
                self._evict_ahead(next(iter(self._ahead)))
            elif self._read:
                self._evict_read(next(iter(self._read)))
            elif self._ahead and for_reader:
                self._evict_ahead(next(reversed(self._ahead)))
            elif self._ahead and next(iter(self._ahead.values()))[1] < self._clock() - FRESH:
                self._evict_ahead(next(iter(self._ahead)))
            elif not (for_reader and self._cancel_newest()):
                fetch.spare = None
                return False

    def _may_bind(self, fetch: Fetch, *, for_reader: bool) -> bool:
        """Return whether its store may take room for a fetch, for a reader's also that of fetches ahead; one at a time it always may."""
        provider = fetch.info.provider
        reserve = max(self.block, int(self._limit * RESERVE))
        while self._bound[provider]:
            inside = self._bound[provider] + fetch.length <= self._limit * SHARE
            if inside and self._bound.total() + fetch.length <= self._limit - reserve:
                break
            if not (for_reader and self._cancel_newest(provider)):
                return False
        return True

    def _cancel_newest(self, provider: Provider | None = None) -> bool:
        """End the newest fetch ahead, of one provider if given, that no worker has begun; return whether there was one."""
        for fetch in reversed(self._flights.values()):
            if provider in {None, fetch.info.provider} and fetch.cancel():
                self._forget(fetch)
                return True
        return False

    def _evict_read(self, part: Part) -> None:
        buffer = self._read.pop(part).obj
        self._taken -= part[2]
        self._spares.keep(buffer, self._left())

    def _evict_ahead(self, part: Part) -> None:
        buffer = self._ahead.pop(part)[0].obj
        self._taken -= part[2]
        self._ahead_bytes -= part[2]
        self._counters.unused_bytes += part[2]
        self._spares.keep(buffer, self._left())
