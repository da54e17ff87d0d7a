"""Buffers of blocks that left memory: which are kept, and which are filled again."""

import pytest

from optfs.reading.spares import SPARES, Spares

LENGTH = 4096


def test_a_buffer_that_nobody_views_is_given_again() -> None:
    spares, buffer = Spares(LENGTH), bytearray(LENGTH)
    assert spares.take(0) is None
    spares.keep(buffer, LENGTH)
    assert spares.size == LENGTH
    assert spares.take(0) is buffer
    assert (spares.size, spares.take(0)) == (0, None)


@pytest.mark.parametrize(("buffer", "room"), [(bytearray(LENGTH - 1), LENGTH), (bytes(LENGTH), LENGTH), (bytearray(LENGTH), LENGTH - 1)])
def test_what_is_of_another_length_or_kind_or_finds_no_room_is_let_go(buffer: object, room: int) -> None:
    spares = Spares(LENGTH)
    spares.keep(buffer, room)
    assert (spares.size, spares.take(0)) == (0, None)


def test_only_so_many_are_kept() -> None:
    spares = Spares(LENGTH)
    for _ in range(2 * SPARES):
        spares.keep(bytearray(LENGTH), 1 << 30)
    assert spares.size == SPARES * LENGTH


def test_what_was_lent_is_given_again_once_it_is_back_without_any_room() -> None:
    """It takes that of the block which it is wanted for."""
    spares, buffer = Spares(LENGTH), bytearray(LENGTH)
    view = memoryview(buffer)
    spares.keep(buffer, 0)
    assert spares.take(0) is None
    assert spares.take(LENGTH) is None
    spares.settle(LENGTH)
    assert spares.size == 0
    view.release()
    assert spares.take(0) is buffer


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(("room", "kept"), [(0, 0), (LENGTH - 1, 0), (2 * LENGTH, 2), (3 * LENGTH - 1, 2), (9 * LENGTH, 3)])
def test_what_is_back_is_kept_as_far_as_there_is_room(room: int, kept: int, wanted: bool) -> None:
    """And let go beyond: nobody counts what is lent."""
    spares = Spares(LENGTH)
    buffers = [bytearray(LENGTH) for _ in range(3)]
    views = [memoryview(buffer) for buffer in buffers]
    for buffer in buffers:
        spares.keep(buffer, 0)
    for view in views:
        view.release()
    if wanted:
        assert spares.take(room) in buffers
        kept = min(kept, 2)
    else:
        spares.settle(room)
    assert spares.size == kept * LENGTH
    assert len(list(iter(lambda: spares.take(0), None))) == kept


def test_only_so_many_are_kept_of_what_is_back() -> None:
    spares = Spares(LENGTH)
    for _ in range(SPARES - 1):
        spares.keep(bytearray(LENGTH), 1 << 30)
    buffers = [bytearray(LENGTH) for _ in range(3)]
    views = [memoryview(buffer) for buffer in buffers]
    for buffer in buffers:
        spares.keep(buffer, 0)
    for view in views:
        view.release()
    spares.settle(1 << 30)
    assert spares.size == SPARES * LENGTH
