"""What a reader waits for, while others wait for a store that is silent, give up, or there is no memory to queue a fetch."""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from optfs.errors import Abandoned, DeadlineExceeded, ServiceUnavailable
from optfs.reading.blocks import MOST_FAILURES, Blocks, Refusal
from optfs.reading.fetches import Fetch, Part
from optfs.reading.files import ident_of
from optfs.reading.readahead import BLOCK, PIECE
from optfs.stores.protocol import Progress
from optfs.values import Deadline, MiB, ObjectInfo, Provider, never
from optfs.workers import Priority, WorkerPool
from tests.support.reading import (
    PATIENCE,
    FakeCache,
    FakeStore,
    HandClock,
    check,
    ended,
    info,
    nothing_follows,
    reading,
    started,
    until,
)


def test_what_is_cached_is_read_while_every_worker_waits_for_a_silent_store() -> None:
    """Also what was being fetched ahead, and a block of which the cache has the pieces."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        check(files.open(info("cached", 1000), nothing_follows), 0, 1000)
        until(lambda: len(cache.blocks) == 1)
    store.gate.clear()
    with reading(store, cache, threads=3) as files:
        stuck = [started(files.open(info(f"stuck-{number}", 1000), nothing_follows).read, 0, 1000) for number in range(9)]
        until(lambda: len(store.requests) == 1 + 3)
        part = (ident_of(info("cached", 1000)), 0, 1000)
        assert files.fetcher.ahead(info("cached", 1000), (part,)) is not Refusal.NO_ROOM
        check(files.open(info("cached", 1000), nothing_follows), 0, 1000)
        store.gate.set()
        ended(*stuck)
    assert [key for key, _, _ in store.requests].count("cached") == 1


def test_what_is_cached_is_read_while_a_silent_store_has_all_the_room_that_it_may_have() -> None:
    """However many wait for the store: those that found no room for it get their bytes when it answers, by one request each."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        check(files.open(info("cached", 250_000), nothing_follows), 0, 250_000)
        until(lambda: len(cache.blocks) == 1)
    store.gated = lambda info, _start: info.key.startswith("stuck")
    store.gate.clear()
    with reading(store, cache, memory=8 * MiB, threads=3) as files:
        stuck = [started(check, files.open(info(f"stuck-{number}", 250_000), nothing_follows), 0, 250_000) for number in range(40)]
        until(lambda: files.counters().resident_bytes >= 4 * MiB)
        check(files.open(info("cached", 250_000), nothing_follows), 0, 250_000)
        store.gate.set()
        ended(*stuck)
    assert sorted(key for key, _, _ in store.requests) == sorted(["cached", *(f"stuck-{number}" for number in range(40))])


def test_a_silent_store_leaves_room_to_the_other_one_and_both_to_the_cache() -> None:
    """Each has three quarters at most, and both together seven eighths."""
    blocks = Blocks(16 * MiB, MiB, time.monotonic)
    deadline = Deadline.after(time.monotonic, 0)

    def fetch(key: str, provider: Provider, *, bound: bool = True) -> Fetch:
        one = replace(info(key, MiB), provider=provider)
        made = Fetch(one, ((ident_of(one), 0, MiB),), demanded=True)
        made.bound = bound
        return made

    def fill(provider: Provider) -> int:
        for number in range(20):
            try:
                blocks.demand(fetch(f"{provider}-{number}", provider), deadline)
            except DeadlineExceeded:
                return number
        raise AssertionError("room has no bound")

    assert [fill("aws"), fill("gcp")] == [12, 2]
    looks = [fetch(f"look-{number}", "aws", bound=False) for number in range(2)]
    assert [blocks.demand(look, deadline) for look in looks] == looks
    assert [blocks.bind(look) for look in looks] == [False, False]
    assert all(look.spare is None for look in looks)
    assert blocks.counters().resident_bytes == 14 * MiB
    assert all(look.failed and look.speculative for look in looks)


