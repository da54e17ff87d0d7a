"""One fetch in flight: a range of one version on its way into memory, shared by all readers that want it.

Life: QUEUED → RUNNING → DONE or FAILED, and QUEUED → FAILED when it is cancelled, its last reader leaves, or its store may take no more
room (`give_up`). Bytes become readable as they arrive: `filled` (the watermark) only grows, and a reader that needs no more than that returns
although the rest is still on its way, and although the rest may fail later.

The pool's queue holds a `Ticket`, not the fetch, and a ticket forgets its fetch when a worker takes it: a fetch that was queued twice (ahead,
then again because a reader came) would otherwise keep its buffer alive until the second job's turn.

Locks: `Fetch._changed` is a leaf and guards what stands below its comment, but for looks at one field alone; nobody calls out under it. The lock of
`blocks.Blocks` guards `used`, `passed`, `admitted` and `bound`, and `spare` before the fetch is admitted and after it was given up.
"""

import threading
from enum import Enum

from optfs.buffers import Buffer, allocate
from optfs.errors import DeadlineExceeded, OptfsError, ServiceUnavailable, bare
from optfs.values import LOOK_AGAIN, Deadline, ObjectInfo

Ident = tuple[str, str, str]
"""One version of one object: provider, key, version."""

Part = tuple[Ident, int, int]
"""Names a range in memory: whose, its start, its length in bytes."""


class State(Enum):
    """Where a fetch is in its life."""

    QUEUED = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


class Ticket:
    """What waits in the pool's queue for one fetch; forgets it once it was taken or cancelled."""

    __slots__ = ("fetch",)

    def __init__(self, fetch: "Fetch") -> None:
        self.fetch: Fetch | None = fetch


