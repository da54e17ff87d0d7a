"""How long listings are believed, who waits for whom, and what is shown while a store fails."""

import logging
import threading
from dataclasses import replace

import pytest

from optfs.errors import Abandoned, AccessDenied, DeadlineExceeded, NotFound, OptfsError, ServiceUnavailable, TokenRefused
from optfs.tree.folders import File
from optfs.tree.held import PATIENCE
from optfs.workers import WorkerPool
from tests.support.trees import LIMIT, HandPool, MemoryStore, Rig, in_threads, join_all, outage

OLD = "type=a/date=2026-10-20"
RECENT = "type=a/date=2026-10-31"


# Age


def test_a_listing_is_believed_for_its_time_and_then_asked_again() -> None:
    """A change shows after that time, and not by a request before."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    assert rig.names(RECENT) == ["a"]
    store.put(f"{RECENT}/b")
    rig.now += 59
    assert rig.names(RECENT) == ["a"]
    rig.now += 2
    assert rig.names(RECENT) == ["a", "b"]
    assert store.units().count(f"{RECENT}/") == 2


def test_a_negative_answer_expires_as_well() -> None:
    """What appears is found once the listing is asked again."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    with pytest.raises(NotFound):
        rig.lookup(f"{RECENT}/_SUCCESS")
    store.put(f"{RECENT}/_SUCCESS")
    rig.now += 61
    assert isinstance(rig.lookup(f"{RECENT}/_SUCCESS"), File)


@pytest.mark.parametrize(
    ("keys", "requests"),
    [
        ([f"{OLD}/a", f"{OLD}/_SUCCESS"], 1),
        ([f"{OLD}/a"], 2),
        ([f"{RECENT}/a", f"{RECENT}/_SUCCESS"], 2),
        (["type=a/date=x/a", "type=a/date=x/_SUCCESS"], 2),
    ],
)
def test_a_complete_day_of_the_past_is_believed_for_an_hour(keys: list[str], requests: int) -> None:
    """Not one that is incomplete, recent, or no day."""
    store = MemoryStore(keys=keys)
    rig = Rig([store])
    day = keys[0].removesuffix("/a")
    rig.names(day)
    rig.now += 3500
    rig.names(day)
    assert store.units().count(f"{day}/") == requests
    rig.now += 3601
    rig.names(day)
    assert store.units().count(f"{day}/") == requests + 1


def test_a_time_to_live_longer_than_an_hour_holds_for_settled_days_too() -> None:
    """The longer of the two."""
    store = MemoryStore(keys=[f"{OLD}/a", f"{OLD}/_SUCCESS"])
    rig = Rig([store], ttl=7200)
    rig.names(OLD)
    rig.now += 7000
    rig.names(OLD)
    assert store.units().count(f"{OLD}/") == 1


def test_without_time_to_live_each_operation_asks_once() -> None:
    """Also for a settled day, and nothing is listed ahead that wouldn't be believed."""
    store = MemoryStore(keys=[f"{OLD}/a/b/c", f"{OLD}/_SUCCESS"])
    rig = Rig([store], ttl=0)
    rig.lookup(f"{OLD}/a/b/c")
    before = store.units().count(f"{OLD}/")
    rig.lookup(f"{OLD}/a/b/c")
    assert (before, store.units().count(f"{OLD}/")) == (1, 2)
    assert rig.run_jobs() == 0


def test_unchanged_objects_stay_the_same_in_memory_and_changed_ones_do_not() -> None:
    """A refresh of a large day costs no second copy."""
    store = MemoryStore(keys=[f"{RECENT}/e/{name}" for name in "ab"])
    rig = Rig([store], ttl=0)
    before = {name: rig.lookup(f"{RECENT}/e/{name}") for name in "ab"}
    store.objects.clear()
    store.put(f"{RECENT}/e/a")
    store.put(f"{RECENT}/e/b", version="v2")
    after = {name: rig.lookup(f"{RECENT}/e/{name}") for name in "ab"}
    assert after["a"] is before["a"]
    assert isinstance(after["b"], File)
    assert after["b"].info.version == "v2"


