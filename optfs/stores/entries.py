"""What an entry of a listing must be before it is believed, the same for all stores. Pure."""

from optfs.values import ObjectInfo

_SIZES = range(1 << 63)  # what `off_t` can tell
_TIMES = 1 << 40
"""Seconds before and after 1970 that `time_t` and a file manager can tell."""


def is_possible(info: ObjectInfo) -> bool:
    """Return whether an object may be so: its size and time can be told, and its version can be asked for in a header."""
    version = info.version
    return info.size in _SIZES and -_TIMES < info.mtime < _TIMES and version != "" and version.isascii() and version.isprintable()
