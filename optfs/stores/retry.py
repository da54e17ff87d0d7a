"""Tries again what may work the second time, within the deadline. Everything above the stores sees only stores with this around them.

Rules:

- Worth another try: ServiceUnavailable and InvalidResponse. Everything else is an answer.
- Between tries there is a pause of random length, growing from `FIRST_PAUSE` to `LONGEST_PAUSE` on average; `retry_after` takes its place
  where the service asks for a pause. A try that the deadline would cut off isn't made: the last failure is raised, which says more.
- A read goes on where it broke off: what has arrived of a pinned version is right. Tries that brought bytes aren't counted.
- A rejected credential is renewed once an operation (`CredentialSource.reject` lets many who were refused share one renewal).
- Each change of state is logged once: the store fails, the store works again.

Lock: `_state_lock` guards `_failing`, a leaf. No lock is held over a request or a pause.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from optfs.credentials.protocol import CredentialSource
from optfs.errors import AccessError, DeadlineExceeded, InvalidResponse, OptfsError, ServiceUnavailable
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress, Store
from optfs.stores.rejection import RejectedCredential
from optfs.values import AccountRoot, Clock, Deadline, ListPage, ObjectInfo

logger = logging.getLogger(__name__)

TRIES = 8
"""Without a byte of progress. With the pauses below some 10 s on average: an outage that takes longer is told to the user."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
LEAST = 0.1
"""Seconds that a try must have left to be made at all."""

Pause = Callable[[float], None]


class RetryingStore:
    """A store around another; see `stores.protocol.Store`."""

    def __init__(
        self,
        store: Store,
        source: CredentialSource,
        counters: StoreCounters,
        *,
        clock: Clock = time.monotonic,
        pause: Pause = time.sleep,
        dice: random.Random | None = None,
    ) -> None:
        """Wrap `store`, whose requests carry what `source` holds.

        Args:
            store: what is asked.
            source: told of rejected credentials.
            counters: where retries are counted.
            clock: monotonic.
            pause: waits so many seconds.
            dice: for the pauses' lengths.

        """
        self._store = store
        self._source = source
        self._counters = counters
        self._clock = clock
        self._pause = pause
        self._dice = dice or random.Random()  # noqa: S311 - jitter
        self._state_lock = threading.Lock()
        self._failing = False  # guarded by _state_lock

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._store.root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see the protocol."""
        rounds = _Rounds(self, deadline)
        while True:
            try:
                page = self._store.list_page(prefix, delimiter=delimiter, continuation=continuation, deadline=deadline)
            except OptfsError as error:
                rounds.failed(error, progressed=False)
            else:
                self._works()
                return page

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see the protocol."""
        rounds = _Rounds(self, deadline)
        filled = 0
        while True:
            told = _Told(filled, progress)
            try:
                self._store.read_into(info, start + filled, buffer[filled:], told, deadline)
            except OptfsError as error:
                progressed = told.filled > filled
                filled = told.filled
                if filled == len(buffer):  # all is there; only the end of the exchange failed
                    break
                rounds.failed(error, progressed=progressed)
            else:
                break
        self._works()

    def close(self) -> None:
        """Close idle connections."""
        self._store.close()

    def renew(self, error: RejectedCredential, deadline: Deadline) -> None:
        """Have a rejected credential renewed."""
        self._source.reject(error.credential, max(LEAST, deadline.remaining()))
        self._counters.renewal()

    def wait(self, error: OptfsError, tries: int, deadline: Deadline) -> None:
        """Pause before the next try, or raise `error` where none would fit."""
        asked = error.retry_after if isinstance(error, ServiceUnavailable) else None
        seconds = asked if asked is not None else min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries) * self._dice.random()
        if tries >= TRIES or deadline.remaining() < seconds + LEAST:
            self.give_up(error)
        self._counters.retry()
        if seconds > 0:
            self._pause(seconds)

    def give_up(self, error: OptfsError) -> None:
        """Count, log and raise a failure."""
        self._counters.error()
        if isinstance(error, ServiceUnavailable | InvalidResponse | AccessError | DeadlineExceeded):
            with self._state_lock:
                first, self._failing = not self._failing, True
            if first:
                logger.warning("requests to %s fail: %s (%s)", self._store.root.bucket, error, error.detail)
        raise error

    def _works(self) -> None:
        if not self._failing:  # read without the lock: a stale value costs one log line later
            return
        with self._state_lock:
            recovered, self._failing = self._failing, False
        if recovered:
            logger.info("requests to %s work again", self._store.root.bucket)


class _Rounds:
    """The tries of one operation."""

    def __init__(self, store: RetryingStore, deadline: Deadline) -> None:
        self._store = store
        self._deadline = deadline
        self._tries = 0
        self._renewed = False

    def failed(self, error: OptfsError, *, progressed: bool) -> None:
        """Return when another try is to be made; raise otherwise."""
        if progressed:
            self._tries = 0
        if isinstance(error, RejectedCredential) and not self._renewed:
            self._renewed = True
            try:
                self._store.renew(error, self._deadline)
            except OptfsError as failure:
                self._store.give_up(failure)
            return
        if not isinstance(error, ServiceUnavailable | InvalidResponse):
            self._store.give_up(error)
        self._tries += 1
        self._store.wait(error, self._tries, self._deadline)


class _Told:
    """Passes progress on, counted from the start of the whole buffer."""

    def __init__(self, base: int, progress: Progress) -> None:
        self._base = base
        self._progress = progress
        self.filled = base

    def __call__(self, filled: int) -> None:
        self.filled = self._base + filled
        self._progress(self.filled)
