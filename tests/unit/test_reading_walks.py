"""What open files fetch of others that a walk will read, over a store in memory."""

from collections.abc import Sequence

import pytest

from optfs.reading.blocks import Refusal
from optfs.reading.files import Files
from optfs.reading.readahead import BLOCK, PIECE
from optfs.values import KiB, MiB, ObjectInfo
from tests.support.reading import FakeStore, info, reading, until

LARGE = 6 * BLOCK + 3 * PIECE + 1000
END = (LARGE - 1000 - PIECE, PIECE + 1000)
"""The last 64 KiB lie in the last two pieces."""
FOOTER = 8 * KiB
TREE = [info(f"date=1/part-{number:02}", LARGE) for number in range(40)]


def read(files: Files, tree: Sequence[ObjectInfo], number: int, *ranges: tuple[int, int]) -> None:
    """Open a file of a tree, read ranges of it, and close it."""
    file = files.open(tree[number], lambda count: tree[number + 1 : number + 1 + count])
    for offset, length in ranges:
        file.read(offset, length)
    file.close()


def idle(files: Files) -> bool:
    """Return whether nothing is on its way."""
    return not files.blocks._flights


def test_a_walk_over_footers_fetches_footers_alone() -> None:
    """A schema is read of each file of a dataset; first blocks of 4 MiB were fetched for nothing, and footers took a round trip each."""
    store = FakeStore()
    with reading(store) as files:
        for number in range(30):
            read(files, TREE, number, (LARGE - FOOTER, FOOTER))
            until(lambda: idle(files))
    assert {(start, length) for _, start, length in store.requests} == {END}
    keys = [key for key, _, _ in store.requests]
    assert len(keys) == len(set(keys)), "each once"
    assert len(keys) >= 30


def test_a_walk_that_reads_little_of_first_blocks_fetches_none() -> None:
    """One column lies there, of ten. Where most of it was read, it is fetched ahead."""
    for length, ahead in ((BLOCK // 8, False), (3 * BLOCK // 4, True)):
        store = FakeStore()
        with reading(store) as files:
            for number in range(8):
                read(
                    files, TREE, number, (LARGE - FOOTER, FOOTER), *((at, MiB // 2) for at in range(MiB // 2, MiB // 2 + length, MiB // 2))
                )
                until(lambda: idle(files))
        first = {key for key, start, size in store.requests if (start, size) == (0, BLOCK)}
        assert (TREE[6].key in first) is ahead


def test_a_walk_that_begins_at_the_start_fetches_first_blocks() -> None:
    store = FakeStore()
    with reading(store) as files:
        for number in range(4):
            read(files, TREE, number, (0, 64 * KiB))
            until(lambda: idle(files))
    ahead = {(start, length) for key, start, length in store.requests if key > TREE[3].key}
    assert ahead == {(0, BLOCK)}


def test_where_blocks_are_small_each_part_fetched_ahead_is_one_that_readers_look_for() -> None:
    """The end of a file that is a little longer than a block begins in that block."""
    store = FakeStore()
    tree = [info(f"date=1/part-{number:02}", (number % 3 + 1) * PIECE + 1000) for number in range(40)]
    with reading(store, memory=16 * PIECE) as files:
        assert files.block == PIECE
        for number in range(12):
            read(files, tree, number, (tree[number].size - 1000, 1000))
            until(lambda: idle(files))
    fetched = [(key, at) for key, start, length in store.requests for at in range(start // PIECE, -(-(start + length) // PIECE))]
    assert len(fetched) == len(set(fetched)), "a piece twice"
    assert len(store.requests) > 12, "nothing ahead"


def test_files_for_which_there_was_no_room_are_fetched_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those behind them, in order."""
    store = FakeStore()
    with reading(store) as files:
        real = files.fetcher.ahead
        monkeypatch.setattr(files.fetcher, "ahead", lambda _info, _parts: Refusal.NO_ROOM)
        for number in range(3):
            read(files, TREE, number, (LARGE - FOOTER, FOOTER))
        assert len(store.requests) == 3
        monkeypatch.setattr(files.fetcher, "ahead", real)
        read(files, TREE, 3, (LARGE - FOOTER, FOOTER))
        until(lambda: idle(files))
    assert [key for key, _, _ in store.requests][:6] == [file.key for file in TREE[:6]]
