"""The policy that tells streams from random reads, and how far ahead of a stream is fetched."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.reading.readahead import BLOCK, GROWTH, PIECE, RECENT, REORDER, RUN, SURE, AccessPattern, Shares
from optfs.values import KiB, MiB

SIZE = 1024 * MiB
WIDE = 128 * MiB


def noted(sequence: AccessPattern, reads: list[tuple[int, int]]) -> list[bool]:
    """Take in reads (offset, length) and return what each was taken for."""
    return [sequence.note(offset, offset + length) for offset, length in reads]


def requests(step: int, count: int, origin: int = 0) -> list[tuple[int, int]]:
    """Return reads one after the other."""
    return [(origin + at * step, step) for at in range(count)]


def test_first_read_at_the_beginning_presumes_a_stream_and_fetches_one_block_ahead() -> None:
    """A program that reads from the start most often goes on."""
    sequence = AccessPattern(SIZE)
    assert sequence.note(0, 128 * KiB)
    assert sequence.by_block(0)
    assert sequence.ahead(WIDE) == [(BLOCK, BLOCK)]


def test_first_read_elsewhere_is_random_and_fetches_nothing_ahead() -> None:
    """A footer is read for itself."""
    sequence = AccessPattern(SIZE)
    assert not sequence.note(SIZE - 64 * KiB, SIZE)
    assert not sequence.by_block(SIZE - BLOCK)
    assert sequence.ahead(WIDE) == []


@pytest.mark.parametrize("step", [128 * KiB, MiB])
def test_window_grows_with_what_was_consumed_up_to_the_cap(step: int) -> None:
    """It is eight times the run, so wide after a few requests, and never beyond the cap."""
    sequence = AccessPattern(SIZE)
    for offset, length in requests(step, 64 * MiB // step):
        assert sequence.note(offset, offset + length)
        sequence.ahead(WIDE)
        ahead = sequence.scheduled - sequence.frontier
        assert ahead <= max(BLOCK, min(WIDE, GROWTH * sequence.frontier)) + BLOCK
        assert ahead >= min(WIDE, GROWTH * sequence.frontier) - BLOCK
    assert sequence.scheduled - sequence.frontier >= WIDE - BLOCK


@given(st.integers(0, 2**32), st.sampled_from([128 * KiB, MiB]))
def test_a_stream_is_recognised_though_requests_overtake_one_another(seed: int, step: int) -> None:
    """The threads of libfuse deliver requests up to four places early; all of it is one stream, known to its end."""
    randomness = random.Random(seed)
    reads = requests(step, 60)
    order = sorted(range(len(reads)), key=lambda at: at + randomness.uniform(0, 4))
    sequence = AccessPattern(SIZE)
    results = noted(sequence, [reads[0], *(reads[at] for at in order if at)])
    assert all(results)
    assert sequence.frontier == 60 * step


@given(st.permutations(range(40)), st.sampled_from([9 * MiB, 23 * MiB]))
def test_random_reads_fetch_nothing_ahead(order: list[int], stride: int) -> None:
    """Reads without contiguity never become a stream."""
    sequence = AccessPattern(SIZE)
    results = noted(sequence, [(MiB + at * stride, 128 * KiB) for at in order])
    assert not any(results)
    assert not sequence.streaming


@pytest.mark.parametrize("stride", [256 * KiB, MiB, 5 * MiB, 33 * MiB])
def test_strides_are_random_even_from_the_beginning(stride: int) -> None:
    """A stream presumed at offset 0 ends after a few strides."""
    sequence = AccessPattern(SIZE)
    noted(sequence, [(at * stride, 128 * KiB) for at in range(20)])
    assert not sequence.streaming


@pytest.mark.parametrize("step", [128 * KiB, MiB])
def test_backward_reads_are_random(step: int) -> None:
    """Each read ends where the one before began: that is no stream."""
    sequence = AccessPattern(SIZE)
    assert not any(noted(sequence, requests(step, 40, 100 * MiB)[::-1]))


def test_contiguity_elsewhere_becomes_a_stream_from_there_on() -> None:
    """The rest of the block comes as a run of pieces, blocks after that; what lies before isn't fetched."""
    sequence = AccessPattern(SIZE)
    start = 101 * MiB
    assert noted(sequence, [(start, MiB), (start + MiB, MiB)]) == [False, True]
    assert not sequence.by_block(100 * MiB)
    assert sequence.by_block(104 * MiB)
    assert sequence.ahead(WIDE)[:2] == [(103 * MiB, MiB), (104 * MiB, BLOCK)]


def test_a_stream_survives_reads_elsewhere_and_ends_after_many() -> None:
    """A player that looks at an index goes on; a program that left doesn't keep a window."""
    sequence = AccessPattern(SIZE)
    noted(sequence, requests(MiB, 8))
    assert not sequence.note(900 * MiB, 900 * MiB + 1)
    assert sequence.note(8 * MiB, 9 * MiB)
    noted(sequence, [((300 + 20 * at) * MiB, 10) for at in range(12)])
    assert not sequence.streaming


