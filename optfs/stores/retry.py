"""Tries again what may work the second time, within the deadline. Everything above the stores sees only stores with this around them.

Rules:

- Worth another try: ServiceUnavailable, and InvalidResponse a few times. Everything else is an answer.
- Between tries there is a pause of random length (full jitter), up to a bound that doubles from `FIRST_PAUSE` to `LONGEST_PAUSE`; where
  the service asks for a longer one (Retry-After), that one is made. It may ask for none, or name a moment that is past by our clock: eight
  tries within 6 ms helped nobody.
- A try that the deadline would cut off isn't made. When time runs out, the last failure is raised if the service did answer, as it says
  more; DeadlineExceeded if there was only silence.
- A read goes on where it broke off: what has arrived of a pinned version is right. Only tries in a row that brought no byte are counted.
- A rejected credential is renewed once (`CredentialSource.reject` lets many who were refused share one renewal). If the renewed one
  is rejected before it brought a byte, the operation ends. Its first byte shows it to be accepted, and from then on it may be renewed in turn.
- Each change of state is logged once: the store fails, the store works again.

Lock: `_state_lock` guards `_failing`, a leaf. No lock is held over a request or a pause.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from optfs.credentials.protocol import Credential, CredentialSource
from optfs.errors import (
    Abandoned,
    AccessDenied,
    AccessError,
    DeadlineExceeded,
    InvalidResponse,
    OptfsError,
    ServiceError,
    ServiceUnavailable,
    bare,
)
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress, Store
from optfs.stores.receiver import NoDescriptor, Stalled
from optfs.stores.rejection import RejectedCredential
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo

logger = logging.getLogger(__name__)

TRIES = 8  # without a byte of progress; the seven pauses between take 5.65 s on average: an outage that takes longer is told to the user
INVALID_TRIES = 3  # a proxy's page seldom goes away by asking again
FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 5.0  # seconds
LEAST = 0.1  # seconds that a try must have left to be made at all

Pause = Callable[[float], None]


class RetryingStore:
    """A store around another; implements `stores.protocol.Store`."""

    def __init__(
        self,
        store: Store,
        source: CredentialSource,
        counters: StoreCounters,
        *,
        pause: Pause = time.sleep,
        dice: Callable[[], float] = random.random,
    ) -> None:
        """Wrap `store`, whose requests carry what `source` holds.

        Args:
            store: what is asked.
            source: told of rejected credentials.
            counters: where retries are counted.
            pause: waits so many seconds.
            dice: gives numbers in [0, 1), for the pauses' lengths.

        """
        self._store = store
        self._source = source
        self._counters = counters
        self._pause = pause
        self._dice = dice
        self._state_lock = threading.Lock()
        self._failing = False  # guarded by _state_lock

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._store.root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`. What it raises is final."""
        tries = _Tries(self, deadline)
        while True:
            try:
                page = self._store.list_page(prefix, delimiter=delimiter, continuation=continuation, deadline=deadline)
            except OptfsError as error:
                tries.failed(error, progressed=False)
            else:
                tries.accepted()
                self._works()
                return page

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`. What it raises is final."""
        tries = _Tries(self, deadline)
        filled = 0
        while True:
            told = _Told(filled, progress, tries)
            try:
                self._store.read_into(info, start + filled, buffer[filled:], told, deadline)
            except OptfsError as error:
                progressed = told.filled > filled
                filled = told.filled
                if filled == len(buffer):  # all is there; only the end of the exchange failed
                    break
                tries.failed(error, progressed=progressed)
            else:
                break
        self._works()

    def close(self) -> None:
        """Close idle connections."""
        self._store.close()

    def renew(self, error: RejectedCredential, deadline: Deadline) -> Credential:
        """Return what replaces a rejected credential; raise what says that nothing does."""
        try:
            renewed = self._source.reject(error.credential, max(LEAST, deadline.remaining()))
        except OptfsError as failure:
            self.give_up(failure)
        self._counters.renewal()
        return renewed

    def accept(self, credential: Credential) -> None:
        """Tell that what `renew` returned is accepted."""
        self._source.accept(credential)

    def wait(self, error: ServiceError, tries: int, deadline: Deadline) -> None:
        """Pause before the next try, or raise why none is made."""
        limit = INVALID_TRIES if isinstance(error, InvalidResponse) else TRIES
        if tries >= limit:
            self.give_up(error)
        asked = error.retry_after if isinstance(error, ServiceUnavailable) else None
        seconds = max(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (tries - 1)) * self._dice(), asked or 0.0)
        if deadline.remaining() < seconds + LEAST:
            self.give_up(error if not isinstance(error, Stalled) else DeadlineExceeded(error.message, detail=error.detail))
        self._counters.retry()
        if seconds > 0:
            self._pause(seconds)

    def give_up(self, error: OptfsError) -> NoReturn:
        """Count, log where it is news, and raise a failure."""
        self._counters.error()
        self.note(error)
        raise error

    def note(self, error: OptfsError) -> None:
        """Log a failure where it is news. That an object or a prefix is denied says nothing of the others; who asked for it tells."""
        if isinstance(error, ServiceError | AccessError | DeadlineExceeded) and not isinstance(error, AccessDenied):
            with self._state_lock:
                news, self._failing = not self._failing, True
            if news:
                logger.warning("requests to %s fail: %s (%s)", self._store.root.bucket, error.message, error.detail)

    def _works(self) -> None:
        if not self._failing:  # read without the lock: a stale value delays one line of the log
            return
        with self._state_lock:
            recovered, self._failing = self._failing, False
        if recovered:
            logger.info("requests to %s work again", self._store.root.bucket)


class _Tries:
    """The tries of one operation, made by one thread."""

    def __init__(self, store: RetryingStore, deadline: Deadline) -> None:
        self._store = store
        self._deadline = deadline
        self._fruitless = 0
        self._invalid = 0  # of those, answers that weren't the service's
        self._renewed: Credential | None = None  # not known to be accepted yet
        self._answered: ServiceError | None = None  # the last failure that the service itself told of

    def accepted(self) -> None:
        """Note that the service gave something."""
        if self._renewed is not None:
            self._store.accept(self._renewed)
            self._renewed = None

    def failed(self, error: OptfsError, *, progressed: bool) -> None:
        """Return when another try is to be made; raise otherwise."""
        if progressed:
            self._fruitless = self._invalid = 0
        if self._deadline.abandoned():
            if self._fruitless:  # not for a single failure
                self._store.note(error)
            raise Abandoned("nobody waits for it any more")
        if isinstance(error, RejectedCredential):
            if self._renewed is not None:
                message = "the service refuses credentials that were just renewed; check that the token's user has access to the export"
                self._store.give_up(AccessDenied(message, detail=error.detail))
            self._renewed = self._store.renew(error, self._deadline)
            return
        if isinstance(error, DeadlineExceeded) and self._answered is not None:
            self._store.give_up(self._answered)
        if not isinstance(error, ServiceUnavailable | InvalidResponse):
            self._store.give_up(error)
        if isinstance(error, NoDescriptor):  # it is over when requests of our own are; until the deadline, however often
            self._store.wait(error, 0, self._deadline)
            return
        self._answered = None if isinstance(error, Stalled) else bare(error)
        self._fruitless += 1
        self._invalid += isinstance(error, InvalidResponse)
        self._store.wait(error, self._invalid if isinstance(error, InvalidResponse) else self._fruitless, self._deadline)


class _Told:
    """Passes progress on, counted from the start of the whole buffer; whoever gives bytes accepts the credential."""

    def __init__(self, base: int, progress: Progress, tries: _Tries) -> None:
        self._base = base
        self._progress = progress
        self._tries = tries
        self.filled = base

    def __call__(self, filled: int) -> None:
        self._tries.accepted()
        self.filled = self._base + filled
        self._progress(self.filled)
