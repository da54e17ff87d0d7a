"""A bucket of the embedded services: versioned objects by key, listed in order of their keys' bytes.

Algorithm: the keys' bytes are kept in one sorted list beside a dict, so that a page of a listing costs a bisection and the page itself; a
common prefix is skipped by a bisection too. Contents are bytes, or files read by ranges. As on both services without object versioning, an
overwritten version is gone at once.

Lock order: `Bucket._lock` is a leaf.
"""

import bisect
import hashlib
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from pathlib import Path

from optfs.values import decode_name, encode_name


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes `[start, start + length)` of a file."""

    path: Path
    start: int
    length: int


Content = memoryview | FilePart


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one object.

    Attributes:
        generation: GCS's number of the version; increases with each put.
        etag: S3's tag of the version, 32 hexadecimal digits without quotes. No MD5 of the content, as with SSE-KMS.
        mtime: seconds since the epoch, whole milliseconds.

    """

    key: str
    size: int
    mtime: float
    generation: int
    etag: str
    content: bytes | Path = field(repr=False)

    def part(self, start: int, length: int) -> Content:
        """Return a range of the content, for sending."""
        if isinstance(self.content, Path):
            return FilePart(self.content, start, length)
        return memoryview(self.content)[start : start + length]


@dataclass(frozen=True, slots=True)
class Listing:
    """One page.

    Attributes:
        objects: in order of their keys' bytes.
        prefixes: common prefixes, in order.
        continuation: token of the next page, or None.

    """

    objects: list[Version]
    prefixes: list[str]
    continuation: str | None


class Bucket:
    """Objects by key. Every method may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock. Invariant: _sorted holds the bytes of exactly the keys of _versions, in order.
        self._versions: dict[str, Version] = {}
        self._sorted: list[bytes] = []
        self._generation = 1_700_000_000_000_000  # GCS's generations are microseconds since the epoch: 16 digits

    def put(self, key: str, data: bytes | Path, *, mtime: float | None = None) -> Version:
        """Write an object, or a new version of it. A file given as a path must not change afterwards."""
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        with self._lock:
            self._generation += 1
            tag = hashlib.sha256(b"%d\0%s\0" % (self._generation, encode_name(key)))
            tag.update(str(data).encode() if isinstance(data, Path) else data)
            moment = round(time.time() if mtime is None else mtime, 3)
            version = Version(key, size, moment, self._generation, tag.hexdigest()[:32], data)
            if key not in self._versions:
                raw = encode_name(key)
                if not self._sorted or raw > self._sorted[-1]:
                    self._sorted.append(raw)
                else:
                    bisect.insort(self._sorted, raw)
            self._versions[key] = version
            return version

    def delete(self, key: str) -> None:
        """Delete an object; KeyError if there is none."""
        with self._lock:
            del self._versions[key]
            raw = encode_name(key)
            del self._sorted[bisect.bisect_left(self._sorted, raw)]

    def keys(self) -> list[str]:
        """Return all keys in order of their bytes."""
        with self._lock:
            return [decode_name(raw) for raw in self._sorted]

    def get(self, key: str) -> Version | None:
        """Return the current version, or None."""
        with self._lock:
            return self._versions.get(key)

    def list_page(
        self, prefix: str, *, delimiter: str = "", continuation: str | None = None, start_after: str = "", limit: int = 1000
    ) -> Listing:
        """Return up to `limit` objects and common prefixes below `prefix`, after `continuation` (or else after the key `start_after`).

        Raises:
            ValueError: the token is none of ours.

        """
        if limit <= 0:
            return Listing([], [], None)
        raw_prefix, raw_delimiter = encode_name(prefix), encode_name(delimiter)
        objects: list[Version] = []
        prefixes: list[str] = []
        with self._lock:
            position = bisect.bisect_left(self._sorted, raw_prefix)
            if continuation is not None:
                position = max(position, bisect.bisect_left(self._sorted, _decode_token(continuation)))
            elif start_after:
                position = max(position, bisect.bisect_right(self._sorted, encode_name(start_after)))
            following = b""
            while position < len(self._sorted):
                raw = self._sorted[position]
                if not raw.startswith(raw_prefix):
                    break
                if len(objects) + len(prefixes) >= limit:
                    return Listing(objects, prefixes, _encode_token(following))
                cut = raw.find(raw_delimiter, len(raw_prefix)) if raw_delimiter else -1
                if cut < 0:
                    objects.append(self._versions[decode_name(raw)])
                    following = raw + b"\0"
                    position += 1
                else:
                    common = raw[: cut + len(raw_delimiter)]
                    prefixes.append(decode_name(common))
                    following = _successor(common)
                    position = bisect.bisect_left(self._sorted, following)
        return Listing(objects, prefixes, None)


def _successor(prefix: bytes) -> bytes:
    """Return the smallest string above all that begin with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * (len(prefix) + 1024)


def _encode_token(raw: bytes) -> str:
    return "1" + urlsafe_b64encode(raw).decode()


def _decode_token(token: str) -> bytes:
    if not token.startswith("1"):
        raise ValueError("a continuation token that was never given")
    return urlsafe_b64decode(token[1:])