def test_interleaved_streams_find_back_to_their_own_lengths() -> None:
    """Two readers on one handle, one after the other: neither starts anew at each turn."""
    sequence = AccessPattern(SIZE)
    for at in range(10):
        noted(sequence, [(at * MiB, MiB), ((500 + at) * MiB, MiB)])
    assert sequence.frontier - sequence.origin == 10 * MiB


@pytest.mark.parametrize(("others", "remembered"), [(RECENT - 1, True), (RECENT, False)])
def test_only_the_last_few_runs_are_remembered(others: int, remembered: bool) -> None:
    """However many reads at random a file has, the next one is compared with a few."""
    sequence = AccessPattern(SIZE)
    sequence.note(MiB, 2 * MiB)
    noted(sequence, [((100 + 20 * at) * MiB, 10) for at in range(others)])
    assert sequence.note(2 * MiB, 3 * MiB) == remembered


def test_a_stream_that_begins_in_a_block_is_fetched_ahead_in_runs_of_pieces() -> None:
    """Single pieces would cost a request each, where the window grows by less than a run with each read. Nothing of the block is left out."""
    sequence = AccessPattern(SIZE)
    skipped = PIECE + REORDER
    noted(sequence, [(0, PIECE)])
    runs = []
    for offset, length in requests(16 * KiB, (3 * BLOCK - skipped) // (16 * KiB), skipped):
        sequence.note(offset, offset + length)
        runs += [(start, size) for start, size in sequence.ahead(WIDE) if 2 * BLOCK < start < 3 * BLOCK]
    assert sum(size for _, size in runs) >= 3 * BLOCK - skipped - RUN - 2 * PIECE
    assert all(size >= RUN or start + size == 3 * BLOCK for start, size in runs)


@pytest.mark.parametrize("length", [256 * KiB, 512 * KiB, MiB])
def test_one_read_in_adjacent_requests_is_no_stream(length: int) -> None:
    """The kernel splits a random read of up to a MiB into requests of 128 KiB: nothing is fetched ahead of those."""
    sequence = AccessPattern(SIZE)
    dice = random.Random(length)
    for _ in range(100):
        offset = dice.randrange(1, SIZE // length // 2 - 1) * 2 * length  # never next to another
        noted(sequence, requests(128 * KiB, length // (128 * KiB), offset))
        assert not sequence.ahead(WIDE)


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 2 * MiB)), max_size=60), st.sampled_from([2 * BLOCK, WIDE]))
def test_what_is_fetched_ahead_is_aligned_within_the_file_and_each_once(reads: list[tuple[int, int]], cap: int) -> None:
    """Ranges are blocks, or runs of pieces within one block, and end where the file does."""
    sequence = AccessPattern(SIZE - 5)
    for offset, length in reads:
        sequence.note(min(offset, SIZE - 6), min(offset + length, SIZE - 5))
        before = -1
        for start, size in sequence.ahead(cap):
            assert start % PIECE == 0
            assert 0 < size <= BLOCK - start % BLOCK
            assert start + size <= SIZE - 5
            assert (start + size) % PIECE == 0 or start + size == SIZE - 5
            assert start > before
            before = start
        assert sequence.ahead(cap) == []


def test_streams_share_what_may_be_ahead_and_idle_ones_take_no_share() -> None:
    """The total is divided among active streams, with a floor."""
    shares: Shares[str] = Shares(100, 20)
    assert shares.cap("a", 0.0) == 100
    assert shares.cap("b", 1.0) == 50
    assert [shares.cap(name, 1.0) for name in "cdefgh"][-1] == 20
    assert shares.cap("a", 1.0 + Shares.IDLE) == 100
    shares.cap("b", 1.0 + Shares.IDLE)
    shares.leave("a")
    assert shares.cap("b", 1.0 + Shares.IDLE) == 100


@pytest.mark.parametrize(
    ("origin", "run", "window"), [(0, 2 * MiB, 16), (5 * MiB, 2 * MiB, 2), (5 * MiB, SURE - MiB, 7), (5 * MiB, SURE, 64)]
)
def test_within_a_file_as_much_is_fetched_ahead_as_was_read_until_the_run_is_long(origin: int, run: int, window: int) -> None:
    """It may be one column, behind which others lie that nobody reads."""
    sequence = AccessPattern(SIZE)
    if origin:
        sequence.note(SIZE - 1000, SIZE)  # a footer
    noted(sequence, requests(MiB, run // MiB, origin))
    ahead = sequence.ahead(WIDE)
    end = ahead[-1][0] + ahead[-1][1]
    assert origin + run + window * MiB <= end < origin + run + window * MiB + BLOCK


def test_a_stream_in_the_last_piece_of_a_block_goes_on_with_the_next_block() -> None:
    sequence = AccessPattern(SIZE)
    noted(sequence, [(5 * MiB, MiB), (6 * MiB, 2 * MiB - 1000)])
    assert sequence.ahead(WIDE) == [(8 * MiB, BLOCK)]
