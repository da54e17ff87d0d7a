"""What an answer to a ranged GET must look like before a byte of its body is believed, the same for all stores. Pure.

Facts from RFC 9110 (Content-Range).
"""

import re
from collections.abc import Mapping

from optfs.errors import InvalidResponse, VersionGone
from optfs.headers import parse_retry_after
from optfs.values import ObjectInfo

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def range_header(start: int, length: int) -> str:
    """Return the Range header that asks for `length` bytes from `start` on."""
    return f"bytes={start}-{start + length - 1}"


def check_range(status: int, headers: Mapping[str, str], info: ObjectInfo, start: int, length: int) -> None:
    """Check that an answer announces exactly the bytes `[start, start + length)` of an object of `info.size` bytes.

    A 200 is right only where the whole object was asked for.

    Raises:
        VersionGone: the object has another size than the version that was listed.
        InvalidResponse: anything else is wrong.

    """
    if headers.get("Transfer-Encoding"):
        raise InvalidResponse("the store's answer doesn't announce its length", detail=f"status {status}")
    announced = headers.get("Content-Length", "")
    if status == 206:
        got = headers.get("Content-Range", "")
        matched = _CONTENT_RANGE.fullmatch(got)
        if matched is None:
            raise InvalidResponse("the store's answer doesn't tell which bytes it holds", detail=f"Content-Range: {got[:80]!r}")
        if (int(matched[1]), int(matched[2])) != (start, start + length - 1):
            raise InvalidResponse("the store answered with other bytes than asked for", detail=f"Content-Range: {got[:80]!r}")
        if matched[3] != "*" and int(matched[3]) != info.size:
            raise gone(info, f"size {matched[3]} instead of {info.size}")
    elif status != 200:
        raise InvalidResponse(f"the store answered a read with status {status}")
    elif (start, length) != (0, info.size):
        raise InvalidResponse("the store ignores ranges", detail="status 200 to a ranged GET")
    if announced != str(length):
        raise InvalidResponse("the store announces a wrong length", detail=f"Content-Length: {announced[:40]!r} instead of {length}")


def gone(info: ObjectInfo, detail: str) -> VersionGone:
    """Return the exception for a version that was overwritten or deleted."""
    return VersionGone(f"{info.key.rpartition('/')[2]!a} was changed or deleted after it was opened; open it again", detail=detail)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the service asks to wait (`now`: seconds since the epoch), or None."""
    return parse_retry_after(headers.get("Retry-After"), now)


def looks_like_html(body: bytes) -> bool:
    """Return whether a body is a web page: a proxy's, or a network's sign-in."""
    head = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
