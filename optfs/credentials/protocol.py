"""What the other layers know of credentials: values that sign requests, and the slot that always holds a fresh one."""

from dataclasses import dataclass, field
from typing import Protocol

from optfs.values import AccountRoot


@dataclass(frozen=True, slots=True)
class AwsCredential:
    """Temporary (or static) AWS keys. The repr shows no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    expires_at: float | None
    """Seconds since the epoch; None: never."""


@dataclass(frozen=True, slots=True)
class GcpCredential:
    """An OAuth 2.0 access token. The repr shows no secret."""

    token: str = field(repr=False)
    expires_at: float | None
    """Seconds since the epoch; None: never."""


Credential = AwsCredential | GcpCredential


@dataclass(frozen=True, slots=True)
class Grant:
    """What the Authentication API (or a provider's own chain) gave: a credential and where the data lies.

    Attributes:
        announced: whether the credential's expiry was told; else it is guessed. The API tells none for GCS: an hour from the start of the
            request is taken.

    """

    root: AccountRoot
    credential: Credential
    announced: bool = True


class CredentialSource(Protocol):
    """Holds the current credential of one account on one provider; a background thread renews it (`credentials.renewal`)."""

    @property
    def root(self) -> AccountRoot:
        """Where the account's data lies, from the first grant."""
        ...

    def current(self, timeout: float) -> Credential:
        """Return a credential that hasn't expired, at once where one is held.

        Waits up to `timeout` seconds for a running renewal only when the held one has expired.

        Raises:
            AccessError: the token is refused, or the credential has expired and can't be renewed.
            NotRenewed: the credential has expired and the Authentication API can't be reached, or fails.
            DeadlineExceeded: a renewal is still running after `timeout`.

        """
        ...

    def reject(self, credential: Credential, timeout: float) -> Credential:
        """Tell that a store refused `credential`, and return a newer one.

        Forces one renewal, single-flight: if `credential` is no longer the held one, the held one is returned without a renewal.
        Raises as `current` does; also CredentialRejected when the credential is itself the fruit of a renewal just forced that no store has
        accepted (no second one is made for it at once).
        """
        ...

    def accept(self, credential: Credential) -> None:
        """Tell that a store accepted `credential`, which `reject` returned. It needn't be told of others."""
        ...
