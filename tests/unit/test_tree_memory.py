"""What a want of memory does to listings: who waits is told, and nothing stays broken."""

import threading
from collections.abc import Callable

import pytest

from optfs.tree import held
from optfs.values import Deadline
from optfs.workers import Job, Priority
from tests.support.trees import LIMIT, HandPool, MemoryStore, Rig, in_threads, join_all, outage

RECENT = "type=a/date=2026-10-31"


class _Starved:
    """Stands for a name of the module and raises MemoryError at its first use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, first: Callable[[], object] = lambda: None) -> None:
        self._real = getattr(held, name)
        self._first: Callable[[], object] | None = first
        monkeypatch.setattr(held, name, self)

    def __call__(self, *arguments: object, **keywords: object) -> object:
        self._fail()
        return self._real(*arguments, **keywords)

    def after(self, *arguments: object) -> object:
        """Stand for `Deadline.after`."""
        self._fail()
        return self._real.after(*arguments)

    def _fail(self) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            first()
            raise MemoryError


@pytest.mark.parametrize("name", ["Deadline", "_Held"])
def test_a_folder_whose_listing_found_no_memory_is_listed_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether to begin it, or to keep what came. What is counted stays right."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.lookup(RECENT)
    before = rig.catalog.statistics().objects
    _Starved(monkeypatch, name)
    try:
        assert rig.names(RECENT) == ["a"]
    except MemoryError:
        assert name != "_Held"  # the listing was there, though it couldn't be kept
    assert rig.catalog.statistics().objects == before
    store.put(f"{RECENT}/b")
    assert rig.names(RECENT) == ["a", "b"]
    assert rig.catalog.statistics().objects == before + 2


def test_a_listing_ahead_that_finds_no_memory_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs the folder lists it."""
    days = [f"type=a/date=2026-10-{day:02d}" for day in range(10, 20)]
    store = MemoryStore(keys=[f"{day}/x" for day in days])
    pool = HandPool()
    rig = Rig([store], pool=pool)
    for day in days[:3]:
        rig.names(day)
    starved = 0
    for job in pool.jobs:
        with monkeypatch.context() as patch:
            _Starved(patch, "Deadline")
            try:
                job()
            except MemoryError:
                starved += 1
    assert starved >= 4
    assert [rig.names(day) for day in days] == [["x"]] * len(days)


def test_want_of_memory_for_a_listing_is_told_to_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them waits until its deadline."""
    rig = Rig([MemoryStore(keys=[f"{RECENT}/a"])])
    rig.lookup(RECENT)
    begun, joined = threading.Event(), threading.Event()
    wait = held._wait

    def join(done: threading.Event, deadline: Deadline) -> bool:
        joined.set()
        return wait(done, deadline)

    def fail_once_joined() -> None:
        begun.set()
        assert joined.wait(LIMIT)

    monkeypatch.setattr(held, "_wait", join)
    _Starved(monkeypatch, "Deadline", fail_once_joined)

    def read() -> object:
        try:
            return rig.names(RECENT)
        except MemoryError:
            return MemoryError

    leader, results = in_threads(1, read)
    assert begun.wait(LIMIT)
    follower, more = in_threads(1, read)
    join_all(leader + follower)
    assert results + more == [MemoryError, MemoryError]


def test_a_failure_that_finds_no_memory_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one asks again."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.lookup(RECENT)
    store.error = outage()
    _Starved(monkeypatch, "bare")
    with pytest.raises(MemoryError):
        rig.names(RECENT)
    store.error = None
    assert rig.names(RECENT) == ["a"]


def test_a_refresh_that_the_pool_finds_no_memory_for_is_left_to_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the folder would show what was seen before the outage for ever."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.names(RECENT)
    rig.now += 61
    store.error = outage()
    rig.names(RECENT)
    rig.now += 2

    def starve(_job: Job, _priority: Priority) -> bool:
        raise MemoryError

    with monkeypatch.context() as starved:
        starved.setattr(rig.pool, "submit", starve)
        with pytest.raises(MemoryError):
            rig.names(RECENT)
    store.error = None
    store.put(f"{RECENT}/b")
    rig.names(RECENT)
    assert rig.run_jobs() == 1
    assert rig.names(RECENT) == ["a", "b"]
