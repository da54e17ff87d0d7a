"""Buffers of blocks that left memory, kept to be filled again: new memory costs more than the copy into it.

Rules: a buffer is filled anew once nobody views it any more. What readers and the cache's writer still view of blocks that left is *lent*: it
isn't counted as room here (the writer bounds its own share), and is kept when it comes back. What waits for the writer is in flight until it has
taken it: on a slow disk 24 fetching threads held 100 MiB of evicted blocks otherwise.
"""

from optfs.buffers import Buffer, is_viewed

SPARES = 16
"""Buffers kept. With 8, a GiB met three times as many page faults; with 24 no fewer."""

LENT = 16
"""Buffers that are expected back; what is beyond is let go. On a slow disk the cache's writer has eight in hand, and readers some for a moment."""


class Spares:
    """Buffers of one length. Not locked: `blocks.Blocks` calls each method under its lock."""

    def __init__(self, length: int) -> None:
        """Keep buffers of `length` bytes alone."""
        self._length = length
        self._spare: list[Buffer] = []  # invariant: nobody views one
        self._lent: list[Buffer] = []

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self._spare) * self._length

    def keep(self, buffer: object, room: int) -> None:
        """Keep a buffer that left, if it is one to be filled again and fits into `room` bytes; one that is viewed counts as lent."""
        if not isinstance(buffer, Buffer) or len(buffer) != self._length:
            return
        if is_viewed(buffer):
            self._lent.append(buffer)
            del self._lent[:-LENT]
        elif len(self._spare) < SPARES and self._length <= room:
            self._spare.append(buffer)

    def take(self, room: int) -> Buffer | None:
        """Return a buffer to fill, or None: one that was lent and is back, for which there may be no room else, before one that is kept.

        What else is back is kept as far as it fits into `room` bytes.
        """
        back = self._back()
        found = back.pop() if back else None
        self._keep_all(back, room)
        return self._spare.pop() if found is None and self._spare else found

    def settle(self, room: int) -> None:
        """Keep what was lent and is back, as far as it fits into `room` bytes."""
        self._keep_all(self._back(), room)

    def _back(self) -> list[Buffer]:
        viewed = [is_viewed(buffer) for buffer in self._lent]
        back = [buffer for buffer, still in zip(self._lent, viewed, strict=True) if not still]
        self._lent = [buffer for buffer, still in zip(self._lent, viewed, strict=True) if still]
        return back

    def _keep_all(self, back: list[Buffer], room: int) -> None:
        self._spare += back[: max(0, min(SPARES - len(self._spare), room // self._length))]

    def let_go(self) -> bool:
        """Let go of a buffer that is kept; return whether there was one."""
        if self._spare:
            del self._spare[0]
            return True
        return False

    def clear(self) -> None:
        """Let go of all."""
        self._spare.clear()
        self._lent.clear()