def test_a_reader_that_found_no_room_in_time_has_an_answer_that_holds() -> None:
    """The kernel asks again for each page, and each would wait for the timeout; the line says what is the matter."""
    clock = HandClock()
    blocks = Blocks(16 * MiB, MiB, clock)

    def demand(key: str, bound: bool, seconds: float) -> Fetch | None:
        one = info(key, MiB)
        fetch = Fetch(one, ((ident_of(one), 0, MiB),), demanded=True)
        fetch.bound = bound
        return blocks.demand(fetch, Deadline.after(clock, seconds))

    for number in range(12):
        demand(f"bound-{number}", True, 0)
    for seconds in (0, 60):
        with pytest.raises(DeadlineExceeded, match="check the network"):
            demand("one more", True, seconds)
    for number in range(4):
        demand(f"look-{number}", False, 0)
    for seconds in (0, 60):
        with pytest.raises(DeadlineExceeded, match="raise --memory"):
            demand("look", False, seconds)


def test_of_very_many_failures_the_first_hold_no_longer() -> None:
    """An outage under a thousand readers takes no memory without bound."""
    blocks = Blocks(16 * MiB, MiB, HandClock())
    fetches = [Fetch(info(f"{at}", 1), ((ident_of(info(f"{at}", 1)), 0, 1),), demanded=True) for at in range(MOST_FAILURES + 10)]
    for fetch in fetches:
        blocks.overdue(fetch, ServiceUnavailable("down"))
    for fetch in fetches[:10]:
        blocks.check(fetch.parts)
    for fetch in fetches[10:]:
        with pytest.raises(ServiceUnavailable):
            blocks.check(fetch.parts)


def test_readers_that_give_up_take_along_what_nobody_else_waits_for() -> None:
    """Or a store that is silent would keep its workers busy with reads of programs that were killed."""
    store = FakeStore()
    store.gate.clear()
    given_up = threading.Event()

    def read(key: str, abandoned: Callable[[], bool]) -> None:
        with contextlib.suppress(Abandoned):
            files.open(info(key, 1000), nothing_follows).read(0, 1000, abandoned)

    with reading(store, threads=3) as files:
        busy = [started(read, f"busy-{number}", never) for number in range(3)]
        until(lambda: len(store.requests) == 3)
        killed = [started(read, f"killed-{number}", given_up.is_set) for number in range(5)]
        both = [started(read, "wanted", given_up.is_set), started(read, "wanted", never)]
        until(lambda: files.counters().resident_bytes == 9 * 1000)
        given_up.set()
        ended(*killed, both[0])
        assert files.counters().resident_bytes == 4 * 1000
        store.gate.set()
        ended(*busy, both[1])
        check(files.open(info("killed-0", 1000), nothing_follows), 0, 1000)
    assert sorted(key for key, _, _ in store.requests) == ["busy-0", "busy-1", "busy-2", "killed-0", "wanted"]


def test_a_fetch_that_nobody_waits_for_any_more_is_told_to_its_store() -> None:
    """Its worker is free then, and no failure is held against who comes next."""
    store = FakeStore()
    store.gate.clear()
    given_up = threading.Event()

    class Asking:
        """Breaks off where the deadline says that nobody needs the bytes."""

        root = store.root
        list_page = store.list_page
        close = store.close

        def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
            store.read_into(info, start, buffer, lambda _filled: None, deadline)
            deadline.check_abandoned()
            progress(len(buffer))

    def read(abandoned: Callable[[], bool]) -> None:
        with contextlib.suppress(Abandoned):
            files.open(info("a", 1000), nothing_follows).read(0, 1000, abandoned)

    with reading(store, through=Asking()) as files:
        first = started(read, given_up.is_set)
        until(lambda: len(store.requests) == 1)
        given_up.set()
        ended(first)
        store.gate.set()
        until(lambda: not files.blocks.known((ident_of(info("a", 1000)), 0, 1000)))
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)
    assert len(store.requests) == 2


