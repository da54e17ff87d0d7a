"""What calls hand to the cache's writer: blocks within a bound of bytes, uses, and blocks that are gone; and the writer's counters.

Rules: blocks hold at most `backlog` bytes from `put` until the writer has released them; what it hasn't when it takes the next batch is
dropped then, so that no failure of its own takes room for ever. For a block that doesn't fit `put` waits `PATIENCE` at most (less for one of
less than `PATIENT`), then it is dropped: callers are workers whose readers have their bytes already, and a disk that is a little slower than
the network keeps up that way (without, 45 of a stream's 256 blocks were dropped). On a stuck disk streams go on, slower: see `PATIENCE`.
The writer waits `GATHER` seconds for more blocks, unless a quarter of the backlog is there: so they share a transaction, and the writing
doesn't compete with what a reader does next (a thousand files of a MiB: 2.8 s of CPU instead of 3.6; 200 reads at random: 6.59 s, not 6.73).
A use is noted at most once in `TOUCH_EVERY` seconds a block, and waits up to `TOUCH_DELAY` seconds, so that many share one transaction.

Lock: `_lock` (with its conditions `_changed` and `_room`) guards everything here. It is a leaf and never held over I/O.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import islice

from optfs.cache.protocol import BlockKey
from optfs.values import Clock, MiB

TOUCH_EVERY = 60.0
TOUCH_DELAY = 2.0
GATHER = 0.02
"""Seconds; the next of a row of random reads has been sent by then, and waits."""

IDLE = 30.0
"""Seconds after which an idle writer looks at the free space."""

PATIENCE = 1.0
"""Seconds. With 0.3 a loaded machine still dropped a block of a GiB now and then, and the file was not whole in the cache. On a stuck disk, 36
workers that wait so long for each block of 4 MiB still fetch 150 MB/s."""

PATIENT = MiB
"""Bytes. A block of so many or more is waited for that long, a shorter one in proportion, so that a worker brings 1 MiB/s at least whatever its
size. Workers that waited a second for each piece of 128 KiB gave 64 readers of 1 MiB four reads a second on a stuck disk, the last after 24 s."""

_TOUCHES_REMEMBERED = 20_000
_PENDING_LIMIT = 10_000
_BATCH = 64


@dataclass(slots=True)
class Counters:
    """What the writer did; see `disk.CacheStats`."""

    size: int = 0
    stored: int = 0
    stored_bytes: int = 0
    dropped: int = 0
    evicted: int = 0


@dataclass(slots=True)
class Batch:
    """What the writer takes at once.

    Attributes:
        blocks: to write.
        uses: block names and when they were used, seconds since the epoch.
        gone: names of blocks whose files were removed.
        last: nothing will follow.

    """

    blocks: deque[tuple[BlockKey, memoryview]] = field(default_factory=deque)
    uses: list[tuple[str, float]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    last: bool = False


class Handover:
    """A bounded queue from many threads to the writer."""

    def __init__(self, backlog: int) -> None:
        """Hold at most `backlog` bytes."""
        self._backlog = backlog
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)  # of its own: one block written lets one waiting worker go, not all of them
        # Guarded by _lock: all below. Invariant: 0 <= _taken_bytes <= _held <= _backlog: bytes of blocks in the writer's hands, and of those
        # together with the ones that wait.
        self._blocks: deque[tuple[BlockKey, memoryview]] = deque()
        self._held = 0
        self._taken = self._taken_bytes = 0
        self._uses: dict[str, float] = {}
        self._gone: list[str] = []
        self._noted: dict[str, float] = {}
        self._hurry = False
        self._busy = True  # with opening; the first `take` ends it
        self._counters = Counters()
        self._close_by: float | None = None
        self._clock: Clock = time.monotonic

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._close_by is not None

    def put(self, key: BlockKey, data: memoryview) -> None:
        """Queue a block, or drop it."""
        with self._lock:
            if self._held + len(data) > self._backlog >= len(data):
                patience = PATIENCE * min(1.0, len(data) / PATIENT)
                self._room.wait_for(lambda: self.closed or self._held + len(data) <= self._backlog, patience)
            if self.closed or self._held + len(data) > self._backlog:
                self._counters.dropped += 1
                return
            self._blocks.append((key, data))  # first: it may find no memory
            self._held += len(data)
            if len(self._blocks) == 1 or self._plenty():
                self._changed.notify_all()

    def note_use(self, name: str, now: float, wall: float) -> None:
        """Note that a block was used, `now` by a monotonic clock, `wall` in seconds since the epoch."""
        with self._lock:
            noted = self._noted.get(name)
            if (noted is not None and now - noted < TOUCH_EVERY) or len(self._uses) >= _PENDING_LIMIT:
                return
            if len(self._noted) >= _TOUCHES_REMEMBERED:
                self._noted.clear()  # costs some uses noted twice
            self._noted[name] = now
            self._uses[name] = wall
            if len(self._uses) == 1:
                self._changed.notify_all()

    def note_gone(self, name: str) -> None:
        """Note that a block's file was removed."""
        with self._lock:
            if len(self._gone) < _PENDING_LIMIT:  # what is left out is found by a sweep
                self._gone.append(name)
                self._changed.notify_all()

    def count_dropped(self) -> None:
        """Count a block that wasn't taken."""
        with self._lock:
            self._counters.dropped += 1

    def counters(self) -> Counters:
        """Return a copy of the counters."""
        with self._lock:
            return replace(self._counters)

    def flush(self, timeout: float) -> bool:
        """Wait until all is done; return whether it is."""
        with self._lock:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._blocks or self._uses or self._gone or self._busy), timeout)

    def close(self, by: float, clock: Clock) -> None:
        """Take nothing more; the writer gives up what it hasn't written `by` a moment of `clock`."""
        with self._lock:
            if self._close_by is None:
                self._clock = clock
                self._close_by = by
            self._changed.notify_all()
            self._room.notify_all()

    def overdue(self) -> bool:
        """Tell whether `close` has waited long enough."""
        with self._lock:
            return self._close_by is not None and self._clock() > self._close_by

    def take(self, *, more_work: bool) -> Batch:
        """Wait for something to do and return it; an empty batch after `IDLE` seconds, or at once where the writer has `more_work`.

        The writer's own; it calls `release` for each block that it is done with. Those of the batch before that it hasn't are dropped.
        Where this raises, everything waits as before.
        """
        with self._lock:
            self._give_back()
            self._busy = False
            self._changed.notify_all()
            if not more_work:
                self._changed.wait_for(lambda: self._blocks or self._uses or self._gone or self.closed, IDLE)
                if not self._blocks and not self.closed and (self._uses or self._gone):
                    self._changed.wait_for(lambda: self._blocks or self._hurry or self.closed, TOUCH_DELAY)
            if self._blocks:
                self._changed.wait_for(lambda: self._plenty() or self._hurry or self.closed, GATHER)
            batch = Batch(
                deque(islice(self._blocks, _BATCH)),
                list(self._uses.items()),
                self._gone.copy(),
                last=self.closed and len(self._blocks) <= _BATCH,
            )
            size = sum(len(data) for _, data in batch.blocks)
            for _ in batch.blocks:  # from here on nothing finds no memory
                self._blocks.popleft()
            self._taken = len(batch.blocks)
            self._taken_bytes = size
            self._uses.clear()
            self._gone.clear()
            self._hurry = False
            self._busy = True
            return batch

    def release(self, size: int, *, written: bool) -> None:
        """Give back a block's bytes, whether or not they were written."""
        with self._lock:
            self._held -= size
            self._taken -= 1
            self._taken_bytes -= size
            self._room.notify()
            if written:
                self._counters.stored += 1
                self._counters.stored_bytes += size
            else:
                self._counters.dropped += 1

    def looked(self, size: int, evicted: int) -> None:
        """Tell what the index says of the cache's size, and how many blocks were evicted."""
        with self._lock:
            self._counters.size = size
            self._counters.evicted += evicted

    def end(self) -> None:
        """Tell that the writer has ended: nothing is pending any more."""
        with self._lock:
            self._give_back()
            self._busy = False
            self._blocks.clear()
            self._uses.clear()
            self._gone.clear()
            self._held = 0
            self._changed.notify_all()
            self._room.notify_all()

    def _plenty(self) -> bool:
        """Return whether what waits is worth a transaction of its own. Called with the lock."""
        return len(self._blocks) >= _BATCH or self._held - self._taken_bytes >= self._backlog // 4

    def _give_back(self) -> None:
        """Drop what the writer took and didn't release. Called with the lock."""
        if self._taken:
            self._counters.dropped += self._taken
            self._held -= self._taken_bytes
            self._taken = self._taken_bytes = 0
            self._room.notify_all()