class Fetch:
    """A range on its way. `parts` are the entries that memory will hold of it: one block, or a run of adjacent pieces."""

    __slots__ = (
        "_changed",
        "_deserted",
        "_error",
        "_filled",
        "_looked",
        "_state",
        "_view",
        "_waiting",
        "_wanted",
        "admitted",
        "asked_at",
        "bound",
        "demanded",
        "found",
        "gave_up",
        "info",
        "length",
        "missed",
        "parts",
        "passed",
        "spare",
        "speculative",
        "start",
        "ticket",
        "used",
    )

    def __init__(self, info: ObjectInfo, parts: tuple[Part, ...], *, demanded: bool) -> None:
        self.info = info
        self.parts = parts
        self.start = parts[0][1]
        self.length = parts[-1][1] + parts[-1][2] - self.start
        self.ticket = Ticket(self)
        self.used = demanded
        """Whether a reader was given it; guarded by the lock of `blocks.Blocks`, which sorts its parts by that when they land."""
        self.admitted = False
        """Whether room is taken for it; guarded as `used` is."""
        self.bound = not demanded
        """Whether a store may have to bring it, so that its room counts as that store's; guarded as `used` is."""
        self.passed = False
        """Whether a stream has passed it, or the file that it was fetched ahead for was closed, so that its parts needn't be kept when they land;
        guarded as `used` is."""
        self.missed = False
        """Whether a store is to bring it, or what `found` lacks: written when it is made, by the look, or by a reader that waits for that no longer,
        each before it queues the fetch for the store."""
        self.found: list[bytes | Buffer | None] | None = None
        """What the block cache has of each part, if it has some and not all; written by the look, before `missed` is."""
        self.asked_at = float("inf")
        """When a reader first wanted it of the block cache, by the mount's clock; written once, before that is queued."""
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed: all below. Invariants: _filled never falls; bytes of _view below _filled never change.
        self.demanded = demanded
        """Whether a reader waits or waited for it."""
        self.speculative = not demanded
        """Whether it began, was cancelled or broke off while no reader wanted it: its failure is then no answer to a reader."""
        self.gave_up = False
        """Whether it ended since its store might take no more room."""
        self.spare: Buffer | None = None
        """A buffer of exactly `length` bytes to fill, if memory had one; goes to who takes it, and back if the block cache had nothing."""
        self._state = State.QUEUED
        self._looked = False
        """Whether a look has begun: there is one for a fetch, though it may be queued twice."""
        self._filled = 0
        self._wanted = 0
        """The smallest watermark that would let a waiting reader go; 0: nobody waits."""
        self._waiting = 0
        """How many readers wait."""
        self._deserted = False
        """Whether the last reader that waited left without its bytes, or has them from elsewhere."""
        self._view: memoryview | None = None
        self._error: OptfsError | None = None

    @property
    def filled(self) -> int:
        """The watermark: bytes from `start` on that may be read."""
        return self._filled

    @property
    def failed(self) -> bool:
        """Whether no more bytes will come."""
        return self._error is not None

    @property
    def begun(self) -> bool:
        """Whether it is queued no more, and never will be again."""
        return self._state is not State.QUEUED

    @property
    def looked(self) -> bool:
        """Whether a look for it has begun."""
        return self._looked

    def demand(self) -> bool:
        """Note that a reader wants it; return whether it must be queued again, as demand."""
        with self._changed:
            promote = self._state is State.QUEUED and not self.demanded
            self.demanded = True
            self._deserted = False
            return promote

    def begin_look(self) -> bool:
        """Take it for a look; return False when another did."""
        with self._changed:
            looked, self._looked = self._looked, True
            return not looked

    def begin(self) -> bool:
        """Take it for a worker; return False when another did, or it was cancelled."""
        with self._changed:
            if self._state is not State.QUEUED:
                return False
            self._state = State.RUNNING
            self.speculative = not self.demanded
            self.ticket.fetch = None
            return True

    def cancel(self) -> bool:
        """End it if it is queued and no reader wants it; return whether that was so."""
        with self._changed:
            if self._state is not State.QUEUED or self.demanded:
                return False
            self._end(State.FAILED, ServiceUnavailable("the fetch was cancelled"))
            return True

    def leave(self) -> bool:
        """A reader wants it no more. Return whether nobody does and it was queued: it has ended then."""
        with self._changed:
            if self._waiting or self._state in {State.DONE, State.FAILED}:
                return False
            self._deserted = True
            if self._state is not State.QUEUED:
                return False
            self.speculative = True
            self._end(State.FAILED, ServiceUnavailable("the fetch was cancelled"))
            return True

    def give_up(self) -> bool:
        """End it if no worker has begun it, so that its readers demand it anew; return whether that was so."""
        with self._changed:
            if self._state is not State.QUEUED:
                return False
            self.speculative = self.gave_up = True
            self._end(State.FAILED, ServiceUnavailable("the fetch was cancelled"))
            return True

    def deserted(self) -> bool:
        """Return whether nobody wants it any more, so that its worker may break off; who comes after that has to begin anew."""
        with self._changed:
            if self._deserted:
                self.speculative = True
            return self._deserted

    def take_buffer(self) -> Buffer:
        """Return a buffer that nobody else fills, of `length` bytes, whose contents are undefined."""
        with self._changed:
            spare, self.spare = self.spare, None
        return allocate(self.length) if spare is None else spare

    def keep_buffer(self, buffer: Buffer) -> None:
        """Take a buffer back, for the worker that will begin."""
        with self._changed:
            if self._state is State.QUEUED:
                self.spare = buffer

    def fill(self, view: memoryview) -> None:
        """Set the buffer that bytes will arrive in, unless they have come from elsewhere meanwhile (`overtake`)."""
        with self._changed:
            if not self._filled:
                self._view = view

    def advance(self, filled: int) -> None:
        """Raise the watermark to `filled` bytes."""
        with self._changed:
            self._filled = max(self._filled, filled)
            if 0 < self._wanted <= self._filled:
                self._wanted = 0
                self._changed.notify_all()

    def overtake(self, view: memoryview) -> None:
        """The block cache had all bytes after all: readers needn't wait for the store that brings them, whose worker may break off."""
        with self._changed:
            if self._state is State.RUNNING:
                self._view = view
                self._filled = self.length
                self._deserted = self.speculative = True
                self._wanted = 0
                self._changed.notify_all()

    def finish(self, view: memoryview) -> None:
        """All bytes are there, in `view`. What an earlier view holds of them below the watermark is the same."""
        with self._changed:
            self._view = view
            self._filled = self.length
            self._end(State.DONE, None)

    def fail(self, error: OptfsError) -> None:
        """No more bytes will come; those below the watermark stay readable."""
        with self._changed:
            self._end(State.FAILED, bare(error))

    def _end(self, state: State, error: OptfsError | None) -> None:
        self._state = state
        self._error = error
        self.ticket.fetch = None
        self._wanted = 0
        self._changed.notify_all()

    def wait(self, upto: int, deadline: Deadline) -> memoryview:
        """Return the view of the whole range, as soon as its first `upto` bytes may be read.

        Raises:
            OptfsError: the fetch failed before that.
            DeadlineExceeded: the deadline passed first.
            Abandoned: nobody needs the bytes any more.

        """
        with self._changed:
            self._waiting += 1
            self._deserted = False
        try:
            return self._wait(upto, deadline)
        finally:
            with self._changed:
                self._waiting -= 1

    def _wait(self, upto: int, deadline: Deadline) -> memoryview:
        while True:
            with self._changed:
                while True:
                    if self._filled >= upto and self._view is not None:
                        return self._view
                    if self._error is not None:
                        raise bare(self._error)
                    left = deadline.remaining()
                    if left <= 0:
                        raise DeadlineExceeded("a read took longer than --timeout")
                    self._wanted = min(self._wanted, upto) if self._wanted else upto
                    if not self._changed.wait(min(left, LOOK_AGAIN)):
                        break
            deadline.check_abandoned()
