"""Fills C structures of a binding fast: one `struct.pack` from Python values instead of an assignment a field.

Algorithm: the format comes from the binding's own ctypes definition (offsets, sizes), so each platform's layout is right where the
binding's is.
"""

import ctypes
import struct
from typing import Any

from optfs.filesystem import Attributes

BLKSIZE = 1024 * 1024
"""`st_blksize`: what programs such as `cp` read at a time; one request of libfuse 3."""

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


_from_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_from_memory.restype = ctypes.py_object
_from_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_WRITABLE = 0x200  # PyBUF_WRITE, Include/cpython/object.h


def writable(address: int, size: int) -> memoryview:
    """Return a view of memory that C owns; it must not be used after the callback that got the address has returned."""
    view: memoryview = _from_memory(address, size, _WRITABLE)
    return view
