"""Tells a walk over files from single opens, and which files to fetch before they are opened. Pure.

A file continues a walk when it is among the `REACH` files that follow one opened before it: readers that open several files at once stay a
walk. After `RUN` such opens the next files are wanted: twice as many as the walk is long, at most `WIDEST`, and no more bytes than the
caller allows. So a walk that ends after n files has fetched at most 2n for nothing, and a long one at most `WIDEST`.

An open that continues nothing begins a new walk; what was wanted for the old one isn't asked for again.
"""

from collections.abc import Sequence

from optfs.values import ObjectInfo

REACH = 8
RUN = 2
WIDEST = 32
REMEMBERED = 256


class Walk:
    """The order in which files of one mount are opened. Not locked: the caller lets one thread in at a time."""

    def __init__(self) -> None:
        self._expected: dict[str, None] = {}  # keys that would continue the walk, oldest first
        self._opened: dict[str, None] = {}  # keys opened lately, oldest first
        self.length = 0

    def opened(self, info: ObjectInfo, following: Sequence[ObjectInfo], allowed: int) -> list[ObjectInfo]:
        """Take in an open; return the files to fetch now, in order, of `allowed` bytes in all at most.

        Args:
            info: the file that is opened.
            following: the files behind it, `WIDEST` or fewer.
            allowed: bytes.

        """
        if info.key in self._expected:
            self.length += 1
        elif info.key not in self._opened:
            self.length = 1
            self._expected.clear()
        self._opened.pop(info.key, None)
        self._opened[info.key] = None
        for file in following[:REACH]:
            self._expected.pop(file.key, None)
            self._expected[file.key] = None
        _trim(self._expected)
        _trim(self._opened)
        if self.length < RUN:
            return []
        wanted = []
        for file in following[: min(WIDEST, 2 * self.length)]:
            if file.key in self._opened:
                continue
            allowed -= file.size
            if allowed < 0:
                break
            wanted.append(file)
        return wanted


def _trim(keys: dict[str, None]) -> None:
    while len(keys) > REMEMBERED:
        del keys[next(iter(keys))]
