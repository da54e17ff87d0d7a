"""Whether the cache works: off after a failure, tried again after a while, and one line in the log for each change.

Rules: `failed` opens a pause of `RETRY` seconds; the first use after it is a trial. A warning is logged when the state or its reason
changes, not for each failure; one line tells when it works again.

Lock: `_lock` is a leaf. Logging is done outside of it.
"""

import logging
import threading

from optfs.values import Clock

logger = logging.getLogger(__name__)

RETRY = 30.0
"""Seconds between a failure and the next trial: seldom enough for a dead disk, soon enough for a user who has made room."""


class Health:
    """The state of one side (reading or writing) of the cache."""

    def __init__(self, side: str, clock: Clock) -> None:
        """Start as working; `side` names it in messages."""
        self._side = side
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock. Invariant: _retry_at is meaningful only while _reason is set.
        self._reason: str | None = None
        self._retry_at = 0.0

    @property
    def reason(self) -> str | None:
        """Why it is off, or None."""
        return self._reason

    def usable(self) -> bool:
        """Tell whether it works, or may be tried again."""
        with self._lock:
            return self._reason is None or self._clock() >= self._retry_at

    def failed(self, reason: str) -> None:
        """Turn it off for `RETRY` seconds."""
        with self._lock:
            changed = self._reason != reason
            self._reason = reason
            self._retry_at = self._clock() + RETRY
        if changed:
            logger.warning(
                "%s the block cache is off, which costs speed only; it is tried again every %.0f s: %s", self._side, RETRY, reason
            )

    def works(self) -> None:
        """Turn it on."""
        if self._reason is None:  # the usual case, on every read
            return
        with self._lock:
            changed = self._reason is not None
            self._reason = None
        if changed:
            logger.info("%s the block cache works again", self._side)
