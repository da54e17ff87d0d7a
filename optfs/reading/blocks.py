"""What is in memory: ranges that have arrived, fetches on their way, failures that still hold, and the bound on all of it.

Algorithm: a part (a block, or a piece of one) is resident, in flight, failed a moment ago, or unknown. Room is taken when a fetch is made, by
its length, and becomes its parts' when it has ended; so the sum never passes `limit`. To make room, parts that were read go first, least
recently used first; parts that were fetched ahead and not read yet are given up for a reader only, never for other fetches ahead.

Rules:

- Who fetches ahead never waits for room: without room nothing is fetched. A reader waits for it, within its deadline.
- A failure is the answer for its parts for `FAILURE_HOLDS` seconds: the kernel asks again for every page of a failed readahead, and a program
  would wait for the timeout again each time.
- A fetch ahead that fails is forgotten, so that it is no answer to a reader who comes later.

Lock: `_room` (a condition) guards all fields below it. A fetch's own lock may be taken under it, never the other way round.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optfs.errors import DeadlineExceeded, OptfsError, VersionGone
from optfs.reading.fetches import Fetch, Part
from optfs.values import Clock, Deadline, ObjectInfo

FAILURE_HOLDS = 0.5
LOOK_AGAIN = 1.0


@dataclass(slots=True)
class _Failure:
    error: OptfsError
    until: float


class Blocks:
    """The memory of one mount. Every method may be called by any thread."""

    def __init__(self, limit: int, clock: Clock) -> None:
        """Hold at most `limit` bytes, fetches on their way included."""
        self._limit = limit
        self._clock = clock
        self._room = threading.Condition(threading.Lock())
        # Guarded by _room: all below. Invariant: _taken is the sum of the lengths of resident parts and of fetches in flight, <= _limit.
        self._read: OrderedDict[Part, memoryview] = OrderedDict()
        self._ahead: OrderedDict[Part, memoryview] = OrderedDict()
        self._flights: dict[Part, Fetch] = {}
        self._failures: dict[Part, _Failure] = {}
        self._taken = 0
        self._ahead_bytes = 0  # resident parts and flights that nobody has read yet
        self._unread: set[Part] = set()  # flights begun ahead that no reader has touched
        self._wasted = 0
        self._peak = 0

    def find(self, part: Part) -> memoryview | Fetch | None:
        """Return a part's bytes, or the fetch that brings it, or None; count it as read.

        Raises:
            OptfsError: it failed a moment ago.

        """
        with self._room:
            view = self._read.get(part)
            if view is not None:
                self._read.move_to_end(part)
                return view
            view = self._ahead.pop(part, None)
            if view is not None:
                self._ahead_bytes -= part[2]
                self._read[part] = view
                return view
            fetch = self._flights.get(part)
            if fetch is not None:
                self._touch(part)
                return fetch
            failure = self._failures.get(part)
            if failure is not None:
                if self._clock() < failure.until:
                    raise copy.copy(failure.error) from failure.error
                del self._failures[part]
            return None

    def known(self, part: Part) -> bool:
        """Return whether a part is resident or in flight; doesn't count as reading it."""
        with self._room:
            return part in self._read or part in self._ahead or part in self._flights

    def demand(self, info: ObjectInfo, parts: Sequence[Part], deadline: Deadline) -> tuple[Fetch, bool]:
        """Return a fetch that brings `parts`, and whether it is new; waits for room.

        Where the first of `parts` is in flight meanwhile, that fetch is returned, which may bring fewer parts.

        Raises:
            DeadlineExceeded: everything is in use, and stays so.

        """
        length = sum(part[2] for part in parts)
        with self._room:
            while True:
                fetch = self._flights.get(parts[0])
                if fetch is not None:
                    self._touch(parts[0])
                    return fetch, False
                if self._make_room(length, ahead_too=True):
                    return self._begin(info, parts, length, demanded=True), True
                left = deadline.remaining()
                if left <= 0:
                    raise DeadlineExceeded("a read took longer than --timeout: all memory is in use; raise --memory")
                self._room.wait(min(left, LOOK_AGAIN))

    def ahead(self, info: ObjectInfo, part: Part) -> Fetch | None:
        """Return a new fetch of a part that nobody waits for, or None where it is known or there is no room."""
        with self._room:
            if part in self._read or part in self._ahead or part in self._flights:
                return None
            if not self._make_room(part[2], ahead_too=False):
                return None
            fetch = self._begin(info, (part,), part[2], demanded=False)
            self._unread.add(part)
            self._ahead_bytes += part[2]
            return fetch

    def landed(self, fetch: Fetch, views: Sequence[memoryview]) -> None:
        """A fetch has brought its parts."""
        with self._room:
            for part, view in zip(fetch.parts, views, strict=True):
                self._flights.pop(part, None)
                self._failures.pop(part, None)
                if part in self._unread:
                    self._unread.discard(part)
                    self._ahead[part] = view
                else:
                    self._read[part] = view
            self._room.notify_all()

    def failed(self, fetch: Fetch, error: OptfsError, *, holds: bool) -> None:
        """A fetch has ended without its parts; `holds`: the failure is the answer for a moment."""
        with self._room:
            until = self._clock() + FAILURE_HOLDS
            for part in fetch.parts:
                if self._flights.pop(part, None) is None:
                    continue
                self._taken -= part[2]
                self._touch(part)
                if holds and not isinstance(error, VersionGone):
                    self._failures[part] = _Failure(error, until)
            if len(self._failures) > 1000:
                now = self._clock()
                self._failures = {part: failure for part, failure in self._failures.items() if failure.until > now}
            self._room.notify_all()

    def drop(self, part: Part) -> None:
        """Give up a part that was read to its end and will not be read again."""
        with self._room:
            view = self._read.pop(part, None)
            if view is not None:
                self._taken -= part[2]
                self._room.notify_all()

    def unread_bytes(self) -> int:
        """Return the bytes fetched or being fetched ahead that nobody has read yet."""
        with self._room:
            return self._ahead_bytes

    def usage(self) -> tuple[int, int, int]:
        """Return bytes in use now, at most so far, and fetched ahead for nothing."""
        with self._room:
            return self._taken, self._peak, self._wasted

    def forget(self, wanted: Callable[[Part], bool]) -> None:
        """Give up resident parts for which `wanted` is false."""
        with self._room:
            for held in (self._read, self._ahead):
                for part in [part for part in held if not wanted(part)]:
                    self._evict(held, part)
            self._room.notify_all()

    def _begin(self, info: ObjectInfo, parts: Sequence[Part], length: int, *, demanded: bool) -> Fetch:
        fetch = Fetch(info, tuple(parts), demanded=demanded)
        for part in parts:
            self._flights[part] = fetch
        self._taken += length
        self._peak = max(self._peak, self._taken)
        return fetch

    def _touch(self, part: Part) -> None:
        """A flight that began ahead has a reader now, or has ended."""
        if part in self._unread:
            self._unread.discard(part)
            self._ahead_bytes -= part[2]

    def _make_room(self, length: int, *, ahead_too: bool) -> bool:
        """Evict until `length` bytes fit; return whether they do. What is larger than the limit fits when nothing else is held."""
        while self._taken + length > self._limit:
            if self._read:
                self._evict(self._read, next(iter(self._read)))
            elif ahead_too and self._ahead:
                self._evict(self._ahead, next(iter(self._ahead)))
            else:
                return self._taken == 0
        return True

    def _evict(self, held: OrderedDict[Part, memoryview], part: Part) -> None:
        del held[part]
        self._taken -= part[2]
        if held is self._ahead:
            self._ahead_bytes -= part[2]
            self._wasted += part[2]
