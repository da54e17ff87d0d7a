"""The queue between readers and the cache's writer: who waits for room, how long, and what is dropped."""

import threading
from collections import deque
from typing import NoReturn

import pytest

from optfs.cache import handover
from optfs.cache.handover import Handover
from optfs.cache.protocol import BlockKey

BACKLOG = 100


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few bytes wait as long as others."""
    monkeypatch.setattr(handover, "PATIENT", 1)


def put(queue: Handover, number: int, size: int = 60) -> None:
    """Offer a block."""
    queue.put(BlockKey("s3://bucket/key", "1", 1 << 30, number * size, size), memoryview(bytes(size)))


def test_a_block_that_finds_no_room_waits_for_the_writer() -> None:
    """A disk that is a little slower than the network costs no block."""
    queue = Handover(BACKLOG)
    put(queue, 0)
    waiting = threading.Thread(target=put, args=(queue, 1), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert len(queue.take(more_work=True).blocks) == 1
    queue.release(60, written=True)
    waiting.join(30)
    assert not waiting.is_alive()
    assert len(queue.take(more_work=True).blocks) == 1
    assert (queue.counters().stored, queue.counters().dropped) == (1, 0)


def test_a_stuck_disk_costs_blocks_and_not_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is bounded; a block that is longer than all room isn't waited for at all."""
    queue = Handover(BACKLOG)
    put(queue, 0)
    put(queue, 1, BACKLOG + 1)
    assert queue.counters().dropped == 1
    monkeypatch.setattr(handover, "PATIENCE", 0.01)
    put(queue, 2)
    assert queue.counters().dropped == 2
    assert len(queue.take(more_work=True).blocks) == 1


def test_who_offers_little_waits_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read at random is offered in pieces: its worker would wait for each of them as long as for a block of a stream."""
    monkeypatch.setattr(handover, "PATIENT", 60 * 1000)
    monkeypatch.setattr(handover, "PATIENCE", 10.0)
    queue = Handover(BACKLOG)
    put(queue, 0)
    waiting = threading.Thread(target=put, args=(queue, 1), daemon=True)
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive()
    assert queue.counters().dropped == 1


def test_blocks_that_come_one_after_the_other_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer waits a moment for more, until there is a quarter of the backlog, or somebody is in a hurry."""
    monkeypatch.setattr(handover, "GATHER", 30.0)
    for hurry in (False, True):
        queue = Handover(BACKLOG)
        batches: list[int] = []
        writer = threading.Thread(target=lambda: batches.append(len(queue.take(more_work=False).blocks)), daemon=True)  # noqa: B023 - joined below
        writer.start()
        for number in range(2):
            put(queue, number, 8)
            writer.join(0.02)
            assert writer.is_alive()
        if hurry:
            queue.flush(0)
        else:
            put(queue, 2, 9)
        writer.join(10)
        assert batches == [2 if hurry else 3]


def test_closing_ends_the_wait() -> None:
    """Nobody waits for room that won't come."""
    queue = Handover(BACKLOG)
    put(queue, 0)
    waiting = threading.Thread(target=put, args=(queue, 1), daemon=True)
    waiting.start()
    queue.close(by=1.0, clock=lambda: 0.0)
    waiting.join(30)
    assert not waiting.is_alive()
    assert queue.counters().dropped == 1


def test_what_the_writer_did_not_release_is_dropped_with_its_next_batch() -> None:
    """A failure of the writer takes no room for ever."""
    queue = Handover(BACKLOG)
    put(queue, 0)
    assert len(queue.take(more_work=True).blocks) == 1
    assert not queue.take(more_work=True).blocks
    put(queue, 1, BACKLOG)
    assert len(queue.take(more_work=True).blocks) == 1
    queue.release(BACKLOG, written=True)
    assert not queue.take(more_work=True).blocks
    assert (queue.counters().stored, queue.counters().dropped) == (1, 1)


def test_a_batch_that_finds_no_memory_leaves_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with the next one."""

    class Starved(dict[str, float]):
        def items(self) -> NoReturn:
            raise MemoryError

    queue = Handover(BACKLOG)
    put(queue, 0)
    queue.note_gone("gone")
    with monkeypatch.context() as starved:
        starved.setattr(queue, "_uses", Starved())
        with pytest.raises(MemoryError):
            queue.take(more_work=True)
    batch = queue.take(more_work=True)
    assert ([key.length for key, _ in batch.blocks], batch.gone) == ([60], ["gone"])


def test_a_block_that_finds_no_memory_to_wait_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is there for the next one."""

    class Starved(deque[object]):
        def append(self, _item: object) -> None:
            raise MemoryError

    queue = Handover(BACKLOG)
    with monkeypatch.context() as starved:
        starved.setattr(queue, "_blocks", Starved())
        with pytest.raises(MemoryError):
            put(queue, 0)
    monkeypatch.setattr(handover, "PATIENCE", 0.01)
    put(queue, 1, BACKLOG)
    assert len(queue.take(more_work=True).blocks) == 1


@pytest.mark.parametrize("what", ["uses", "gone"])
def test_what_waits_for_a_writer_that_is_stuck_is_bounded(what: str) -> None:
    """Uses that are left out cost a block its place, and files that are gone are found by a sweep."""
    queue = Handover(BACKLOG)
    for number in range(20_000):
        if what == "uses":
            queue.note_use(f"{number}", now=0.0, wall=0.0)
        else:
            queue.note_gone(f"{number}")
    batch = queue.take(more_work=True)
    assert [len(batch.uses), len(batch.gone)] == ([10_000, 0] if what == "uses" else [0, 10_000])


def test_what_is_remembered_of_uses_is_bounded() -> None:
    """However many blocks are read in a minute, the writer keeps up or not; some uses are noted twice for that."""
    queue = Handover(BACKLOG)
    for number in range(50_000):
        queue.note_use(f"{number}", now=0.0, wall=0.0)
        if number % 1000 == 999:
            assert len(queue.take(more_work=True).uses) == 1000
    assert len(queue._noted) <= 20_000
