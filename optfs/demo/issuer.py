"""Temporary credentials that the embedded Authentication API hands out and that the embedded stores check. They really expire.

Lock order: `Issuer._lock` is a leaf.
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from optfs.errors import OptfsError

NEVER = float("inf")


class Refused(OptfsError):
    """A store doesn't know a credential."""


class Expired(OptfsError):
    """A store knows a credential, but its time is over."""


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Keys for S3.

    Attributes:
        session_token: None for static keys.
        expires_at: seconds since the epoch; infinity for static keys.

    """

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    expires_at: float


class Issuer:
    """All credentials given so far. Any thread may call any method."""

    def __init__(self, clock: Callable[[], float], lifetime: float) -> None:
        """Take a wall clock, and after how many seconds credentials stop to work, whatever duration was asked for."""
        self.clock = clock
        self.lifetime = lifetime
        self._lock = threading.Lock()
        self._keys: dict[str, AwsKeys] = {}  # guarded by _lock; by access key
        self._tokens: dict[str, float] = {}  # guarded by _lock; OAuth token -> expiry

    def issue_keys(self, duration: float) -> AwsKeys:
        """Return new temporary keys for S3."""
        expires_at = self.clock() + min(duration, self.lifetime)
        return self._remember(AwsKeys("ASIA" + secrets.token_hex(8).upper(), secrets.token_hex(20), secrets.token_urlsafe(120), expires_at))

    def issue_static_keys(self) -> AwsKeys:
        """Return keys of a user's own, without a session token, which don't expire."""
        return self._remember(AwsKeys("AKIA" + secrets.token_hex(8).upper(), secrets.token_hex(20), None, NEVER))

    def issue_token(self) -> str:
        """Return a new OAuth 2.0 access token for GCS."""
        token = "ya29." + secrets.token_urlsafe(100)
        with self._lock:
            self._tokens[token] = self.clock() + self.lifetime
        return token

    def expire_all(self) -> None:
        """Let all credentials given so far stop to work now, static keys too."""
        with self._lock:
            self._keys = {name: replace(keys, expires_at=0.0) for name, keys in self._keys.items()}
            self._tokens = dict.fromkeys(self._tokens, 0.0)

    def keys(self, access_key: str) -> AwsKeys:
        """Return keys that are still good; Refused or Expired otherwise."""
        with self._lock:
            keys = self._keys.get(access_key)
        if keys is None:
            raise Refused("an access key that was never given")
        if keys.expires_at <= self.clock():
            raise Expired("keys that have expired")
        return keys

    def token_is_good(self, token: str) -> bool:
        """Return whether an OAuth token works now."""
        with self._lock:
            return self._tokens.get(token, 0.0) > self.clock()

    def _remember(self, keys: AwsKeys) -> AwsKeys:
        with self._lock:
            self._keys[keys.access_key] = keys
        return keys
