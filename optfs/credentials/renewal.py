"""A credential that is always fresh: one background thread an account and provider renews it before its time.

Algorithm: `RenewingSource` holds the last grant and its term (`schedule.Term`). The thread sleeps until the term says so, or until a
reader needs a renewal now, asks once, and wakes all who wait. Readers never ask themselves: a renewal has one asker, so it is single-flight
by itself.

Rules:

- `current` returns at once while the held credential is usable. Otherwise it waits for the thread.
- `reject` asks for a renewal unless the credential is no longer the held one. Of many readers who reject the same credential the first one
  starts the renewal and all wait for it. What was itself made by force and never accepted since (`accept`) is renewed again after a pause
  only, as after a failure (`schedule.pause`); during it CredentialRejected is raised, as the store refuses what is fresh.
- After a failure those who wait get the failure at once, and the next try comes after a pause; who comes meanwhile, or during that try,
  gets the failure too. To them an API that fails is missing access (NotRenewed).
- Each change of state is logged once: renewal fails, renewal works again; what `close` ends is no failure.
- Nothing ends the thread before `close`: what isn't foreseen, wherever it is raised, is a failed renewal, after which the thread rests `REST`.

Threads: `renew-<provider>` runs `_run`; everything else is called by any thread.
Lock: `_changed` guards all fields below it; it is never held over a request.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from optfs.credentials import schedule
from optfs.credentials.protocol import Credential, Grant
from optfs.errors import (
    AccessError,
    CredentialRejected,
    DeadlineExceeded,
    NotRenewed,
    OptfsError,
    ServiceError,
    ServiceUnavailable,
    bare,
)
from optfs.values import AccountRoot, Clock, Provider

logger = logging.getLogger(__name__)

REST = 1.0
"""Seconds after what isn't foreseen: it may be raised again at once."""

Wait = Callable[[threading.Condition, float], object]

LOOK_AGAIN = 1.0
"""Seconds: waits look at their clocks this often, which need not be the clock that threads sleep by."""


@dataclass(frozen=True, slots=True)
class RenewalStatus:
    """What `optfs status` shows of a credential; no secret.

    Attributes:
        expires_at: seconds since the epoch, as announced, or as guessed where nothing is.
        last_refresh: seconds since the epoch.
        last_error: why the last renewal failed; empty when it didn't.
        renewals: how many succeeded.

    """

    provider: Provider
    account: str
    bucket: str
    expires_at: float | None
    last_refresh: float
    last_error: str
    renewals: int


