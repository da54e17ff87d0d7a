"""What the stores of a mount did so far: requests by kind, statuses, bytes, retries.

Lock order: `StoreCounters._lock` is a leaf.
"""

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

RequestKind = Literal["list", "get"]


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """The counters at one moment.

    Attributes:
        requests: requests sent, by kind (`list`, `get`), retried ones included.
        statuses: answers, by HTTP status.
        bytes_fetched: bytes of objects' bodies, also of bodies that broke off later.
        retries: tries after the first, renewals not counted.
        renewals: how often a rejected credential was replaced.
        errors: operations that failed for good.

    """

    requests: dict[str, int]
    statuses: dict[int, int]
    bytes_fetched: int
    retries: int
    renewals: int
    errors: int


class StoreCounters:
    """Counts. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock: all below.
        self._requests: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._bytes_fetched = 0
        self._retries = 0
        self._renewals = 0
        self._errors = 0

    def request(self, kind: RequestKind) -> None:
        """Count a request that is about to be sent."""
        with self._lock:
            self._requests[kind] += 1

    def status(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self._statuses[status] += 1

    def fetched(self, count: int) -> None:
        """Count bytes of a body."""
        with self._lock:
            self._bytes_fetched += count

    def retry(self) -> None:
        """Count a try after the first."""
        with self._lock:
            self._retries += 1

    def renewal(self) -> None:
        """Count a rejected credential that was replaced."""
        with self._lock:
            self._renewals += 1

    def error(self) -> None:
        """Count an operation that failed for good."""
        with self._lock:
            self._errors += 1

    def snapshot(self) -> StoreSnapshot:
        """Return the counters as they are now."""
        with self._lock:
            return StoreSnapshot(
                requests=dict(self._requests),
                statuses=dict(self._statuses),
                bytes_fetched=self._bytes_fetched,
                retries=self._retries,
                renewals=self._renewals,
                errors=self._errors,
            )
