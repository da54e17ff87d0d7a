"""What a store is to the layers above: pages of a listing, and ranges of a pinned version.

S3 and GCS implement it; `retry` decorates it.
"""

from collections.abc import Callable
from typing import Protocol

from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo

Progress = Callable[[int], None]
"""Called with the number of bytes of the buffer that are filled so far; grows with each call."""


class Store(Protocol):
    """One bucket, seen through one account's credentials. Every method may be called by many threads at once."""

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        ...

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page (up to 1000 entries) of the objects below `prefix`, which is a whole key prefix within `root.prefix`.

        All keys and common prefixes in it begin with `prefix`.

        Raises:
            AccessError, CredentialRejected, AccessDenied, ServiceError, ServiceUnavailable, InvalidResponse, DeadlineExceeded: see
                `optfs.errors`.

        """
        ...

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer` with the bytes of exactly this version from `start` on, by one ranged GET.

        `buffer` is never longer than what the object holds from `start`, and never empty. `progress` is called as bytes arrive. Bytes
        beyond what progress told are undefined after an exception.

        Raises:
            VersionGone: overwritten or deleted (412, 404, 416, or an answer with another size, ETag or generation).
            AccessError, CredentialRejected, AccessDenied, ServiceError, ServiceUnavailable, InvalidResponse, DeadlineExceeded: see
                `optfs.errors`.

        """
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...
