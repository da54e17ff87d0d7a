"""Tells a walk over files in order from single opens, and which files to fetch before they are opened. Pure.

A walk is a sequence of positions: the file it began with is 0, and the files that follow one at p are p+1, p+2 …. A file read for the first
time continues a walk if its position is at most `NEAR` beyond the furthest one, which lets several readers share a walk; one further ahead ends
it and begins another. Several walks may go on at once (several folders read by several threads).

Rules:

- From the second file on the next ones are wanted: two, then twice as many with each file, at most `WIDEST`, twice the walk's length, and the
  budget of bytes.
- Programs stop at a folder's end more often than not (`tar` of a folder, one date of many). So behind the end of a folder of a level (how many
  folders its neighbours share) that the walk has crossed c times, only 2c files or a sixteenth of the walk's length are wanted, and all from
  `SURE` crossings on. That keeps what is fetched for nothing below a tenth of what is read.
- A file of up to a block is wanted whole. Of a larger one the first block is wanted where the last file was read from its start, or half a block's
  bytes were read there; and the end where the last file was first read there: Parquet's footer tells where the columns lie, and who reads one
  of those needs little of the first block. 40 files of 32 MB with 30 ms a request, one column by pandas: 4.9 s and 252 MiB instead of 6.3 s
  and 404 MiB; their footers alone 0.33 s and 6 MiB instead of 1.6 s and 158 MiB (2026-11-27).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from optfs.reading.readahead import PIECE
from optfs.values import KiB, ObjectInfo

NEAR = 8
WIDEST = 32
SURE = 8
CAREFUL = 16
MOST_WALKS = 8
KEPT = 64
"""Positions behind a walk's furthest file that are remembered, so that reading a file again isn't taken for a new walk."""


END = 64 * KiB
"""Bytes of a file's end that are wanted, and more up to the start of a piece: pyarrow asks for so many first, others for the last eight."""


class Wanted(NamedTuple):
    """A range of a file to fetch now, and the file's position in its walk."""

    position: int
    info: ObjectInfo
    start: int
    length: int


def start_of_end(size: int) -> int:
    """Return where the end of a file of `size` bytes begins, as far as it is fetched ahead."""
    return max(0, size - END) // PIECE * PIECE