def test_what_vanished_is_missing_and_folders_of_it_too() -> None:
    """A definitive answer isn't a failure."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.names(RECENT)
    store.objects.clear()
    rig.now += 61
    with pytest.raises(NotFound):
        rig.lookup(f"{RECENT}/a")
    with pytest.raises(NotFound):
        rig.names(RECENT)
    assert rig.names() == []


def test_the_least_recently_used_listings_are_dropped_beyond_the_bound() -> None:
    """And can be had again."""
    days = [f"type=a/date=2026-10-{day:02d}" for day in range(10, 20)]
    store = MemoryStore(keys=[f"{day}/{number}" for day in days for number in range(10)])
    rig = Rig([store], max_objects=40)
    for day in days:
        assert len(rig.names(day)) == 10
        statistics = rig.catalog.statistics()
        assert statistics.objects + statistics.listings <= 40
    rig.names(days[-1])
    assert store.units().count(f"{days[-1]}/") == 1
    assert len(rig.names(days[0])) == 10
    assert store.units().count(f"{days[0]}/") == 2


def test_a_second_walk_over_a_little_more_than_is_held_is_listed_ahead_as_the_first() -> None:
    """What was held when it was to be listed ahead is still held when the walk comes to it."""
    days = [f"type=a/date={2000 + year}-10-10" for year in range(200)]
    store = MemoryStore(keys=[f"{day}/{number}" for day in days for number in range(10)])
    pool = HandPool()
    rig = Rig([store], pool=pool, ttl=3600.0, max_objects=198 * 11)
    demanded = []
    for _ in range(3):
        before = len(store.units()) - rig.catalog.statistics().prefetched
        rig.names("type=a")
        for day in days:
            assert len(rig.names(day)) == 10
            pool.jobs.reverse()  # threads run them at once, in any order
            pool.run()
        demanded.append(len(store.units()) - rig.catalog.statistics().prefetched - before)
    assert max(demanded) < 10


# Failures


@pytest.mark.parametrize("error", [outage(), TokenRefused("no"), AccessDenied("no"), DeadlineExceeded("late")])
def test_what_was_seen_stays_while_it_cannot_be_refreshed_and_comes_back(error: OptfsError) -> None:
    """Whatever the cause; later tries run in the background and the first success shows what changed."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.names(RECENT)
    store.put(f"{RECENT}/b")
    rig.now += 61
    store.error = error
    assert rig.names(RECENT) == ["a"]
    asked = len(store.asked)
    rig.now += 2
    for _ in range(5):
        assert rig.names(RECENT) == ["a"]
    assert len(store.asked) == asked  # nobody waited for a failing store
    assert rig.run_jobs() == 1
    assert len(store.asked) == asked + 1
    assert rig.names(RECENT) == ["a"]
    assert rig.run_jobs() == 0  # not so soon again
    store.error = None
    rig.now += 2
    rig.names(RECENT)
    assert rig.run_jobs() == 1
    assert rig.names(RECENT) == ["a", "b"]
    assert rig.catalog.statistics().failing == ()


def test_without_a_former_listing_the_failure_is_raised_each_time() -> None:
    """Nothing is remembered that would outlast the cause."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    store.error = outage()
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            rig.names(RECENT)
    store.error = None
    assert rig.names(RECENT) == ["a"]


def test_each_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the cause's detail, and that it works again."""
    store = MemoryStore(keys=[f"type=a/date=2026-10-{day:02d}/x" for day in (29, 30, 31)])
    rig = Rig([store])
    days = [f"type=a/date=2026-10-{day:02d}" for day in (29, 30, 31)]
    with caplog.at_level(logging.INFO, "optfs"):
        for day in days:
            rig.names(day)
        rig.now += 61
        store.error = outage()
        for _ in range(3):
            for day in days:
                rig.names(day)
            rig.run_jobs()
            rig.now += 2
        store.error = None
        for day in days:
            rig.names(day)
        rig.run_jobs()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "request 1" in messages[0]
    assert "work again" in messages[1]


