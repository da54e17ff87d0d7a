"""What may be on its way ahead of readers, by how long they wait."""

import math

from hypothesis import given
from hypothesis import strategies as st

from optfs.reading.pace import Pace
from optfs.values import MiB

SLOW = 3.75
BLOCK = 4 * MiB


def test_nothing_is_held_back_while_nobody_waits_long() -> None:
    """However many are on their way: the service's latency, or its connections, may be what takes time."""
    pace = Pace(SLOW, BLOCK)
    for at in range(100):
        pace.waited(SLOW * 0.99, float(at), 36 * BLOCK)
        pace.landed(BLOCK, float(at))
    assert pace.allowed == math.inf


def test_a_long_wait_halves_what_is_on_its_way_once_for_all_who_wait() -> None:
    pace = Pace(SLOW, BLOCK)
    for reader in range(8):
        pace.waited(8.0, 100.0 + reader / 10, 32 * BLOCK)
    assert pace.allowed == 16 * BLOCK
    pace.waited(4.0, 100.0 + SLOW, 20 * BLOCK)
    assert pace.allowed == 8 * BLOCK
    pace.waited(4.0, 200.0, 2 * BLOCK)
    assert pace.allowed == BLOCK, "one there always may be"


def test_readers_that_hold_up_one_another_are_no_reason() -> None:
    """Of 200 readers each waits for the others; with less ahead of them they only need more memory at once."""
    pace = Pace(SLOW, BLOCK)
    pace.waited(8.0, 100.0, 0)
    assert pace.allowed == math.inf


def test_what_lands_raises_the_limit_once_nobody_waits_long() -> None:
    """By a block for as much as is allowed: those that came at once on a narrow link land at once, too."""
    pace = Pace(SLOW, BLOCK)
    pace.waited(8.0, 100.0, 2 * BLOCK)
    pace.landed(BLOCK, 101.0)
    assert pace.allowed == BLOCK
    pace.landed(BLOCK, 100.0 + SLOW)
    assert pace.allowed == 2 * BLOCK
    pace.landed(BLOCK, 100.0 + SLOW)
    pace.landed(BLOCK, 100.0 + SLOW)
    assert 2.8 * BLOCK < pace.allowed < 3 * BLOCK
    for _ in range(1000):  # in a second or two, where nothing holds them up
        pace.landed(BLOCK, 200.0)
    assert pace.allowed > 36 * BLOCK


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**12)), max_size=50))
def test_one_block_is_always_allowed(events: list[tuple[bool, float, float, int]]) -> None:
    pace = Pace(SLOW, BLOCK)
    now = 0.0
    for landed, passed, waited, count in events:
        now += passed
        if landed:
            pace.landed(count, now)
        else:
            pace.waited(waited, now, count)
        assert pace.allowed >= BLOCK
