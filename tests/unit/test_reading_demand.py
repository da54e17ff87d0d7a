"""What a reader waits for, while others wait for a store that is silent, give up, or there is no memory to queue a fetch."""

import contextlib
import threading
from collections.abc import Callable

import pytest

from optfs.errors import Abandoned
from optfs.reading.files import ident_of
from optfs.stores.protocol import Progress
from optfs.values import Deadline, ObjectInfo, never
from optfs.workers import Priority, WorkerPool
from tests.support.reading import FakeCache, FakeStore, check, ended, info, nothing_follows, reading, started, until


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
        assert files.fetcher.ahead(info("cached", 1000), (part,))
        check(files.open(info("cached", 1000), nothing_follows), 0, 1000)
        store.gate.set()
        ended(*stuck)
    assert [key for key, _, _ in store.requests].count("cached") == 1


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
        assert files.fetcher.ahead(info("b", 1000), ((ident_of(info("b", 1000)), 0, 1000),))
        check(files.open(info("b", 1000), nothing_follows), 0, 1000)