@dataclass(slots=True, eq=False)
class Walk:
    """One order in which files are read.

    Attributes:
        furthest: the greatest position read.
        issued: all before it were asked for or read.
        head, end: whether the first block, and the end, are wanted of large files.

    """

    files: dict[int, ObjectInfo]
    positions: dict[tuple[str, str], int]
    read: set[int]
    length: int = 1
    furthest: int = 0
    issued: int = 1
    crossed: dict[int, int] = field(default_factory=dict)
    head: bool = False
    end: bool = False

    def begun(self, offset: int, size: int) -> None:
        """Take in where the first read of a file of `size` bytes began; a small one says nothing of large ones."""
        if start_of_end(size):
            self.end = start_of_end(size) <= offset
            self.head = self.head if self.end else offset == 0

    def learn(self, position: int, following: Sequence[ObjectInfo]) -> None:
        """Take in the files behind the one at `position`. Others may have read on meanwhile: what is forgotten by now stays so."""
        for at, info in enumerate(following, position + 1):
            if at <= self.furthest - KEPT:
                continue
            known = self.files.get(at)
            if known is not None:
                if known == info:
                    continue
                self._forget(known, at)
            self.files[at] = info
            self.positions[info.provider, info.key] = at

    def _forget(self, info: ObjectInfo, at: int) -> None:
        name = (info.provider, info.key)
        if self.positions.get(name) == at:  # else it has moved: a file before it was deleted or added
            del self.positions[name]

    def advance(self, position: int) -> None:
        """Count a file that continues the walk."""
        self.length += 1
        self.read.add(position)
        for at in range(self.furthest, position):
            level = _level(self.files.get(at), self.files.get(at + 1))
            if level is not None:
                self.crossed[level] = self.crossed.get(level, 0) + 1
            old = at - KEPT
            gone = self.files.pop(old, None)
            self.read.discard(old)
            if gone is not None:
                self._forget(gone, old)
        self.furthest = max(self.furthest, position)
        self.issued = max(self.issued, position + 1)

    def window(self) -> int:
        """Return how many files behind the furthest one are wanted at most."""
        return 0 if self.length < 2 else min(WIDEST, 2 * self.length, 1 << (self.length - 1))

    def _ranges(self, size: int, block: int) -> list[tuple[int, int]]:
        if size <= block:
            return [(0, size)]
        found = []
        if self.end and start_of_end(size):  # first: it is read first
            found.append((start_of_end(size), size - start_of_end(size)))
        if self.head:
            found.append((0, block))
        return found

    def wanted(self, block: int, budget: int) -> list[Wanted]:
        """Return what to fetch now, nearest first."""
        found: list[Wanted] = []
        last = self.furthest + self.window()
        at = self.furthest
        while at < last:
            at += 1
            info = self.files.get(at)
            if info is None:
                break
            level = _level(self.files.get(at - 1), info)
            if level is not None and self.crossed.get(level, 0) < SURE:
                last = min(last, at - 1 + max(2 * self.crossed.get(level, 0), self.length // CAREFUL))
                if at > last:
                    break
            ranges = self._ranges(info.size, block)
            budget -= sum(length for _, length in ranges)
            if budget < 0:
                break
            if at >= self.issued:
                found += [Wanted(at, info, start, length) for start, length in ranges]
        return found


class Walks:
    """The walks of one mount. Not locked: the caller lets one thread in at a time."""

    def __init__(self, block: int, budget: int) -> None:
        """Want first blocks of `block` bytes, `budget` bytes in all at most."""
        self._block = block
        self._budget = budget
        self._walks: list[Walk] = []  # the most recently continued last

    def note(self, info: ObjectInfo, offset: int = 0) -> tuple[Walk, int, int] | None:
        """Take in the first read of an open file, which began at `offset`.

        Returns the walk that it continues or begins, its position there, and how many of the files behind it `learn` needs (0: none); None where
        there is nothing to be done.
        """
        name = (info.provider, info.key)
        for walk in reversed(self._walks):
            position = walk.positions.get(name)
            if position is None:
                continue
            if position in walk.read:
                return None
            if position > walk.furthest + NEAR:
                self._walks.remove(walk)
                break
            walk.begun(offset, info.size)
            walk.advance(position)
            self._walks.remove(walk)
            self._walks.append(walk)
            return walk, position, 2 * WIDEST if walk.furthest + walk.window() + NEAR not in walk.files else 0
        walk = Walk({0: info}, {name: 0}, {0})
        self._walks.append(walk)
        del self._walks[:-MOST_WALKS]
        return walk, 0, NEAR

    def ended(self, info: ObjectInfo, *, head: bool) -> None:
        """Take in whether a large file that was closed was read in its first block, and not only here and there."""
        for walk in self._walks:
            if (info.provider, info.key) in walk.positions:
                walk.head = head

    def wanted(self, walk: Walk) -> list[Wanted]:
        """Return what to fetch now of files of `walk`; it isn't wanted again unless it is given back."""
        active = sum(other.length > 1 for other in self._walks)
        found = walk.wanted(self._block, self._budget // max(1, active))
        if found:
            walk.issued = found[-1].position + 1
        return found

    def give_back(self, walk: Walk, position: int) -> None:
        """The files from `position` on couldn't be fetched now."""
        walk.issued = max(walk.furthest + 1, min(walk.issued, position))


def _level(one: ObjectInfo | None, other: ObjectInfo | None) -> int | None:
    """Return how many folders two neighbours share, or None where they are in the same one."""
    if one is None or other is None:
        return None
    left, right = one.key.split("/")[:-1], other.key.split("/")[:-1]
    if left == right:
        return None
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
