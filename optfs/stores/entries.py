"""What a page of a listing must be before it is believed, the same for all stores. Pure."""

from optfs.errors import InvalidResponse
from optfs.values import ListPage, ObjectInfo

_SIZES = range(1 << 63)  # what `off_t` can tell
_TIMES = 1 << 40
"""Seconds before and after 1970 that `time_t` and a file manager can tell."""


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
