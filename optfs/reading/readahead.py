"""Tells a stream from random reads, for one open file, and how far ahead of a stream to fetch. Pure.

A stream is a run `[origin, frontier)` of reads each of which begins where one before it ended. The kernel's readahead and libfuse's threads
deliver requests out of order, so a read that begins a little beyond the frontier is kept as an interval of its own (`_gaps`) until the gap is
filled; too many intervals mean strides, not a stream.

Rules
- The first read of the file at offset 0 presumes a stream. Any other is random until a run longer than `LONGEST_SINGLE` is seen.
- A read elsewhere doesn't end a stream: it is remembered (`_recent`), and becomes the stream when reads that continue it have made it long
  enough; the run left is remembered in turn, so that a few interleaved streams find back to their own lengths. More than `STRAYS` reads
  elsewhere in a row end it.
- The window ahead is `GROWTH` × the run's length, at most the caller's cap, and at least one block for a run that began at 0. Growth by
  multiples of what was consumed is wide after a few requests (a window that doubles from two blocks spends a quarter of a GiB's time on it),
  and never fetches more than `GROWTH` times what was read.
- Within a file a run is most often one column of Parquet, which ends soon: there the window is as long as the run until that is `SURE`.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from optfs.values import KiB, MiB

Stream = TypeVar("Stream")

BLOCK = 4 * MiB
"""Grain of streams and of small files. Larger ones measured slower: less parallelism within the same window."""
PIECE = 128 * KiB
"""Grain of random reads in big files: the largest request of libfuse 2, and of libfuse 3 where sysfs can't be written."""
GROWTH = 8
SURE = 8 * MiB
"""Of 40 Parquet files with columns of 3 MB one column was read (pandas, 30 ms a request): 441 MiB fetched in 5.2 s, with `GROWTH` from the start
862 MiB in 5.3 s. Half a GiB from the middle of a file took as long, with 16 MiB a fifth longer where a request takes 100 ms (2026-11-27)."""
REORDER = 8 * MiB
"""How far beyond the frontier a request may arrive early: eight of the largest requests."""
GAPS = 6
RECENT = 8
STRAYS = 8
RUN = 4 * PIECE
"""A run of pieces is fetched ahead once it is this long or reaches its block's end: single pieces would cost a request each."""


LONGEST_SINGLE = MiB
"""A run in the middle of a file is a stream once it is longer: the kernel asks for a program's one read of up to this in adjacent pieces.
Random reads of 256 KiB, which arrive as two of 128 KiB, fetched 18 times what was read when two adjacent requests made a stream."""


