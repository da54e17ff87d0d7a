"""What may be on its way ahead of readers, by the rate that was seen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.reading.pace import ENOUGH, MEMORY, Pace
from optfs.values import MiB

REACH = 7.5
LEAST = 4 * MiB


def steady(pace: Pace, rate: float, start: float, seconds: float) -> float:
    """Let bytes come at a rate while requests are under way; return the time after it."""
    pace.began(start)
    for tenth in range(round(seconds * 10)):
        pace.came(round(rate / 10))
        pace.allowed(start + (tenth + 1) / 10)
    pace.ended(start + seconds)
    return start + seconds


def test_nothing_is_held_back_before_the_rate_is_known() -> None:
    """The first answer takes a round trip, in which no byte comes; its first bytes tell."""
    pace = Pace(REACH, LEAST)
    assert pace.allowed(100.0) == math.inf
    pace.began(100.0)
    assert pace.allowed(100.0) == math.inf
    assert pace.allowed(100.0 + ENOUGH * 0.5) == math.inf
    pace.came(10 * MiB)
    assert pace.allowed(100.0 + ENOUGH) == pytest.approx(REACH * 10 * MiB / ENOUGH, rel=0.2)


def test_who_stays_silent_is_asked_for_little() -> None:
    pace = Pace(REACH, LEAST)
    pace.began(100.0)
    assert pace.allowed(100.0 + ENOUGH * 1.01) == LEAST


@pytest.mark.parametrize("rate", [1e6, 20e6, 900e6])
def test_as_much_is_allowed_as_comes_within_reach(rate: float) -> None:
    pace = Pace(REACH, LEAST)
    now = steady(pace, rate, 0.0, 2.0)
    assert pace.allowed(now) == pytest.approx(max(LEAST, REACH * rate), rel=0.1)


def test_idle_time_says_nothing_of_the_rate() -> None:
    """A reader that comes back after an hour finds what it left."""
    pace = Pace(REACH, LEAST)
    now = steady(pace, 50e6, 0.0, 2.0)
    before = pace.allowed(now)
    assert pace.allowed(now + 3600) == before
    pace.began(now + 3600)
    assert pace.allowed(now + 3600) == before


def test_a_link_that_becomes_slower_is_noticed_within_seconds() -> None:
    pace = Pace(REACH, LEAST)
    now = steady(pace, 100e6, 0.0, 10.0)
    now = steady(pace, 1e6, now, 5 * MEMORY)
    assert pace.allowed(now) < REACH * 3e6
    now = steady(pace, 100e6, now, MEMORY)
    assert pace.allowed(now) > REACH * 50e6


def test_the_least_is_allowed_in_silence() -> None:
    pace = Pace(REACH, LEAST)
    pace.began(0.0)
    assert pace.allowed(1e6) == LEAST


@given(st.lists(st.tuples(st.sampled_from(["began", "ended", "came", "allowed"]), st.floats(0, 1e5), st.integers(0, 10**12)), max_size=50))
def test_whatever_happens_it_is_a_number_of_bytes(events: list[tuple[str, float, int]]) -> None:
    """Clocks may stand still or leap."""
    pace = Pace(REACH, LEAST)
    now = 0.0
    flying = 0
    for event, passed, count in events:
        now += passed
        if event == "began":
            pace.began(now)
            flying += 1
        elif event == "ended" and flying:
            pace.ended(now)
            flying -= 1
        elif event == "came" and flying:
            pace.came(count)
        assert pace.allowed(now) >= LEAST
