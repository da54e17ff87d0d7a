"""A credential that is always fresh: one background thread an account and provider renews it before its time.

Algorithm: `RenewingSource` holds the last grant and its term (`schedule.Term`). The thread sleeps until the term says so, or until a
reader needs a renewal now, asks once, and wakes all who wait. Readers never ask themselves: a renewal has one asker, so it is single-flight
by itself.

Rules:

- `current` returns at once while the held credential is usable. Otherwise it waits for the thread.
- `reject` asks for a renewal unless the credential is no longer the held one. Of many readers who reject the same credential the first one
  starts the renewal and all wait for it. A credential that was itself forced within the last `FORCED_AGAIN` seconds is not renewed once
  more: the store refuses what is fresh, so CredentialRejected is raised.
- After a failure those who wait get the failure at once, and the next try comes after a pause; who comes meanwhile gets the failure too.
- Each change of state is logged once: renewal fails, renewal works again.

Threads: `renew-<provider>` runs `_run`; everything else is called by any thread.
Lock: `_changed` guards all fields below it; it is never held over a request.
"""

import copy
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from optfs.credentials import schedule
from optfs.credentials.protocol import Credential, Grant
from optfs.errors import AccessError, CredentialRejected, DeadlineExceeded, OptfsError
from optfs.values import AccountRoot, Clock, Provider

logger = logging.getLogger(__name__)

FORCED_AGAIN = 5.0
"""Seconds after a forced renewal during which its fruit isn't renewed by force once more."""
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


class RenewingSource:
    """Implements `credentials.protocol.CredentialSource` for temporary credentials."""

    def __init__(
        self,
        provider: Provider,
        fetch: Callable[[], Grant],
        *,
        requested: float,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        dice: random.Random | None = None,
    ) -> None:
        """Make a source that holds nothing yet; `start` it.

        Args:
            provider: for the thread's name and the log.
            fetch: asks for a grant; raises an OptfsError.
            requested: the lifetime that is asked for, seconds.
            clock: monotonic.
            wall_clock: seconds since the epoch.
            dice: for jitter.

        """
        self._provider = provider
        self._fetch = fetch
        self._requested = requested
        self._clock = clock
        self._wall_clock = wall_clock
        self._dice = dice or random.Random()  # noqa: S311 - jitter
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed: all below. Invariant: _term belongs to _grant, and both are None before the first grant only.
        self._grant: Grant | None = None
        self._term: schedule.Term | None = None
        self._forced_at: float | None = None  # when _grant was made, if it was by force
        self._wanted = False
        self._force_next = False
        self._running = False
        self._retry_at = 0.0
        self._failures = 0
        self._error: OptfsError | None = None
        self._last_refresh = 0.0
        self._renewals = 0
        self._learned: float | None = None  # the shortest age at which a store rejected a credential whose expiry was a guess
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
        """End the thread; a request under way is left behind after `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def pause(self, seconds: float) -> bool:
        """Wait between tries of one renewal; return True at once when everything ends. For `ApiClient`."""
        end = self._clock() + seconds
        with self._changed:
            while not self._closed and (left := end - self._clock()) > 0:
                self._changed.wait(min(left, LOOK_AGAIN))
            return self._closed

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
            if self._forced_at is not None and now - self._forced_at < FORCED_AGAIN:
                raise CredentialRejected(
                    "the service refuses credentials that were just renewed; check that the token's user has access to the export"
                )
            if credential.expires_at is None or self._provider == "gcp":
                age = max(now - self._term.start, schedule.SHORTEST)
                self._learned = age if self._learned is None else min(self._learned, age)
            self._force_next = True
            return self._await(timeout, credential)

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
        end = self._clock() + timeout
        if self._error is not None and not self._running and self._clock() < self._retry_at and not self._force_only(rejected):
            raise _again(self._error)
        before = self._failures
        self._wanted = True
        self._changed.notify_all()
        while True:
            now = self._clock()
            if self._grant is not None and self._usable(now) and self._grant.credential is not rejected:
                return self._grant.credential
            if self._failures > before and self._error is not None:
                raise _again(self._error)
            if self._closed:
                raise AccessError("the mount is ending")
            if now >= end:
                raise DeadlineExceeded("renewing the credentials took longer than --timeout")
            self._changed.wait(min(end - now, LOOK_AGAIN))

    def _force_only(self, rejected: Credential | None) -> bool:
        """Whether a rejection comes while the former failure's pause hasn't ended, but nothing was forced yet. Called with the lock."""
        return rejected is not None and self._failures == 0

    def _run(self) -> None:
        while self._sleep():
            started = self._clock()
            try:
                grant = self._fetch()
                error = None
            except OptfsError as failure:
                error = failure
            except Exception as failure:  # a bug must not end the thread that everything depends on
                logger.exception("renewal failed for a reason that isn't foreseen")
                error = AccessError("the credentials can't be renewed; see the log")
                error.__cause__ = failure
            if error is None:
                self._renewed(grant, started)
            else:
                self._failed(error)

    def _sleep(self) -> bool:
        """Wait until it is time to renew; return False when everything ends."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                assert self._term is not None  # started with a grant
                due = self._retry_at if self._failures else self._term.renew_at
                if self._wanted and now >= self._retry_at:
                    due = now
                if now >= due:
                    self._wanted = False
                    self._running = True
                    return True
                self._changed.wait(min(due - now, LOOK_AGAIN))
            return False

    def _renewed(self, grant: Grant, started: float) -> None:
        with self._changed:
            recovered = self._failures > 0
            self._take(grant, started, forced=self._force_next)
            self._running = False
            self._changed.notify_all()
        if recovered:
            logger.info("credentials for %s are renewed again", self._provider)
        else:
            logger.debug("credentials for %s were renewed", self._provider)

    def _failed(self, error: OptfsError) -> None:
        with self._changed:
            self._failures += 1
            first = self._failures == 1
            self._error = error
            usable = self._usable(self._clock()) and not self._force_next
            self._retry_at = self._clock() + schedule.pause(self._failures, usable=usable, luck=self._dice.random())
            self._running = False
            self._changed.notify_all()
        if first:
            logger.warning("credentials for %s can't be renewed: %s (%s); trying again", self._provider, error, error.detail)

    def _take(self, grant: Grant, started: float, *, forced: bool) -> None:
        """Hold a grant. Called with the lock."""
        if self._grant is not None and grant.root != self._grant.root:
            # The folders shown belong to the first answer; another bucket in the middle would be a tree of another account.
            grant = Grant(self._grant.root, grant.credential)
            logger.warning("the Authentication API names another bucket than before; staying with the first")
        seconds = schedule.lifetime(grant.credential.expires_at, self._wall_clock(), self._requested)
        if self._learned is not None:
            seconds = min(seconds, self._learned)
        self._grant = grant
        self._term = schedule.term(started, seconds, self._dice.random())
        self._forced_at = self._clock() if forced else None
        self._force_next = False
        self._failures = 0
        self._error = None
        self._retry_at = 0.0
        self._last_refresh = self._wall_clock()
        self._renewals += 1


def _again(error: OptfsError) -> OptfsError:
    """Return a copy to raise: several threads raise the same failure, and a traceback belongs to one."""
    fresh = copy.copy(error)
    fresh.__cause__ = error
    return fresh