def test_without_memory_to_queue_a_fetch_its_block_can_be_read_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that is admitted and never queued would be waited for until the timeout by everyone."""
    store = FakeStore()
    refused: list[object] = []

    def submit(pool: WorkerPool, job: Callable[[], None], priority: Priority) -> bool:
        if not refused:
            refused.append(job)
            raise MemoryError
        return real(pool, job, priority)

    real = WorkerPool.submit
    monkeypatch.setattr(WorkerPool, "submit", submit)
    with reading(store) as files:
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)  # its reader tries for itself
        assert refused
        assert files.fetcher.ahead(info("b", 1000), ((ident_of(info("b", 1000)), 0, 1000),)) is not Refusal.NO_ROOM
        check(files.open(info("b", 1000), nothing_follows), 0, 1000)


def test_what_has_arrived_is_not_counted_as_its_store_s_again() -> None:
    """A look that ends late, while the cache's writer takes the block: readers of other blocks would wait for room, or fetches ahead be given up."""
    fetch = Fetch(info("a", 1000), ((ident_of(info("a", 1000)), 0, 1000),), demanded=True)
    with reading(FakeStore()) as files:
        blocks = files.blocks
        assert blocks.demand(fetch, Deadline.after(time.monotonic, PATIENCE)) is fetch
        assert blocks.bind(fetch)
        assert fetch.begin()
        assert blocks._bound["aws"] == 1000
        blocks.arrived(fetch, from_disk=0)
        assert blocks.bind(fetch)
        assert blocks._bound["aws"] == 0
        blocks.landed(fetch, [memoryview(bytes(1000))])


def test_who_gives_up_in_a_second_try_takes_along_the_rest_of_its_read() -> None:
    """The first block's fetch had been cancelled, so that it is tried again; the others were demanded before."""
    store = FakeStore()
    store.gate.clear()
    given_up = threading.Event()
    size = 3 * BLOCK
    with reading(store, threads=3) as files:
        busy = [started(files.open(info(f"busy-{number}", 1000), nothing_follows).read, 0, 1000) for number in range(3)]
        until(lambda: len(store.requests) == 3)
        ident = ident_of(info("a", size))
        first = files.fetcher.ahead(info("a", size), ((ident, 0, BLOCK),))
        assert isinstance(first, Fetch)
        deadline = Deadline.after(time.monotonic, PATIENCE, given_up.is_set)
        file = files.open(info("a", size), nothing_follows)
        rest = [files.fetcher.demand(info("a", size), ((ident, at, BLOCK),), deadline) for at in (BLOCK, 2 * BLOCK)]
        files.blocks.cancel(first)

        def read() -> None:
            with pytest.raises(Abandoned):
                file._collect(
                    [(first, 0, 0, BLOCK), *((fetch, fetch.start, fetch.start, fetch.start + BLOCK) for fetch in rest if fetch)],
                    deadline,
                    3,
                )

        reader = started(read)
        until(lambda: files.blocks.known((ident, 0, PIECE)))
        given_up.set()
        ended(reader)
        assert not [part for part in ((0, PIECE), (BLOCK, BLOCK), (2 * BLOCK, BLOCK)) if files.blocks.known((ident, *part))]
        store.gate.set()
        ended(*busy)