def test_a_refused_prefix_does_not_make_the_others_look_failing(caplog: pytest.LogCaptureFixture) -> None:
    """Only its own refresh moves to the background."""
    store = MemoryStore(keys=[f"{RECENT}/a", "type=b/x"])
    rig = Rig([store])
    rig.names(RECENT)
    rig.names("type=b")

    def refuse(unit: str) -> None:
        if unit == f"{RECENT}/":
            raise AccessDenied("refused", detail="request 2")

    store.gate = refuse
    store.put("type=b/y")
    rig.now += 61
    with caplog.at_level(logging.WARNING, "optfs"):
        assert rig.names(RECENT) == ["a"]
        assert rig.names("type=b") == ["x", "y"]
        rig.now += 2
        rig.names(RECENT)
        rig.run_jobs()
    assert len(caplog.records) == 1
    assert rig.catalog.statistics().failing == ()
    assert rig.catalog.statistics().refusing == ("gcp",)
    rig.now += 61
    rig.names("type=b")
    assert rig.catalog.statistics().refusing == ()


def test_few_tries_at_once_run_against_a_failing_store() -> None:
    """The pool's threads aren't spent on waiting for it."""
    days = [f"type=a/date=2026-10-{day:02d}" for day in range(10, 30)]
    store = MemoryStore(keys=[f"{day}/x" for day in days])
    rig = Rig([store])
    for day in days:
        rig.names(day)
        rig.run_jobs()
    rig.now += 61
    store.error = outage()
    rig.names(days[0])
    rig.now += 2
    asked = len(store.asked)
    for day in days:
        rig.names(day)
    rig.run_jobs()
    assert 1 <= len(store.asked) - asked <= 2


def test_after_close_nothing_runs_in_the_background() -> None:
    """What is held can still be seen."""
    store = MemoryStore(keys=[f"type=a/date=2026-10-{day:02d}/x" for day in range(10, 20)])
    rig = Rig([store])
    for day in range(10, 13):
        rig.names(f"type=a/date=2026-10-{day}")
    asked = len(store.asked)
    rig.catalog.close()
    rig.run_jobs()
    assert len(store.asked) == asked
    assert rig.names("type=a/date=2026-10-10") == ["x"]


# Threads


class _Gate:
    """Holds requests for one unit up until it is opened."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, unit: str) -> None:
        if unit == self._unit:
            self.reached.set()
            assert self.open.wait(LIMIT)


@pytest.mark.parametrize("error", [None, outage()])
def test_one_listing_serves_all_who_need_it_and_fails_for_all(error: OptfsError | None) -> None:
    """However many threads come while it is under way; a failure is the same exception for each."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.lookup(RECENT)
    gate = store.gate = _Gate(f"{RECENT}/")
    leader, results = in_threads(1, lambda: rig.names(RECENT))
    assert gate.reached.wait(LIMIT)
    arrived = threading.Semaphore(0)

    def follow() -> list[str]:
        arrived.release()
        return rig.names(RECENT)

    followers, more = in_threads(7, follow)
    for _ in followers:
        assert arrived.acquire(timeout=LIMIT)
    if error is None:
        # A follower that hadn't yet joined finds the listing fresh: one request either way.
        gate.open.set()
        join_all(leader + followers)
        assert results + more == [["a"]] * 8
        assert store.units().count(f"{RECENT}/") == 1
    else:
        store.error = error
        gate.open.set()
        join_all(leader + followers)
        assert {(type(result), str(result)) for result in results + more} == {(type(error), str(error))}


