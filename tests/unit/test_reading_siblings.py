"""The policy that fetches files ahead of a walk."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from optfs.reading.readahead import PIECE
from optfs.reading.siblings import KEPT, MOST_WALKS, WIDEST, Walk, Walks, start_of_end
from optfs.values import KiB, MiB, ObjectInfo
from tests.support.reading import info

BLOCK = 4 * MiB


class Reader:
    """Reads files of a tree, and fetches ahead what the policy wants."""

    def __init__(self, tree: list[ObjectInfo], budget: int = 1024 * MiB) -> None:
        self.tree = tree
        self.walks = Walks(BLOCK, budget)
        self.read_files: set[int] = set()
        self.fetched: list[ObjectInfo] = []

    def read(self, at: int) -> list[ObjectInfo]:
        """Read a file; return what is fetched for that."""
        self.read_files.add(at)
        noted = self.walks.note(self.tree[at])
        if noted is None:
            return []
        walk, position, count = noted
        walk.learn(position, self.tree[at + 1 : at + 1 + count] if count else [])
        found = [wanted.info for wanted in self.walks.wanted(walk)]
        self.fetched += found
        return found

    def unused(self) -> int:
        """Return how many files were fetched and not read."""
        read = {self.tree[at].key for at in self.read_files}
        return len({file.key for file in self.fetched} - read)


def folders(count: int, files: int, size: int = MiB) -> list[ObjectInfo]:
    """Return the files of dates in walk order."""
    return [info(f"v1/date={date:03}/part-{file:04}", size) for date in range(count) for file in range(files)]


def partitions(dates: int, experiments: int) -> list[ObjectInfo]:
    """Return one file in each experiment of each date."""
    return [info(f"v1/date={date:03}/experiment={at:03}/part-0", MiB) for date in range(dates) for at in range(experiments)]


def test_one_file_is_no_walk_and_two_are() -> None:
    """From the second file on the next two are fetched, then twice as many as before."""
    reader = Reader(folders(1, 100))
    assert [len(reader.read(at)) for at in range(3)] == [0, 2, 3]
    assert [file.key for file in reader.fetched] == [file.key for file in reader.tree[2:7]]


@pytest.mark.parametrize("count", [100, 1000])
def test_a_walk_of_one_folder_among_others_wastes_less_than_a_tenth(count: int) -> None:
    """`tar` of one folder stops at its end, though other folders follow; nothing is fetched twice."""
    reader = Reader(folders(3, count))
    for at in range(count):
        reader.read(at)
    assert len({file.key for file in reader.fetched}) == len(reader.fetched) >= count - 5
    assert reader.unused() <= count // 10


def test_a_walk_of_one_date_of_single_files_wastes_less_than_a_tenth() -> None:
    """Crossing experiments says nothing of crossing dates."""
    reader = Reader(partitions(5, 41))
    for at in range(41):
        reader.read(at)
    assert reader.unused() <= 4
    assert len(reader.fetched) >= 35


def test_behind_the_end_of_a_long_folder_a_sixteenth_of_the_walk_is_fetched() -> None:
    """Also where no such end was crossed yet: the next folder may follow, and if not, little was fetched for nothing."""
    reader = Reader(folders(2, 320))
    for at in range(320):
        reader.read(at)
    assert reader.fetched == reader.tree[2 : 320 + 320 // 16]


def test_a_walk_over_many_dates_is_fetched_ahead_across_their_ends() -> None:
    """Once enough dates were walked to their ends, the window is as wide there as elsewhere."""
    tree = partitions(20, 10)
    reader = Reader(tree)
    for at in range(150):
        reader.read(at)
    assert tree[149 + WIDEST - 1] in reader.fetched


def test_readers_side_by_side_share_a_walk() -> None:
    """Four threads read files out of order by a few places."""
    reader = Reader(folders(1, 200))
    order = [at + shift for at in range(0, 200, 4) for shift in (2, 0, 3, 1)]
    for at in order:
        reader.read(at)
    assert len(reader.fetched) >= 180


def test_walks_at_the_same_time_do_not_end_one_another() -> None:
    """Several folders read by several threads are fetched ahead each."""
    reader = Reader(folders(4, 100))
    for at in range(100):
        for folder in range(4):
            reader.read(folder * 100 + at)
    assert len(reader.fetched) >= 4 * 90


def test_a_broken_order_stops_fetching_ahead() -> None:
    """A jump beyond a few files ends the walk; the next file alone is none."""
    reader = Reader(folders(1, 400))
    for at in range(20):
        reader.read(at)
    assert reader.read(19 + 30) == []
    assert reader.read(300) == []


def test_reading_a_file_again_fetches_nothing() -> None:
    """A second reader of a file that was read says nothing of the order."""
    reader = Reader(folders(1, 100))
    for at in range(10):
        reader.read(at)
    assert reader.read(5) == []
    assert reader.read(9) == []
    assert reader.read(10) != []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("abcdef", "bcdef"),
        ("abcdef", "abdef"),
        ("abcdef", "af"),
        ("abcdef", "abxcdef"),
        ("abcdef", "xbcye"),
        ("abcdef", "fedcba"),
        ("abcdef", ""),
    ],
)
def test_files_ahead_that_moved_are_known_at_their_new_places(before: str, after: str) -> None:
    """As others among them were deleted, added or replaced."""
    walk = Walk({}, {}, set())
    walk.learn(0, [info(name, MiB) for name in before])
    walk.learn(0, [info(name, MiB) for name in after])
    assert {name: walk.positions["aws", name] for name in after} == {name: at for at, name in enumerate(after, 1)}
    assert {walk.files[at].key: at for at in walk.positions.values()} == {name: at for (_, name), at in walk.positions.items()}


def test_random_opens_fetch_nothing() -> None:
    """Files far from one another are no walk."""
    reader = Reader(folders(1, 1000))
    fetched: Iterable[ObjectInfo] = [file for at in range(40) for file in reader.read(at * 377 % 1000)]
    assert not list(fetched)


def test_files_ahead_hold_no_more_bytes_than_the_budget() -> None:
    """Of large files only first blocks count."""
    reader = Reader(folders(1, 100, size=100 * MiB), budget=5 * BLOCK)
    for at in range(30):
        reader.read(at)
        assert len({file.key for file in reader.fetched} - {reader.tree[done].key for done in reader.read_files}) <= 5
    assert len(reader.fetched) >= 25


def test_files_that_could_not_be_fetched_are_wanted_again() -> None:
    """What had no room is asked for at the next file."""
    reader = Reader(folders(1, 100))
    for at in range(5):
        reader.read(at)
    noted = reader.walks.note(reader.tree[5])
    assert noted is not None
    walk = noted[0]
    first = reader.walks.wanted(walk)
    reader.walks.give_back(walk, first[0][0])
    assert reader.walks.wanted(walk) == first


def test_a_long_walk_forgets_the_files_far_behind() -> None:
    """What a walk takes of memory doesn't grow with the number of files read."""
    reader = Reader(folders(1, 20 * KEPT))
    for at in range(10 * KEPT):
        reader.read(at)
    (walk,) = reader.walks._walks
    assert max(len(walk.files), len(walk.positions)) <= KEPT + 3 * WIDEST
    assert len(walk.read) <= KEPT + 1


