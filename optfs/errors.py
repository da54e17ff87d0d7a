"""Every exception that optfs raises on purpose, as one tree.

::

    OptfsError
    ├── ConfigError                 wrong usage or configuration             mount exits with 2
    ├── MountError                  FUSE is missing or refuses                mount exits with 5
    │   └── MountBusy               a program uses the mount that is to be taken away
    ├── AccessError                 EACCES                                    mount exits with 3
    │   ├── NoExport                the account has no export on a provider
    │   ├── TokenRefused            the Authentication API refused the personal access token
    │   ├── NotRenewed              the credential has expired; also a ServiceUnavailable, as trying again may help
    │   ├── CredentialRejected      a store refused a credential: renewing it may help
    │   └── AccessDenied            a store refused the request, and a new credential would not help
    │       └── ReadDenied          a read of what a listing showed, which may be gone
    ├── ServiceError                EIO                                       mount exits with 4
    │   ├── ServiceUnavailable      network, 5xx or throttling: trying again may help
    │   ├── RequestRefused          the Authentication API has no credentials for this account and provider
    │   └── InvalidResponse         an answer that makes no sense (HTML from a proxy, a wrong Content-Range)
    ├── OutOfMemory                 ENOMEM: the mount finds no memory for what was asked
    ├── DeadlineExceeded            ETIMEDOUT: an operation took longer than --timeout     mount exits with 4
    ├── Abandoned                   EINTR: the program that waited for an operation is being killed
    ├── VersionGone                 ESTALE: the pinned version of an object was overwritten or deleted
    └── PathError
        ├── NotFound                ENOENT
        ├── NameTooLong             ENAMETOOLONG: a name of more bytes than one may have
        ├── NotAFolder              ENOTDIR
        ├── IsAFolder               EISDIR
        ├── NotALink                EINVAL
        ├── NoAttribute             ENODATA: no such extended attribute
        └── NotSupported            ENOTSUP: an extended attribute outside `user.`

Rules: a message is one line for a user and says what to do where something can be done; it never holds a secret. `detail` is for the log
(a request id, a `uuid`, the cause). Only `bridge.errnos` turns an exception into an errno and only `cli` into an exit code. An exception that
is kept, or raised in another thread than its own, is a `bare` one.
"""

import copy
from typing import TypeVar


class OptfsError(Exception):
    """Base of the tree.

    Attributes:
        message: one line for a user.
        detail: for the log: request id, `uuid`, status; empty where there is none.

    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class ConfigError(OptfsError):
    """Wrong usage or configuration."""


class MountError(OptfsError):
    """FUSE is missing, or refuses the mount."""


class MountBusy(MountError):
    """A mount can't be taken away, since a program uses it."""


class AccessError(OptfsError):
    """The service doesn't let us."""


class NoExport(AccessError):
    """The account has no export on this provider (404)."""


class TokenRefused(AccessError):
    """The Authentication API refused the personal access token (401 or 403)."""


class CredentialRejected(AccessError):
    """A store refused the credential itself (S3: ExpiredToken, InvalidAccessKeyId …; GCS: 401). Renewing it may help."""


class AccessDenied(AccessError):
    """A store refused the request (403) with a credential that it accepts."""


class ReadDenied(AccessDenied):
    """A store refused a read (403): the object is closed to us, or is gone and the store doesn't say so to everybody."""


class ServiceError(OptfsError):
    """The service failed."""


class ServiceUnavailable(ServiceError):
    """Network failure, 5xx, or throttling. Trying again may help.

    Attributes:
        retry_after: seconds that the service asked to wait, or None.

    """

    def __init__(self, message: str, *, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, detail=detail)
        self.retry_after = retry_after


class RequestRefused(ServiceError):
    """The Authentication API refused a request as such (400)."""


class NotRenewed(AccessError, ServiceUnavailable):
    """The credential has expired, and the Authentication API fails to give another one: no access now, but trying again may help."""


class InvalidResponse(ServiceError):
    """An answer that breaks the protocol: a proxy's HTML, a wrong Content-Range, a body that ends early."""


class OutOfMemory(OptfsError):
    """The mount finds no memory for what was asked."""


class DeadlineExceeded(OptfsError):
    """An operation took longer than --timeout."""


class Abandoned(OptfsError):
    """The program that waited for an operation is being killed: nobody needs the answer."""


class VersionGone(OptfsError):
    """The version of an object that was pinned at open is no longer there."""


class PathError(OptfsError):
    """A path doesn't allow what was asked."""


class NotFound(PathError):
    """There is no such name."""


class NameTooLong(PathError):
    """A name is longer than any may be."""


class NotAFolder(PathError):
    """A folder was expected."""


class IsAFolder(PathError):
    """A file was expected."""


class NotALink(PathError):
    """A symbolic link was expected."""


class NoAttribute(PathError):
    """There is no such extended attribute."""


class NotSupported(PathError):
    """Extended attributes outside the `user.` namespace don't exist here."""


Error = TypeVar("Error", bound=OptfsError)


def bare(error: Error) -> Error:
    """Return a copy without traceback and cause, whose frames keep alive all that they were at work on: buffers of 4 MiB, connections."""
    return copy.copy(error)