class AccessPattern:
    """The reads of one open file. Not locked: the caller lets one thread in at a time.

    Attributes:
        streaming: whether there is a stream now.
        origin, frontier: the stream's run, bytes.
        scheduled: up to where the stream has been fetched ahead.

    """

    __slots__ = ("_block", "_first", "_gaps", "_recent", "_size", "_strays", "frontier", "origin", "scheduled", "streaming")

    def __init__(self, size: int, block: int = BLOCK) -> None:
        self._size = size
        self._block = block
        self._first = True
        self._gaps: list[tuple[int, int]] = []  # sorted, disjoint, all beyond the frontier
        self._recent: list[tuple[int, int]] = []  # oldest first
        self._strays = 0
        self.streaming = False
        self.origin = 0
        self.frontier = 0
        self.scheduled = 0

    def note(self, start: int, end: int) -> bool:
        """Take in a read of `[start, end)`, never empty; return whether it is part of the stream."""
        if self.streaming:
            if start == self.frontier and not self._gaps:
                self.frontier = end
                self._strays = 0
                return True
            return self._note_near(start, end)
        if self._first:
            self._first = False
            if start == 0:
                self._begin(0, end)
                return True
        return self._note_elsewhere(start, end)

    def ahead(self, cap: int) -> list[tuple[int, int]]:
        """Return `(start, length)` of what to fetch ahead now, nearest first, at most `cap` bytes beyond the frontier.

        It counts as scheduled: who can't fetch all of it sets `scheduled` back. A range that begins at a multiple of the block is a block; any other
        is a run of pieces.
        """
        found: list[tuple[int, int]] = []
        if not self.streaming:
            return found
        block, size = self._block, self._size
        run = self.frontier - self.origin
        sure = self.origin == 0 or run >= SURE
        window = min(cap, run * GROWTH if sure else run)
        if self.origin == 0:
            window = max(window, min(block, cap))
        stop = min(size, self.frontier + window)
        at = max(self.scheduled, self.frontier)
        while at < stop:
            begin = at - at % block
            rest = min(begin + block, size)
            if at == begin:
                length = rest - begin
            elif self.origin <= begin:
                at = self.scheduled = rest  # the reader itself demands this block whole
                continue
            else:
                at = min(-(-at // PIECE) * PIECE, rest)
                if at == rest:
                    self.scheduled = rest
                    continue
                length = min(rest, -(-stop // PIECE) * PIECE) - at
                if length < RUN and at + length < rest:
                    return found
            found.append((at, length))
            at = self.scheduled = at + length
        return found

    def by_block(self, begin: int) -> bool:
        """Return whether the stream covers the block at `begin` from its start, so that fetching it whole wastes nothing."""
        return self.streaming and self.origin <= begin

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to fetch ahead."""
        return not self.streaming or self.frontier >= self._size

    def _begin(self, origin: int, frontier: int) -> None:
        self.streaming = True
        self.origin, self.frontier, self.scheduled = origin, frontier, frontier
        self._gaps.clear()
        self._strays = 0

    def _note_near(self, start: int, end: int) -> bool:
        if start <= self.frontier < end:
            self.frontier = end
            while self._gaps and self._gaps[0][0] <= self.frontier:
                self.frontier = max(self.frontier, self._gaps.pop(0)[1])
            self._strays = 0
            return True
        if self.frontier < start <= self.frontier + REORDER:
            self._add_gap(start, end)
            if len(self._gaps) <= GAPS:
                return True
            self._leave()
            return False
        if self._gaps and start == self._gaps[-1][1]:  # a gap that stays: the reader skipped it and goes on
            self._begin(self._gaps[-1][0], end)
            return True
        return self._note_elsewhere(start, end)

    def _add_gap(self, start: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self._gaps, (start, end)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        self._gaps = merged

    def _note_elsewhere(self, start: int, end: int) -> bool:
        for index, (low, high) in enumerate(self._recent):
            if low < start <= high < end:
                if end - low <= LONGEST_SINGLE:
                    self._recent[index] = (low, end)
                    break
                del self._recent[index]
                if self.streaming:
                    self._remember(self.origin, self.frontier)
                self._begin(low, end)
                return True
            if end == high and start == low:
                return False
            if end == low:
                self._recent[index] = (start, high)
                break
        else:
            self._remember(start, end)
        self._strays += 1
        if self.streaming and self._strays > STRAYS:
            self._leave()
        return False

    def _leave(self) -> None:
        self.streaming = False
        self._gaps.clear()
        self._remember(self.origin, self.frontier)

    def _remember(self, low: int, high: int) -> None:
        if len(self._recent) >= RECENT:
            del self._recent[0]
        self._recent.append((low, high))


class Shares(Generic[Stream]):
    """Divides the bytes that may be ahead of streams among the streams that are active. Not locked."""

    IDLE = 5.0
    """Seconds after which a stream that asked for nothing counts no more."""

    def __init__(self, total: int, floor: int) -> None:
        """Divide `total` bytes, but give each stream `floor` at least."""
        self._total = total
        self._floor = floor
        self._seen: dict[Stream, float] = {}

    def cap(self, stream: Stream, now: float) -> int:
        """Return how many bytes may be ahead of `stream`, which is active at `now`."""
        if stream not in self._seen or len(self._seen) > 1:
            self._seen = {other: at for other, at in self._seen.items() if now - at < self.IDLE}
        self._seen[stream] = now
        return max(self._floor, self._total // len(self._seen))

    def leave(self, stream: Stream) -> Iterable[Stream]:
        """Forget a stream that ended; return the others."""
        self._seen.pop(stream, None)
        return self._seen
