"""The pool of threads: what it does with failures of jobs, and where it finds no memory."""

import _thread
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from optfs import threads, workers
from optfs.threads import StartedThread
from optfs.workers import Priority, WorkerPool

LIMIT = 30.0  # seconds a loaded machine may take to get somewhere


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """Give a pool of one thread: all depends on it."""
    monkeypatch.setattr(workers, "PAUSE", 0.01)
    made = WorkerPool("test", 1, reserve=0)
    yield made
    assert made.close(LIMIT)


def run(pool: WorkerPool, priority: Priority = Priority.DEMAND) -> None:
    """Have the pool run a job, and wait until it has."""
    done = threading.Event()
    assert pool.submit(done.set, priority)
    assert done.wait(LIMIT)


def _wait(event: threading.Event) -> None:
    assert event.wait(LIMIT)


class Starved:
    """Does nothing but what it stands for, save that the first call by a thread of the pool finds no memory."""

    def __init__(self, real: Callable[..., object]) -> None:
        self._real = real
        self.failed = threading.Event()

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Fail, or do it."""
        if threading.current_thread().name.startswith("test-") and not self.failed.is_set():
            self.failed.set()
            raise MemoryError
        return self._real(*arguments, **keywords)


@pytest.mark.parametrize(("name", "priority"), [("wait", Priority.DEMAND), ("wait", Priority.PREFETCH), ("notify", Priority.PREFETCH)])
def test_a_thread_that_finds_no_memory_between_jobs_goes_on(
    pool: WorkerPool, name: str, priority: Priority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To wait for the next job, or to tell others that a prefetch has ended."""
    starved = Starved(getattr(pool._wanted, name))
    monkeypatch.setattr(pool._wanted, name, starved)
    run(pool, priority)
    assert starved.failed.wait(LIMIT)
    run(pool, priority)


