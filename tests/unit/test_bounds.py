"""What a mount remembers of the past, and fetches for the future, has bounds: it may run for months, over any number of files."""

import pytest

from optfs.bridge import kernel_cache
from optfs.bridge.kernel_cache import KernelCache
from optfs.cache import handover
from optfs.cache.handover import Handover
from optfs.errors import ServiceUnavailable
from optfs.reading import siblings
from optfs.reading.blocks import MOST_FAILURES, Blocks
from optfs.reading.fetches import Fetch, Part
from optfs.reading.readahead import Shares
from optfs.reading.siblings import Walks
from optfs.tree.prefetch import MAX_OBJECTS_AHEAD, DateWalk
from optfs.values import MiB
from tests.support.reading import HandClock, info


@pytest.mark.parametrize("a_date", [7_000, 50_000, MAX_OBJECTS_AHEAD])
def test_the_objects_listed_ahead_of_a_walk_are_bounded(a_date: int) -> None:
    """All together, not only those that one step asks for."""
    dates = [f"date={number:04d}" for number in range(200)]
    walk = DateWalk()
    furthest = most = 0
    for place, date in enumerate(dates):
        furthest = max([furthest, *(dates.index(ahead) for ahead in walk.access(date, dates, a_date))])
        most = max(most, (furthest - place) * a_date)
    assert MAX_OBJECTS_AHEAD - a_date < most <= MAX_OBJECTS_AHEAD


def test_a_stream_counts_until_it_has_been_idle() -> None:
    """And no longer: a program that keeps files open without reading them takes nothing from those that read."""
    shares: Shares[str] = Shares(100, 1)
    shares.cap("idle", 0.0)
    assert shares.cap("reads", Shares.IDLE - 0.01) == 50
    assert shares.cap("reads", Shares.IDLE) == 100


def test_the_walks_that_are_followed_are_bounded() -> None:
    """Those that were continued last; a file that continues an older one begins a new one."""
    trees = [[info(f"v1/date={date}/part-{at}", MiB) for at in range(4)] for date in range(siblings.MOST_WALKS + 1)]
    walks = Walks(4 * MiB, 1024 * MiB)
    for tree in trees:
        noted = walks.note(tree[0])
        assert noted is not None
        noted[0].learn(0, tree[1:])
    places = [noted[1] for tree in reversed(trees) if (noted := walks.note(tree[1])) is not None]
    assert places == [1] * siblings.MOST_WALKS + [0]


def test_the_files_that_a_walk_remembers_are_bounded() -> None:
    """Those `KEPT` behind its furthest one, and those that it learned of before; reading one of them again is no new walk."""
    tree = [info(f"v1/part-{at:04}", MiB) for at in range(500)]
    walks = Walks(4 * MiB, 1024 * MiB)
    for at in range(400):
        noted = walks.note(tree[at])
        assert noted is not None
        walk, position, count = noted
        walk.learn(position, tree[at + 1 : at + 1 + count])
        assert position == at
        assert max(len(walk.files), len(walk.positions)) <= siblings.KEPT + 1 + 2 * siblings.WIDEST
        assert len(walk.read) <= siblings.KEPT + 1
    assert walks.note(tree[399 - siblings.KEPT]) is None
    assert walks.note(tree[399 - siblings.KEPT - 1]) is not None


def test_the_versions_in_the_page_cache_that_are_remembered_are_bounded() -> None:
    """The one used longest ago is forgotten, which costs its pages."""
    kernel = KernelCache(1.0, HandClock())

    def use(number: int) -> bool:
        mode = kernel.opened(f"/{number}", "1", 10, number)
        kernel.begin_read(number, 1)
        kernel.end_read()
        kernel.closed(number)
        return mode.keep_cache

    for number in range(kernel_cache.MAX_PAGES):
        use(number)
    assert use(0)
    use(kernel_cache.MAX_PAGES)
    assert use(0)
    assert not use(1)


def test_the_failures_that_are_held_are_bounded() -> None:
    """The newest; of an older one the reader hears by asking again."""
    clock = HandClock()
    blocks = Blocks(64 * MiB, 4 * MiB, clock)
    parts: list[Part] = [(("aws", f"part-{at}", "1"), 0, MiB) for at in range(MOST_FAILURES + 1)]
    for part in parts:
        blocks.overdue(Fetch(info(part[0][1], MiB), (part,), demanded=True), ServiceUnavailable("down"))
    blocks.check(parts[:1])
    for part in parts[1:]:
        with pytest.raises(ServiceUnavailable):
            blocks.check((part,))


def test_the_uses_that_are_remembered_as_noted_are_bounded() -> None:
    """A use may be noted twice in a minute, but nothing grows with the number of blocks."""
    queue = Handover(100)
    noted = 0
    for number in range(handover._TOUCHES_REMEMBERED):
        queue.note_use(str(number), 0.0, 0.0)
        if number % 1000 == 999:
            noted += len(queue.take(more_work=True).uses)
    queue.note_use("0", 0.0, 0.0)
    assert queue.take(more_work=True).uses == []
    queue.note_use("one more", 0.0, 0.0)
    queue.note_use("0", 0.0, 0.0)
    assert [name for name, _ in queue.take(more_work=True).uses] == ["one more", "0"]
    assert noted == handover._TOUCHES_REMEMBERED
