"""How many requests ahead of readers a service is sent at once, by how long readers wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.reading.pace import Pace

MOST = 34
TIMEOUT = 30.0
LONG = 3.75


@pytest.mark.parametrize(("timeout", "seconds"), [(TIMEOUT, LONG), (4.0, 0.5), (1.0, 0.5), (600.0, 75.0)])
def test_a_long_wait_is_an_eighth_of_the_timeout(timeout: float, seconds: float) -> None:
    assert Pace(MOST, timeout).long == seconds


def test_a_long_wait_halves_what_runs_once_for_all_who_wait() -> None:
    pace = Pace(MOST, TIMEOUT)
    assert pace.allowed == MOST
    for reader in range(8):
        pace.waited_long(100.0 + reader / 10, ahead=32, demanded=1)
    assert pace.allowed == 16
    pace.waited_long(100.0 + LONG, ahead=20, demanded=1)
    assert pace.allowed == 8
    pace.waited_long(200.0, ahead=3, demanded=1)
    assert pace.allowed == 1
    pace.waited_long(300.0, ahead=1, demanded=1)
    assert pace.allowed == 1, "one there always may be"


@pytest.mark.parametrize(("ahead", "demanded", "allowed"), [(0, 0, MOST), (0, 36, MOST), (8, 28, MOST), (18, 18, 9), (32, 4, 16)])
def test_readers_that_hold_up_one_another_are_no_reason(ahead: int, demanded: int, allowed: int) -> None:
    """Of 200 readers each waits for the others; with less ahead of them they only need more memory at once."""
    pace = Pace(MOST, TIMEOUT)
    pace.waited_long(100.0, ahead, demanded)
    assert pace.allowed == allowed


def test_what_lands_raises_the_limit_once_nobody_waits_long() -> None:
    """By one for as many as are allowed: those that came at once on a narrow link land at once, too."""
    pace = Pace(MOST, TIMEOUT)
    pace.waited_long(100.0, ahead=2, demanded=1)
    pace.landed(101.0)
    assert pace.allowed == 1
    found = []
    for _ in range(5):
        pace.landed(100.0 + LONG)
        found.append(pace.allowed)
    assert found == [2, 2, 2, 3, 3]
    for _ in range(600):  # in a second or two, where nothing holds them up
        pace.landed(200.0)
    assert pace.allowed == MOST


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.integers(0, 50), st.integers(0, 50)), max_size=50))
def test_the_limit_stays_between_one_and_the_most(events: list[tuple[bool, float, int, int]]) -> None:
    pace = Pace(MOST, TIMEOUT)
    now = 0.0
    for landed, passed, ahead, demanded in events:
        now += passed
        if landed:
            pace.landed(now)
        else:
            pace.waited_long(now, ahead, demanded)
        assert 1 <= pace.allowed <= MOST