def test_a_part_that_there_is_no_memory_to_note_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken for ever."""

    class Full(OrderedDict[Part, memoryview]):
        def __setitem__(self, part: Part, view: memoryview) -> None:
            raise MemoryError

    with reading(FakeStore()) as files, monkeypatch.context() as starved:
        starved.setattr(files.blocks, "_read", Full())
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)
        assert files.close(PATIENCE)
        assert files.counters().resident_bytes == 0


class Held(FakeStore):
    """Holds each request for what is at `first` or beyond until the test lets it go. `peak`: how many were held at once."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.copying = False
        self.fail = self._hold
        self.peak = 0
        self._first = first
        self._changed = threading.Condition()
        self._held: set[int] = set()  # by where they start

    def _hold(self, _info: ObjectInfo, start: int) -> None:
        if start >= self._first:
            with self._changed:
                self._held.add(start)
                self.peak = max(self.peak, len(self._held))
                assert self._changed.wait_for(lambda: start not in self._held, PATIENCE)

    def held(self) -> list[int]:
        """Return where the requests that are held start."""
        with self._changed:
            return sorted(self._held)

    def let_go(self, starts: Iterable[int]) -> "Held":
        """Let requests end, and return this."""
        with self._changed:
            self._held -= set(starts)
            self._changed.notify_all()
        return self


def test_after_a_long_wait_half_as_many_requests_run_ahead_of_readers() -> None:
    """They share the link with what the reader waits for. Once blocks come in time again, more run."""
    first, size = 4 * BLOCK, 100 * BLOCK
    store, clock = Held(first), HandClock()
    with reading(store, clock=clock, threads=10) as files:
        file = files.open(info("big", size), nothing_follows)

        def read(start: int, stop: int) -> None:
            for offset in range(start, stop, MiB):
                file.read(offset, MiB)

        try:
            read(0, first)
            until(lambda: len(store.held()) == 8)
            waited_for = files.blocks._flights[ident_of(file.info), first, BLOCK]
            reader = started(read, first, first + MiB)
            until(lambda: waited_for._waiting == 1)
            clock.now += PATIENCE / 8
            store.let_go([first])
            ended(reader)
            store.let_go(store.held()[2:])
            until(lambda: len(store.held()) <= 4)
            store.peak = 0
            for _ in range(3):
                store.let_go(store.held())
                until(lambda: len(store.held()) >= 3)
            assert store.peak <= 4
            clock.now += PATIENCE / 8
            reader = started(read, first, size)
            until(lambda: store.let_go(store.held()[:1]).peak == 8)
            assert reader.is_alive()
        finally:
            until(lambda: store.let_go(store.held()) is store and not reader.is_alive())


def test_what_ran_when_the_reader_began_to_wait_counts_not_what_is_left_at_its_end() -> None:
    """Where the service was silent for a while all come at once, and then one more request at a time would be too few."""
    first = 4 * BLOCK
    store, clock = Held(first), HandClock()
    with reading(store, clock=clock, threads=10) as files:
        file = files.open(info("big", 12 * BLOCK), nothing_follows)
        for offset in range(0, first, MiB):
            file.read(offset, MiB)
        until(lambda: len(store.held()) == 8)
        waited_for = files.blocks._flights[ident_of(file.info), first, BLOCK]
        reader = started(file.read, first, MiB)
        until(lambda: waited_for._waiting == 1)
        store.let_go(store.held()[1:])
        until(lambda: len(files.blocks._flights) == 1)
        clock.now += PATIENCE / 8
        store.let_go([first])
        ended(reader)
        assert files.fetcher._paces["aws"].allowed == 4


def test_what_the_cache_brings_says_nothing_of_the_service() -> None:
    """Else the limit would rise while the link is as slow as it was."""
    store, cache, clock = FakeStore(), FakeCache(), HandClock()
    with reading(store, cache, clock=clock) as files:
        check(files.open(info("cached", 1000), nothing_follows), 0, 1000)
        until(lambda: len(cache.blocks) == 1)
    with reading(store, cache, clock=clock) as files:
        pace = files.fetcher._paces["aws"]
        pace.waited_long(clock.now - PATIENCE, ahead=2, demanded=1)
        for key, allowed in (("cached", 1), ("fetched", 2)):
            check(files.open(info(key, 1000), nothing_follows), 0, 1000)
            assert pace.allowed == allowed