def test_who_waits_for_anothers_listing_waits_no_longer_than_its_own_deadline() -> None:
    """The listing goes on for those who can wait; with a former listing that one is shown."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.lookup(RECENT)
    gate = store.gate = _Gate(f"{RECENT}/")
    leader, results = in_threads(1, lambda: rig.names(RECENT))
    assert gate.reached.wait(LIMIT)
    with pytest.raises(DeadlineExceeded):
        rig.catalog.children(f"/123/{RECENT}", rig.deadline(0.0))
    gate.open.set()
    join_all(leader)
    assert results == [["a"]]


def test_a_store_that_is_silent_holds_nobody_up_who_can_be_shown_a_former_listing() -> None:
    """But for a few seconds the first one; what a read has found wrong isn't shown for that."""
    other = "type=a/date=2026-10-30"
    store = MemoryStore(keys=[f"{RECENT}/a", f"{other}/o"])
    rig = Rig([store])
    assert (rig.names(RECENT), rig.names(other)) == (["a"], ["o"])
    found = rig.lookup(f"{RECENT}/a")
    assert isinstance(found, File)
    store.put(f"{RECENT}/b")
    rig.now += 61
    gate = store.gate = _Gate(f"{RECENT}/")
    first, results = in_threads(1, lambda: rig.names(RECENT))
    assert gate.reached.wait(LIMIT)
    rig.now += PATIENCE
    join_all(first)
    assert results == [["a"]]
    assert rig.names(RECENT) == ["a"]
    assert rig.names(other) == ["o"]
    rig.catalog.gone(found.info)
    patient, results = in_threads(1, lambda: rig.names(RECENT))
    gate.open.set()
    join_all(patient)
    assert results == [["a", "b"]]
    assert store.units().count(f"{other}/") == 1
    assert rig.run_jobs() > 0
    assert store.units().count(f"{other}/") == 2


def test_a_listing_whose_pages_come_is_waited_for_however_many_they_are() -> None:
    """And nothing else of the store is shown as it was for that: it answers."""
    other = "type=a/date=2026-10-30"
    days = [f"type=a/date=2026-10-1{day}" for day in range(4)]
    store = MemoryStore(keys=[f"{RECENT}/a", f"{other}/o", *(f"{day}/x" for day in days)])
    rig = Rig([store])
    assert (rig.names(RECENT), rig.names(other)) == (["a"], ["o"])
    store.put(f"{RECENT}/b")
    store.put(f"{other}/p")
    rig.now += 3600
    gate = store.gate = _Gate(f"{RECENT}/")
    first, results = in_threads(1, lambda: rig.names(RECENT))
    assert gate.reached.wait(LIMIT)
    for day in days:
        rig.now += PATIENCE - 1
        assert rig.names(day) == ["x"]  # never listed before: a page comes
    assert rig.names(other) == ["o", "p"]
    assert not results
    gate.open.set()
    join_all(first)
    assert results == [["a", "b"]]


def test_who_is_killed_leaves_the_listing_to_others() -> None:
    """Also the one that it was begun for."""
    store = MemoryStore(keys=[f"{RECENT}/a"])
    rig = Rig([store])
    rig.lookup(RECENT)
    gate = store.gate = _Gate(f"{RECENT}/")
    with pytest.raises(Abandoned):
        rig.catalog.children(f"/123/{RECENT}", replace(rig.deadline(), abandoned=gate.reached.is_set))
    follower, results = in_threads(1, lambda: rig.names(RECENT))
    gate.open.set()
    join_all(follower)
    assert results == [["a"]]
    assert store.units().count(f"{RECENT}/") == 1


def test_a_walk_has_many_listings_in_flight() -> None:
    """Sixteen at least, once it has gone on for a while; and still each date is asked for once."""
    units = [f"type=a/date=2026-{month:02d}-{day:02d}/" for month in (8, 9) for day in range(1, 29)]
    store = MemoryStore(keys=[f"{unit}x" for unit in units])
    pool = WorkerPool("test", 24)
    rig = Rig([store], pool=pool)
    late = set(units[20:])
    lock = threading.Lock()
    waiting: set[str] = set()
    enough = threading.Event()

    def hold_until_enough_wait(unit: str) -> None:
        if unit in late:
            with lock:
                waiting.add(unit)
                if len(waiting) >= 16:
                    enough.set()
            assert enough.wait(LIMIT)

    store.gate = hold_until_enough_wait
    try:
        for date in rig.names("type=a"):
            assert rig.names(f"type=a/{date}") == ["x"]
        assert enough.is_set()
        assert sorted(store.units()) == sorted(["", "type=a/", *units])
    finally:
        assert pool.close(LIMIT)