@pytest.mark.parametrize(("others", "position"), [(MOST_WALKS - 1, 1), (MOST_WALKS, 0)])
def test_the_walk_that_was_left_first_is_forgotten_once_there_are_too_many(others: int, position: int) -> None:
    """Its next file begins a walk of its own; programs that read one file here and there leave nothing behind for good."""
    reader = Reader(folders(1, 100 * (others + 1)))
    for at in range(others + 1):
        reader.read(100 * at)
    noted = reader.walks.note(reader.tree[1])
    assert noted is not None
    assert noted[1] == position


def test_what_is_learned_late_of_files_far_behind_is_not_remembered() -> None:
    """Other threads read on while the listing is asked what follows a file."""
    reader = Reader(folders(1, 20 * KEPT))
    for at in range(5 * KEPT):
        reader.read(at)
    (walk,) = reader.walks._walks
    known = set(walk.files)
    walk.learn(10, reader.tree[11 : 5 * KEPT])
    assert set(walk.files) == known
    assert set(walk.positions.values()) == known


LARGE = 10 * BLOCK + 3 * PIECE + 1000
"""The last 64 KiB of a file of this size lie in its last two pieces."""
LAST = (10 * BLOCK + 2 * PIECE, PIECE + 1000)


def ranges(reader: Reader, at: int, offset: int) -> set[tuple[int, int]]:
    """Read a file first at `offset`; return which ranges are fetched of others for that."""
    noted = reader.walks.note(reader.tree[at], offset)
    assert noted is not None
    walk, position, count = noted
    walk.learn(position, reader.tree[at + 1 : at + 1 + count] if count else [])
    return {(wanted.start, wanted.length) for wanted in reader.walks.wanted(walk)}


