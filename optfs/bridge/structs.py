"""Fills C structures of a binding fast, and C's memory with bytes.

Algorithm: a structure is one `struct.pack` from Python values instead of an assignment a field; the format comes from the binding's own ctypes
definition (offsets, sizes), so each platform's layout is right where the binding's is.
"""

import ctypes
import struct
from typing import Any

import cffi

from optfs.filesystem import Attributes
from optfs.values import KiB

BLKSIZE = 1024 * 1024
"""`st_blksize`: what programs such as `cp` read at a time; one request of libfuse 3."""

UNLOCKED = 128 * KiB
"""From this length on, bytes, a copy lets go of the interpreter's lock: 1 MiB takes 0.1 ms, for which all fetching threads would wait for it.
Eight streams were 3 to 6 % faster, in turns on a busy machine. For less, taking the lock again costs more."""

_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}


class StatLayout:
    """Packs `Attributes` as a `struct stat`."""

    def __init__(self, c_stat: type[ctypes.Structure]) -> None:
        """Derive the format from `c_stat`, whose fields are named as in <sys/stat.h>, with `st_mtimespec` and the like for times."""
        self.size = ctypes.sizeof(c_stat)
        wanted = ("st_mode", "st_size", "st_ino", "st_nlink", "st_blocks", "st_uid", "st_gid", "st_blksize")
        times = ("st_atimespec", "st_mtimespec", "st_ctimespec")
        fields: list[tuple[int, str, int]] = []
        for place, name in enumerate(wanted):
            field: Any = getattr(c_stat, name)
            fields.append((field.offset, _UNSIGNED[field.size], place))
        for name in times:
            field = getattr(c_stat, name)
            half = field.size // 2
            fields.append((field.offset, _UNSIGNED[half], len(wanted)))
            fields.append((field.offset + half, _UNSIGNED[half], len(wanted) + 1))
        fields.sort()
        text, at = "=", 0
        for offset, code, _ in fields:
            text += f"{offset - at}x{code}"
            at = offset + struct.calcsize("=" + code)
        self._packer = struct.Struct(f"{text}{self.size - at}x")
        self._order = tuple(place for _, _, place in fields)
        assert self._packer.size == self.size

    def pack(self, attributes: Attributes) -> bytes:
        """Return the structure's bytes."""
        mode, size, mtime, ino, nlink, blocks, uid, gid, _ = attributes
        # Whole microseconds, as the stores tell them: a float's own places beyond would show .123 s as .122999906. Before 1970 there is none.
        seconds, micros = divmod(round(mtime * 1_000_000), 1_000_000) if mtime > 0 else (0, 0)
        rest = micros * 1000
        values = (mode, size, ino, nlink, blocks, uid, gid, BLKSIZE, seconds, rest)
        return self._packer.pack(*[values[place] for place in self._order])


_ffi = cffi.FFI()
_ffi.cdef("void *memcpy(void *, const void *, size_t);")
_c: Any = _ffi.dlopen(None)


def join(views: list[memoryview], buffer: int) -> None:
    """Copy pieces to memory of C's, one behind the other; it has room for them."""
    at = buffer
    for view in views:
        size = len(view)
        target = _ffi.cast("char *", at)
        if size < UNLOCKED:
            _ffi.memmove(target, view, size)
        else:
            _c.memcpy(target, _ffi.from_buffer(view), size)
        at += size
