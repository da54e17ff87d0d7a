"""Which dates are listed ahead."""

import pytest

from optfs.tree.prefetch import MAX_OBJECTS_AHEAD, MAX_WINDOW, DateWalk

DATES = [f"date={number:04d}" for number in range(365)]


def _walk(order: list[int], objects_a_date: int = 40) -> list[list[int]]:
    walk = DateWalk()
    return [[DATES.index(date) for date in walk.access(DATES[place], DATES, objects_a_date)] for place in order]


def test_the_window_opens_after_two_dates_in_order_and_doubles() -> None:
    """Each date is asked for once."""
    ahead = _walk([10, 11, 12, 13])
    assert ahead == [[], [12, 13], [14, 15, 16], [17, 18, 19, 20, 21]]


@pytest.mark.parametrize("order", [list(range(365)), list(range(364, -1, -1))])
def test_a_walk_over_all_asks_for_each_date_once_up_to_the_widest_window(order: list[int]) -> None:
    """Either way; none is asked for twice or after it was passed, and none outside of the dates."""
    ahead = _walk(order)
    flat = [place for places in ahead for place in places]
    assert flat == order[2:]
    furthest = 0
    for position, places in enumerate(ahead):
        furthest = max([furthest, *(order.index(place) for place in places)])
        assert furthest - position <= MAX_WINDOW
    assert max(map(len, ahead)) > MAX_WINDOW // 2


@pytest.mark.parametrize("order", [[5], [5, 5, 5], [5, 100, 7, 200], [5, 8, 11, 14]])
def test_looks_that_are_no_walk_list_nothing_ahead(order: list[int]) -> None:
    """One date, the same date again, dates here and there."""
    assert not any(_walk(order))


def test_a_jump_starts_over() -> None:
    """A walk elsewhere opens a window of its own."""
    ahead = _walk([1, 2, 3, 200, 201])
    assert ahead[3] == []
    assert ahead[4] == [202, 203]


def test_readers_in_parallel_may_come_a_little_out_of_order() -> None:
    """What lies within the window keeps it open, and still nothing is asked for twice."""
    ahead = _walk([0, 1, 2, 3, 5, 4, 6, 8, 7, 9])
    flat = [place for places in ahead for place in places]
    assert len(flat) == len(set(flat))
    assert flat == sorted(flat)
    assert max(flat) >= 9 + MAX_WINDOW // 2


def test_dates_with_many_objects_narrow_the_window() -> None:
    """What is listed ahead is bounded in objects."""
    assert max(map(len, _walk(list(range(50)), MAX_OBJECTS_AHEAD // 3))) <= 3
    assert all(len(places) <= 1 for places in _walk(list(range(50)), MAX_OBJECTS_AHEAD * 2))


def test_a_date_that_is_not_listed_is_ignored() -> None:
    """It may have been deleted meanwhile."""
    walk = DateWalk()
    walk.access(DATES[1], DATES, 1)
    assert walk.access("date=other", DATES, 1) == []
    assert walk.access(DATES[2], DATES, 1) == DATES[3:5]
