"""Links that are slow but steady: a block has time as long as its bytes go on coming."""

import threading

import pytest

from optfs.errors import DeadlineExceeded
from optfs.reading.readahead import BLOCK, PIECE
from optfs.stores.protocol import Progress
from optfs.values import Deadline, ObjectInfo
from tests.support.reading import PATIENCE, FakeStore, HandClock, check, contents, info, nothing_follows, reading


class _SlowStore(FakeStore):
    """Brings a first piece at once, then `step` bytes each `seconds` of a clock that it moves itself, and breaks off at the deadline."""

    def __init__(self, clock: HandClock, seconds: float, step: int = PIECE) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds
        self.step = step
        self.ended = threading.Event()

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill the buffer, slowly."""
        try:
            for at in range(0, len(buffer), self.step):
                self.clock.now += self.seconds if at >= PIECE else 0.0
                deadline.check("a read")
                part = contents(info.key, start + at, min(self.step, len(buffer) - at))
                buffer[at : at + len(part)] = part
                progress(at + len(part))
        finally:
            self.ended.set()


def test_a_block_whose_bytes_go_on_coming_is_not_given_up() -> None:
    """Many blocks share a link: as a whole each takes longer than `--timeout`, what a reader waits for doesn't."""
    clock = HandClock()
    store = _SlowStore(clock, 9.0)
    with reading(store, timeout=10.0, clock=clock) as files:
        file = files.open(info("a", BLOCK), nothing_follows)
        check(file, 0, PIECE)
        assert store.ended.wait(PATIENCE)
        check(file, 0, BLOCK)


@pytest.mark.parametrize(("seconds", "step"), [(11.0, PIECE), (3.0, PIECE // 4), (0.5, 1000)])
def test_a_block_whose_pieces_take_too_long_is_given_up(seconds: float, step: int) -> None:
    """What trickles ends."""
    clock = HandClock()
    store = _SlowStore(clock, seconds, step)
    with reading(store, timeout=10.0, clock=clock) as files:
        file = files.open(info("a", BLOCK), nothing_follows)
        with pytest.raises(DeadlineExceeded):
            file.read(PIECE, PIECE)
