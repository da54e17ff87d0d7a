"""What a page of a listing must be before it is believed, and how it tells times, the same for all stores. Pure."""

from datetime import UTC, datetime
from functools import lru_cache

from optfs.errors import InvalidResponse
from optfs.values import AccountRoot, ListPage, ObjectInfo

_SIZES = range(1 << 63)  # what `off_t` can tell
_TIMES = 1 << 40
"""Seconds before and after 1970 that `time_t` and a file manager can tell."""


def check_below(root: AccountRoot, prefix: str) -> None:
    """See that a listing stays within the account.

    Raises:
        ValueError: it doesn't; the export's policy denies it.

    """
    if not prefix.startswith(root.prefix):
        raise ValueError("a listing must stay below the account's prefix")


def check_page(page: ListPage, prefix: str, service: str) -> ListPage:
    """Return the page.

    Raises:
        InvalidResponse: it holds a key or a common prefix that doesn't lie below `prefix`, or what can't be. No part of it is taken.

    """
    below = all(info.key.startswith(prefix) for info in page.objects)
    if not below or not all(common.startswith(prefix) and common.endswith("/") for common in page.prefixes):
        raise InvalidResponse(f"{service} listed other names than asked for; is a proxy in between?")
    if not all(map(_is_possible, page.objects)):
        raise InvalidResponse(f"{service} sent a listing with impossible entries")
    return page


def _is_possible(info: ObjectInfo) -> bool:
    """Return whether an object may be so: its size and time can be told, and its version can be asked for in a header."""
    version = info.version
    return info.size in _SIZES and -_TIMES < info.mtime < _TIMES and version != "" and version.isascii() and version.isprintable()


def parse_time(text: str) -> float:
    """Return seconds since the epoch of a time as stores write it: `2026-11-01T00:00:00[.000]Z`, in UTC.

    Raises:
        ValueError: it isn't one.

    """
    if len(text) < 20 or text[10] != "T" or text[-1] != "Z":
        raise ValueError(f"not a time: {text[:40]!r}")
    return _midnight(text[:10]) + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + float(text[17:-1])


@lru_cache(maxsize=4096)  # a listing repeats few days; a few years' fit
def _midnight(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
