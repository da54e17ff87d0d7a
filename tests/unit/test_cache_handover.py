"""The queue between readers and the cache's writer: who waits for room, how long, and what is dropped."""

import threading

import pytest

from optfs.cache import handover
from optfs.cache.handover import Handover
from optfs.cache.protocol import BlockKey

BACKLOG = 100


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