@pytest.mark.parametrize(
    ("offset", "wanted"),
    [(0, {(0, BLOCK)}), (LARGE - 8, {LAST}), (LAST[0], {LAST}), (LAST[0] - 1, set()), (PIECE, set())],
    ids=["start", "last bytes", "end", "before the end", "middle"],
)
def test_of_large_files_that_is_fetched_which_was_read_first_of_the_last_one(offset: int, wanted: set[tuple[int, int]]) -> None:
    """Programs that begin with a footer need no first block; those that begin in the middle are nobody's to foresee."""
    reader = Reader(folders(1, 100, LARGE))
    found = [ranges(reader, at, offset) for at in range(6)]
    assert found == [set(), *[wanted] * 5]


def test_a_walk_that_changes_its_ways_is_followed() -> None:
    reader = Reader(folders(1, 100, LARGE))
    found = [ranges(reader, at, offset) for at, offset in enumerate((0, 0, PIECE, LARGE - 8, 0))]
    assert found == [set(), {(0, BLOCK)}, set(), {LAST}, {(0, BLOCK)}]


@pytest.mark.parametrize("offset", [0, MiB - 8, 300_000])
def test_small_files_are_fetched_whole_whatever_was_read_of_the_last_one(offset: int) -> None:
    reader = Reader(folders(1, 100))
    assert [ranges(reader, at, offset) for at in range(3)] == [set(), {(0, MiB)}, {(0, MiB)}]


def test_after_the_footer_the_first_block_is_fetched_where_most_of_it_was_read_of_the_last_file() -> None:
    """All columns are read; the end comes first, as it is read first."""
    reader = Reader(folders(1, 100, LARGE))
    assert [ranges(reader, at, LARGE - 8) for at in range(2)] == [set(), {LAST}]
    reader.walks.ended(reader.tree[0], head=True)
    assert ranges(reader, 2, LARGE - 8) == {LAST, (0, BLOCK)}
    (walk,) = reader.walks._walks
    walk.issued = 3
    assert [wanted[2:] for wanted in reader.walks.wanted(walk)][:2] == [LAST, (0, BLOCK)]
    reader.walks.ended(reader.tree[1], head=False)
    assert ranges(reader, 4, LARGE - 8) == {LAST}


@pytest.mark.parametrize("size", [100, 40_000, 64 * KiB + PIECE - 1])
def test_a_small_file_among_large_ones_says_nothing_of_those(size: int) -> None:
    """It is read from its start in any case."""
    tree = folders(1, 30, LARGE)
    for at in range(2, 30, 3):
        tree[at] = replace(tree[at], size=size)
    reader = Reader(tree)
    found = [ranges(reader, at, 0 if at % 3 == 2 else LARGE - 8) for at in range(12)]
    assert set().union(*found) == {LAST, (0, size)}


def test_the_end_of_a_file_that_is_little_larger_than_its_end_begins_behind_its_start() -> None:
    """Else a read from the start would count as one of the end."""
    for size in (1, 64 * KiB, 64 * KiB + PIECE - 1):
        assert start_of_end(size) == 0
    assert start_of_end(64 * KiB + PIECE) == PIECE
    reader = Reader(folders(1, 9, 100))
    assert [ranges(reader, at, 0) for at in range(2)] == [set(), {(0, 100)}]
    assert not reader.walks._walks[0].end
