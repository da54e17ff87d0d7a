"""How much room must be made."""

import pytest

from optfs.cache.room import charge, overhead, to_evict
from optfs.units import FreeFloor


@pytest.mark.parametrize(
    ("used", "new", "free", "expected"),
    [
        (0, 10, 1000, 0),
        (90, 10, 1000, 0),  # exactly full
        (91, 10, 1000, 1),
        (150, 0, 1000, 50),  # a limit that was lowered
        (50, 10, 110, 0),  # exactly at the floor
        (50, 10, 105, 5),
        (50, 0, 99, 1),  # others filled the disk
        (95, 10, 90, 20),  # the floor asks for more than the limit
    ],
)
def test_room_is_made_for_the_limit_and_for_the_floor(used: int, new: int, free: int, expected: int) -> None:
    """What must go is the larger of what the limit and what the floor ask for."""
    assert to_evict(limit=100, used=used, new=new, free=free, floor=100) == expected


def test_a_floor_is_the_larger_of_bytes_and_fraction() -> None:
    """5 % of a small disk may be less than a fixed floor."""
    assert FreeFloor(size=100, fraction=0.05).of(1000) == 100
    assert FreeFloor(size=100, fraction=0.05).of(10_000) == 500


def test_a_file_is_charged_at_least_what_it_allocates() -> None:
    """The last unit of a file counts whole."""
    assert charge(1) > 4096
    assert charge(4097) > 8192
    assert charge(4096) < 8192


def test_overhead_grows_with_the_index() -> None:
    """The index, its journal and new rows count."""
    assert overhead(1 << 20, 0) >= 2 << 20
    assert overhead(0, 100) - overhead(0, 0) >= 100 * 500
