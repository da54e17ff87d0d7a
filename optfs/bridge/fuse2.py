"""libfuse 2 (and macFUSE) through fusepy.

fusepy finds its library by `FUSE_LIBRARY_PATH`, which `optfs.bridge.bindings` sets while this module is imported. Folders are read without
attributes, because libfuse 2 has no call for them; the kernel asks for each.
"""

import ctypes
import os
from typing import Any

import fuse

from optfs.bridge.handlers import REFUSED, Core, Handlers, operations
from optfs.bridge.structs import StatLayout

VERSION = (2, 9)

_FILLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(fuse.c_stat), ctypes.c_longlong)


class _Argument(str):
    """An argument of libfuse whose bytes are the file system's: fusepy encodes strictly as UTF-8, which a folder's name needn't be."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:  # noqa: ARG002 - the signature is str's
        return os.fsencode(str(self))


class Fuse2(Handlers, fuse.FUSE):  # type: ignore[misc]  # fusepy isn't followed by mypy
    """One mount; constructing it blocks until it has been unmounted."""

    def __init__(self, core: Core, mountpoint: str, options: dict[str, Any]) -> None:
        """Mount, and serve until unmounted.

        Raises:
            RuntimeError: libfuse refuses; it has written why to the standard error.

        """
        self.prepare(core, StatLayout(fuse.c_stat), lambda: fuse.fuse_get_context()[2], listed=False)
        options = options | {"use_ino": True, "nonempty": True, "max_background": 64, "congestion_threshold": 48, "max_readahead": 1048576}
        fuse.FUSE.__init__(self, operations(), _Argument(mountpoint), raw_fi=True, foreground=True, **options)

    def init(self, _conn: Any) -> int:
        """Tell that the kernel has opened the connection."""
        library = fuse._libfuse  # the binding's own handle; its `fuse_exit` works in handlers only
        session = ctypes.c_void_p(library.fuse_get_context().contents.fuse)
        self.core.leave = lambda: library.fuse_exit(session)
        self.core.started()
        return 0

    def getattr(self, path: bytes, buffer: Any) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, None)

    def fgetattr(self, path: bytes | None, buffer: Any, info: Any) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, info)

    def readdir(self, _path: bytes | None, buffer: Any, filler: Any, offset: int, info: Any) -> int:
        """Fill with types and inode numbers."""
        fill = _FILLER(ctypes.cast(filler, ctypes.c_void_p).value or 0)
        stat = fuse.c_stat()
        pointer = ctypes.pointer(stat)
        address, size, move = ctypes.addressof(stat), self.layout.size, ctypes.memmove
        for name, packed, following in self.entries_from(offset, info):
            move(address, packed, size)
            if fill(buffer, name, pointer, following):
                break
        return 0


for _name in REFUSED:
    setattr(Fuse2, _name, Handlers.refuse)
