"""Which dates to list ahead: policy without I/O, clock or thread.

A walk over dates (`find`, a glob over `date=*`, a dataset's discovery) goes through them in order, either way. After two dates in order
a window opens and doubles with each further one, up to `MAX_WINDOW` listings ahead: a year's walk then costs one listing a date, many at
a time, and a look into a few dates wastes at most a few. Readers in parallel come slightly out of order; what lies within half of the
window counts as in order. Anything else starts over.
"""

from collections.abc import Sequence

MAX_WINDOW = 32
"""Listings ahead: more than the threads that fetch them, so that none idles, and few enough to waste when a walk stops."""

MAX_OBJECTS_AHEAD = 200_000
"""Bound on the objects listed ahead (about 100 MiB)."""


class DateWalk:
    """Follows the accesses to one type's dates. Not thread-safe: its owner guards it.

    Invariants: `_step` is -1, 0 (no direction yet) or 1; all dates up to `_asked` (in that direction) have been asked for.
    """

    __slots__ = ("_asked", "_at", "_step", "_window")

    def __init__(self) -> None:
        self._at: str | None = None
        self._asked: str | None = None
        self._step = 0
        self._window = 0

    def access(self, name: str, dates: Sequence[str], objects_a_date: int) -> list[str]:
        """Tell that `name` is being looked into, and return the dates to list now, in the order in which they will be wanted.

        Args:
            name: a date folder.
            dates: all of the type's date folders, sorted.
            objects_a_date: how many objects a date has, about; bounds the window.

        """
        if name == self._at:
            return []
        places = {date: place for place, date in enumerate(dates)}
        here = places.get(name)
        if here is None:
            return []
        before = places.get(self._at) if self._at is not None else None
        distance = 0 if before is None else here - before
        if before is None or abs(distance) > max(1, self._window // 2):
            self._restart(name)
            return []
        step = 1 if distance > 0 else -1
        if self._step and step != self._step:
            if self._window <= 2:  # turned round, rather than readers out of order
                self._restart(name)
            return []
        self._at = name
        self._step = step
        limit = max(1, min(MAX_WINDOW, MAX_OBJECTS_AHEAD // max(1, objects_a_date)))
        self._window = min(limit, max(2, self._window * 2))
        asked = places.get(self._asked, here) if self._asked is not None else here
        start = max(here, asked) + 1 if step > 0 else min(here, asked) - 1
        end = here + step * (self._window + 1)
        ahead = [dates[place] for place in range(start, end, step) if 0 <= place < len(dates)]
        if ahead:
            self._asked = ahead[-1]
        return ahead

    def _restart(self, name: str) -> None:
        self._at = name
        self._asked = None
        self._step = 0
        self._window = 0
