"""Tells which credential a store refused, so that exactly that one is renewed."""

from optfs.credentials.protocol import Credential
from optfs.errors import CredentialRejected


class RejectedCredential(CredentialRejected):
    """A store refused a request that was signed with `credential`.

    Only `stores.retry` looks at the credential; neither the message nor the repr shows it.
    """

    def __init__(self, message: str, credential: Credential, *, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.credential = credential