@pytest.mark.parametrize("priority", Priority)
def test_a_job_that_could_not_be_taken_is_not_lost(pool: WorkerPool, priority: Priority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader would wait for it in vain."""
    real = Priority
    starved = Starved(lambda name: real[name])

    class Priorities:
        def __getattr__(self, name: str) -> object:
            return starved(name)

    monkeypatch.setattr(workers, "Priority", Priorities())
    run(pool, priority)
    assert starved.failed.is_set()
    run(pool, priority)


@pytest.mark.log_errors
@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit])
def test_a_job_that_fails_ends_no_thread(pool: WorkerPool, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises; it is logged."""

    def fail() -> None:
        raise error("a bug")

    assert pool.submit(fail, Priority.DEMAND)
    run(pool)
    assert [record.getMessage() for record in caplog.records] == ["a background job failed"]


def test_a_failure_that_finds_no_memory_to_be_logged_ends_no_thread(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when there is none."""
    log = logging.getLogger("optfs.workers")
    starved = Starved(log.exception)
    monkeypatch.setattr(log, "exception", starved)

    def fail() -> None:
        raise ValueError("a bug")

    assert pool.submit(fail, Priority.PREFETCH)
    assert starved.failed.wait(LIMIT)
    run(pool, Priority.PREFETCH)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_without_memory_for_a_thread_the_others_run_the_job(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, the job is refused: it won't run later on, for whoever handed it over was told so."""

    def fail(*_: object) -> StartedThread:
        raise error("no memory")

    pool = WorkerPool("test", 2, reserve=0)
    refused = threading.Event()
    with monkeypatch.context() as starved:
        starved.setattr(workers, "StartedThread", fail)
        with pytest.raises(MemoryError):
            pool.submit(refused.set, Priority.DEMAND)
    run(pool)
    leave = threading.Event()
    assert pool.submit(partial(_wait, leave), Priority.DEMAND)
    with monkeypatch.context() as starved:
        starved.setattr(workers, "StartedThread", fail)
        done = threading.Event()
        assert pool.submit(done.set, Priority.DEMAND)
        leave.set()
        assert done.wait(LIMIT)
    assert pool.close(LIMIT)
    assert not refused.is_set()


def test_a_thread_that_finds_no_memory_to_begin_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without a word: neither who starts it nor who needs the pool waits for it for ever."""
    pool = WorkerPool("test", 2, reserve=0)
    leave = threading.Event()
    assert pool.submit(partial(_wait, leave), Priority.DEMAND)
    with monkeypatch.context() as starved:
        starved.setattr(threads, "BEGINS", 0.2)
        starved.setattr(StartedThread, "_main", lambda _thread: None)
        done = threading.Event()
        assert pool.submit(done.set, Priority.DEMAND)
    leave.set()
    assert done.wait(LIMIT)
    run(pool)
    assert pool.close(LIMIT)


def test_jobs_whose_threads_all_find_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one whose thread failed while another was still being started."""
    first, second, both = threading.Event(), threading.Event(), threading.Barrier(2)
    turns = iter([first, second])
    pool = WorkerPool("test", 2, reserve=0)
    refused: list[str] = []

    def fail(_run: object, name: str) -> StartedThread:
        turn = next(turns)
        both.wait(LIMIT)
        _wait(turn)
        raise MemoryError(name)

    def submit(name: str) -> None:
        try:
            pool.submit(partial(pytest.fail, name), Priority.DEMAND)
        except MemoryError:
            refused.append(name)

    monkeypatch.setattr(workers, "StartedThread", fail)
    submitting = [threading.Thread(target=submit, args=(name,), daemon=True) for name in ("one", "two")]
    for thread in submitting:
        thread.start()
    first.set()
    submitting[0].join(0.1)
    second.set()
    for thread in submitting:
        thread.join(LIMIT)
    assert sorted(refused) == ["one", "two"]
    assert pool.close(LIMIT)


def test_a_thread_that_begins_after_it_was_given_up_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it was told that it won't."""
    late: list[Callable[[], None]] = []
    ran = threading.Event()
    with monkeypatch.context() as slow:
        slow.setattr(threads, "BEGINS", 0.01)
        slow.setattr(_thread, "start_new_thread", lambda main, _arguments: late.append(main))
        with pytest.raises(MemoryError):
            StartedThread(ran.set, "late")
    late[0]()
    assert not ran.is_set()


def test_a_job_whose_thread_finds_no_memory_is_run_by_one_that_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't refused as long as another thread may come."""
    failed, late = threading.Event(), threading.Event()
    pool = WorkerPool("test", 2, reserve=0)
    ran = [threading.Event(), threading.Event()]

    def start(run: Callable[[], object], name: str) -> StartedThread:
        if name == "test-1":
            failed.set()
            raise MemoryError
        _wait(late)
        return StartedThread(run, name)

    monkeypatch.setattr(workers, "StartedThread", start)
    submitting = [threading.Thread(target=pool.submit, args=(done.set, Priority.DEMAND), daemon=True) for done in ran]
    submitting[0].start()
    while pool._starting == 0:
        submitting[0].join(0.01)
    submitting[1].start()
    assert failed.wait(LIMIT)
    late.set()
    for thread, done in zip(submitting, ran, strict=True):
        thread.join(LIMIT)
        assert done.wait(LIMIT)
    assert pool.close(LIMIT)


def test_prefetch_occupies_no_more_threads_than_it_is_allowed() -> None:
    """A limit counts for what begins after it was set; what was demanded has the other threads."""
    pool = WorkerPool("test", 8, reserve=2)
    gates = [threading.Event() for _ in range(5)]

    def submit(priority: Priority, *held_by: threading.Event) -> None:
        for gate in held_by:
            assert pool.submit(partial(_wait, gate), priority)

    def until_running(ahead: int, demanded: int) -> None:
        end = time.monotonic() + LIMIT
        while pool.running() != (ahead, demanded):
            assert time.monotonic() < end, pool.running()
            time.sleep(0.002)

    first, second, later, demanded, again = gates
    try:
        submit(Priority.PREFETCH, *[first] * 6, *[second] * 2, *[later] * 20)
        until_running(6, 0)
        pool.limit_prefetch(2)
        submit(Priority.DEMAND, *[demanded] * 2)
        until_running(6, 2)
        first.set()
        until_running(2, 2)
        submit(Priority.DEMAND, *[again] * 6)
        until_running(2, 6)
        second.set()
        demanded.set()
        again.set()
        until_running(2, 0)
        for limit, running in ((5, 5), (3, 5), (4, 5), (1000, 6), (6, 6)):
            pool.limit_prefetch(limit)
            until_running(running, 0)
    finally:
        for gate in gates:
            gate.set()
        assert pool.close(LIMIT)
