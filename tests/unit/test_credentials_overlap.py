"""One more call while an answer is awaited, where there is no memory for its thread."""

import threading
from collections.abc import Callable

import pytest

from optfs.credentials import overlap
from optfs.credentials.overlap import first_answer
from optfs.threads import StartedThread

LIMIT = 30.0  # seconds a loaded machine may take to get somewhere


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_companion_that_finds_no_memory_costs_not_the_answer(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call goes on; a first one that finds none is told."""
    refused = threading.Event()
    started: list[str] = []

    def start(run: Callable[[], object], name: str) -> StartedThread:
        if started:
            refused.set()
            raise error("no memory")
        started.append(name)
        return StartedThread(run, name)

    monkeypatch.setattr(overlap, "StartedThread", start)

    def ask() -> str:
        assert refused.wait(LIMIT)
        return "answer"

    assert first_answer(ask, every=0.01, within=LIMIT) == "answer"
    with pytest.raises(MemoryError):
        first_answer(ask, every=0.01, within=LIMIT)


def test_tries_that_nothing_ends_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of former calls count: while no name server answered, threads grew without bound."""
    asking = threading.BoundedSemaphore(3)
    monkeypatch.setattr(overlap, "_asking", asking)
    leave = threading.Event()
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return leave.wait(LIMIT)

    for _ in range(5):
        with pytest.raises(TimeoutError):
            first_answer(ask, every=0.01, within=0.1)
    assert len(asked) == 3
    leave.set()
    assert first_answer(ask, every=LIMIT, within=LIMIT)
    for _ in range(3):
        assert asking.acquire(timeout=LIMIT)


def test_no_more_than_eight_tries_are_under_way_in_a_process() -> None:
    """As many as are enough to get an answer, with a thread each."""
    ninth = threading.Event()
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        if len(asked) > 8:
            ninth.set()
        return ninth.wait(LIMIT)

    try:
        with pytest.raises(TimeoutError):
            first_answer(ask, every=0.001, within=0.5)
    finally:
        ninth.set()


def test_no_answer_in_time_is_told() -> None:
    """However many were asked."""
    leave = threading.Event()
    with pytest.raises(TimeoutError):
        first_answer(lambda: leave.wait(LIMIT), every=0.02, within=0.1)
    leave.set()
