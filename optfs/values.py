"""The values that layers hand to one another. No behaviour beyond what a value knows of itself.

Names of objects are `str` with the `surrogateescape` convention of `os.fsdecode` (UTF-8), so that a key's bytes are kept where they are
not valid UTF-8. `encode_name` and `decode_name` are the only places that convert.

Times are seconds since the epoch (float) where they name a moment, and seconds of a monotonic clock where they bound a wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optfs.errors import Abandoned, DeadlineExceeded

MiB = 1024 * 1024
KiB = 1024

Provider = Literal["aws", "gcp"]

Clock = Callable[[], float]
"""A monotonic clock, seconds (`time.monotonic`), or in tests one that is moved by hand."""


def encode_name(name: str) -> bytes:
    """Return the bytes of a key or of a name."""
    return name.encode("utf-8", "surrogateescape")


def decode_name(raw: bytes) -> str:
    """Return a key or a name from its bytes."""
    return raw.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of one object, as a listing shows it.

    Attributes:
        key: the whole key in its bucket.
        size: bytes.
        mtime: last modification, seconds since the epoch.
        version: what pins the version: S3's ETag as listed, without quotes, or GCS's generation.
        provider: which store holds it.

    """

    key: str
    size: int
    mtime: float
    version: str
    provider: Provider


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing.

    Attributes:
        objects: in the service's order (bytewise by key).
        prefixes: common prefixes, whole (from the bucket's root) and with their trailing slash; empty without a delimiter.
        continuation: token for the next page, or None after the last.

    """

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    continuation: str | None


@dataclass(frozen=True, slots=True)
class AccountRoot:
    """Where an account's data lies in one store.

    Attributes:
        bucket: its bucket.
        prefix: `v1/account_id=<id>/`, with the trailing slash.

    """

    account: str
    provider: Provider
    bucket: str
    prefix: str

    def uri(self, key: str) -> str:
        """Return `s3://bucket/key` or `gs://bucket/key`."""
        scheme = "s3" if self.provider == "aws" else "gs"
        return f"{scheme}://{self.bucket}/{key}"


LOOK_AGAIN = 0.2
"""Seconds that a wait sleeps at most before it looks whether to go on: the deadline's clock may be another than that of the sleep, and the program
that waits may be killed."""


def never() -> bool:
    """Return False."""
    return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an operation must have ended, by a monotonic clock.

    Attributes:
        at: a moment of `clock`, seconds.
        abandoned: whether nobody needs the operation any more; to be called by the thread that the deadline was made in.

    """

    clock: Clock
    at: float
    abandoned: Callable[[], bool] = never

    @classmethod
    def after(cls, clock: Clock, seconds: float, abandoned: Callable[[], bool] = never) -> "Deadline":
        """Return the deadline that lies `seconds` from now."""
        return cls(clock, clock() + seconds, abandoned)

    def sooner(self, seconds: float) -> "Deadline":
        """Return the deadline that lies `seconds` from now, or this one if that is earlier."""
        return Deadline(self.clock, min(self.at, self.clock() + seconds), self.abandoned)

    def remaining(self) -> float:
        """Return the seconds left; negative when past."""
        return self.at - self.clock()

    def check(self, what: str) -> float:
        """Return the seconds left.

        Raises:
            DeadlineExceeded: none is left.

        """
        left = self.remaining()
        if left <= 0:
            raise DeadlineExceeded(f"{what} took longer than --timeout")
        return left

    def check_abandoned(self) -> None:
        """Raise `Abandoned` where nobody needs the operation any more."""
        if self.abandoned():
            raise Abandoned("the program that asked is being killed")