def awake_clock() -> float:
    """Return seconds of a clock that also counts while the computer sleeps, where there is one: credentials age meanwhile."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class RenewingSource:
    """Implements `credentials.protocol.CredentialSource` for temporary credentials."""

    def __init__(
        self,
        provider: Provider,
        fetch: Callable[[], Grant],
        *,
        requested: float,
        clock: Clock = awake_clock,
        wall_clock: Clock = time.time,
        dice: random.Random | None = None,
        wait: Wait = threading.Condition.wait,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        """Make a source that holds nothing yet; `start` it.

        Args:
            provider: for the thread's name and the log.
            fetch: asks for a grant; raises an OptfsError.
            requested: the lifetime that is asked for, seconds.
            clock: monotonic.
            wall_clock: seconds since the epoch.
            dice: for jitter.
            wait: waits for a condition that is held, so many seconds at most.
            on_close: ends what `fetch` is at.

        """
        self._provider = provider
        self._fetch = fetch
        self._requested = requested
        self._clock = clock
        self._wall_clock = wall_clock
        self._dice = dice or random.Random()  # noqa: S311 - jitter
        self._wait = wait
        self._on_close = on_close
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed: all below. Invariant: _term belongs to _grant, and both are None before the first grant only.
        self._grant: Grant | None = None
        self._term: schedule.Term | None = None
        self._unproven: schedule.Setback | None = None  # credentials in a row that no store accepted, if _grant was made by force
        self._elsewhere = False  # whether the last answer named another bucket than the first
        self._wanted = False
        self._force_next = False
        self._running = False
        # Invariant: both are None, or neither is.
        self._setback: schedule.Setback | None = None
        self._error: OptfsError | None = None
        self._last_refresh = 0.0
        self._renewals = 0
        self._guess = schedule.Guess(requested)
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def root(self) -> AccountRoot:
        """Where the account's data lies; see the protocol."""
        with self._changed:
            if self._grant is None:
                raise AccessError("there are no credentials yet")
            return self._grant.root

    def start(self) -> Grant:
        """Ask for the first grant in the caller's thread, then start the thread.

        Raises:
            OptfsError: what asking raised.

        """
        started = self._clock()
        grant = self._fetch()
        with self._changed:
            self._take(grant, started, forced=False)
            self._thread = threading.Thread(target=self._run, name=f"renew-{self._provider}", daemon=True)
        self._thread.start()
        return grant

    def close(self, timeout: float = 5.0) -> None:
        """End the thread; a request under way that doesn't end is left behind after `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._on_close()
        if self._thread is not None:
            self._thread.join(timeout)

    def current(self, timeout: float) -> Credential:
        """Return a usable credential; see the protocol."""
        with self._changed:
            if self._grant is not None and self._usable(self._clock()):
                return self._grant.credential
            return self._await(timeout, None)

    def reject(self, credential: Credential, timeout: float) -> Credential:
        """Return a newer credential than one that a store refused; see the protocol."""
        with self._changed:
            assert self._grant is not None  # somebody held a credential
            assert self._term is not None
            now = self._clock()
            if self._grant.credential is not credential:
                if self._usable(now):
                    return self._grant.credential
                return self._await(timeout, None)
            if self._unproven is not None and now < self._unproven.retry_at(self._unproven.at):
                raise CredentialRejected(
                    "the service refuses credentials that were just renewed; check that the token's user has access to the export"
                )
            if not self._force_next:  # the first of many who reject it
                self._guess = self._guess.rejected(now - self._term.start)
            self._force_next = True
            return self._await(timeout, credential)

    def accept(self, credential: Credential) -> None:
        """Tell that a store accepted what `reject` returned; see the protocol."""
        with self._changed:
            if self._grant is not None and self._grant.credential is credential:
                self._unproven = None

    def status(self) -> RenewalStatus:
        """Return what `optfs status` shows."""
        with self._changed:
            assert self._grant is not None  # asked for after `start` only
            root = self._grant.root
            return RenewalStatus(
                provider=self._provider,
                account=root.account,
                bucket=root.bucket,
                expires_at=self._grant.credential.expires_at,
                last_refresh=self._last_refresh,
                last_error="" if self._error is None else self._error.message,
                renewals=self._renewals,
            )

    def _usable(self, now: float) -> bool:
        return self._term is not None and now < self._term.unusable_at

    def _await(self, timeout: float, rejected: Credential | None) -> Credential:
        """Wait for a credential other than `rejected`, or for the failure of a renewal. Called with the lock."""
        now = self._clock()
        end = now + timeout
        if self._error is not None and (self._running or now < self._retry_at()):
            self._changed.notify_all()  # a pause may have become shorter
            raise _again(self._error)
        before = self._setback
        self._wanted = True
        self._changed.notify_all()
        while True:
            now = self._clock()
            if self._grant is not None and self._usable(now) and self._grant.credential is not rejected:
                return self._grant.credential
            if self._error is not None and self._setback is not before:
                raise _again(self._error)
            if self._closed:
                raise AccessError("the mount is ending")
            if now >= end:
                raise DeadlineExceeded("renewing the credentials took longer than --timeout")
            self._wait(self._changed, min(end - now, LOOK_AGAIN))

    def _retry_at(self) -> float:
        """Return when the next try after a failure is due; in the past where there was none. Called with the lock."""
        if self._setback is None or self._term is None:
            return self._clock()
        return self._setback.retry_at(self._setback.at if self._force_next else self._term.unusable_at)

    def _run(self) -> None:
        failure: BaseException | None = None
        going = True
        while going:
            try:
                if failure is not None:
                    self._survive(failure)
                    failure = None
                going = self._turn()
            except BaseException as error:  # noqa: BLE001 - handled in the next round, which may find no memory either
                failure = error

    def _turn(self) -> bool:
        """Wait until it is time to renew, and renew; return False when everything ends."""
        if not self._sleep():
            return False
        started = self._clock()
        try:
            grant = self._fetch()
        except OptfsError as error:
            self._failed(error)
        else:
            self._renewed(grant, started)
        return True

    def _survive(self, failure: BaseException) -> None:
        """Take what isn't foreseen for a failed renewal, and rest."""
        try:
            if isinstance(failure, MemoryError):
                self._failed(AccessError("there is no memory to renew the credentials", detail="MemoryError"))
            else:
                self._failed(AccessError("the credentials can't be renewed; see the log"), failure)
        finally:
            time.sleep(REST)

    def _sleep(self) -> bool:
        """Wait until it is time to renew; return False when everything ends."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                assert self._term is not None  # started with a grant
                due = self._retry_at() if self._setback else now if self._wanted else self._term.renew_at
                if now >= due:
                    self._wanted = False
                    self._running = True
                    return True
                self._wait(self._changed, min(due - now, LOOK_AGAIN))
            return False

    def _renewed(self, grant: Grant, started: float) -> None:
        with self._changed:
            recovered = self._setback is not None
            self._take(grant, started, forced=self._force_next)
            self._running = False
            self._changed.notify_all()
        if recovered:
            logger.info("credentials for %s are renewed again", self._provider)
        else:
            logger.debug("credentials for %s were renewed", self._provider)

    def _failed(self, error: OptfsError, bug: BaseException | None = None) -> None:
        """Tell those who wait, and note when to try again. `bug`: what isn't foreseen, for the log."""
        if not isinstance(error, AccessError | ServiceError):
            # A token file that vanished: to whoever reads a file that is no wrong usage, but missing access.
            error = AccessError(error.message, detail=error.detail)
        asked = error.retry_after if isinstance(error, ServiceUnavailable) else None
        kept = bare(error)
        with self._changed:
            first = self._error is None and not self._closed
            known = self._error is not None and self._error.message == kept.message
            count = 1 if self._setback is None else self._setback.count + 1
            self._setback = schedule.Setback(count, self._clock(), self._dice.random(), asked or 0.0)
            self._error = kept
            self._running = False
            self._changed.notify_all()
        if bug is not None:
            if not known:
                logger.error("renewing credentials for %s failed for a reason that isn't foreseen", self._provider, exc_info=bug)
        elif first:
            logger.warning("credentials for %s can't be renewed: %s (%s); trying again", self._provider, error, error.detail)

    def _take(self, grant: Grant, started: float, *, forced: bool) -> None:
        """Hold a grant. Called with the lock."""
        elsewhere = self._grant is not None and grant.root != self._grant.root
        if self._grant is not None and elsewhere:
            # The folders shown belong to the first answer; another bucket in the middle would be a tree of another account.
            grant = replace(grant, root=self._grant.root)
            if not self._elsewhere:
                logger.warning("the Authentication API names another bucket than before; staying with the first")
        elif self._elsewhere:
            logger.info("the Authentication API names the first bucket again")
        seconds = schedule.lifetime(grant.credential.expires_at, self._wall_clock(), self._requested)
        guess = self._guess
        if not grant.announced and not forced:
            guess = guess.lived()
        term = schedule.term(started, seconds, self._dice.random(), math.inf if grant.announced else guess.bound)
        unproven = self._unproven if forced else None
        if forced and self._setback is None:  # after a failure nobody waits who would tell that it was accepted
            count = 2 if self._unproven is None else self._unproven.count + 1  # the first is the one that was rejected
            unproven = schedule.Setback(count, self._clock(), self._dice.random())
        refreshed = self._wall_clock()
        renewals = self._renewals + 1
        # All or nothing: from here on nothing is raised.
        self._grant = grant
        self._term = term
        self._guess = guess
        self._unproven = unproven
        self._elsewhere = elsewhere
        self._force_next = False
        # Whoever waits is served by this grant; without this, those who came during the request would cause another one.
        self._wanted = False
        self._setback = None
        self._error = None
        self._last_refresh = refreshed
        self._renewals = renewals


def _again(error: OptfsError) -> OptfsError:
    """Return what those who need a credential are told."""
    if isinstance(error, ServiceError):
        return NotRenewed(f"the credentials can't be renewed: {error.message}", detail=error.detail)
    return bare(error)
