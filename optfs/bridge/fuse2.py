"""libfuse 2 (and macFUSE) through fusepy.

fusepy finds its library by `FUSE_LIBRARY_PATH`, which `optfs.bridge.bindings` sets while this module is imported. Folders are read without
attributes, because libfuse 2 has no call for them; the kernel asks for each.
"""

import ctypes
from typing import Any

import fuse

from optfs.bridge import callbacks
from optfs.bridge.handlers import Core, Handlers
from optfs.bridge.structs import join

MAX_BACKGROUND = 256
"""Requests of the kernel's readahead under way at once, of 128 KiB; the kernel's own 12 leave a network's bandwidth unused.

Those that wait hold up all others beyond this number, also what is cached. With 1024, 64 readers took twice as long (45 s instead of 22 for
2 GiB): so many small requests lose their order on the way.
"""

_get_session = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("fuse_get_session", fuse._libfuse))
_next_channel = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(("fuse_session_next_chan", fuse._libfuse))
_channel_fd = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("fuse_chan_fd", fuse._libfuse))
_FILLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(fuse.c_stat), ctypes.c_longlong)


class Fuse2(Handlers):
    """The handlers of one mount."""

    def __init__(self, core: Core) -> None:
        """Join the parts."""
        super().__init__(core, fuse, lambda: fuse.fuse_get_context()[2], listed=False)

    def init(self, _connection: int) -> int:
        """Tell that the kernel has opened the connection."""
        library = fuse._libfuse  # the binding's own handle; its `fuse_exit` works in handlers only
        session = ctypes.c_void_p(library.fuse_get_context().contents.fuse)
        self.core.leave = lambda: library.fuse_exit(session)
        self.core.connection = _channel_fd(_next_channel(_get_session(session), None))
        self.core.started()
        return 0

    def getattr(self, path: int, buffer: int) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, 0)

    def fgetattr(self, path: int, buffer: int, info: int) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, info)

    def read(self, _path: int, buffer: int, size: int, offset: int, info: int) -> int:
        """Copy bytes into libfuse's memory."""
        views, length = self.bytes_of(size, offset, info)
        join(views, buffer)
        return length

    def readdir(self, _path: int, buffer: int, filler: int, offset: int, info: int) -> int:
        """Fill with types and inode numbers."""
        fill = _FILLER(filler)
        stat = fuse.c_stat()
        pointer = ctypes.pointer(stat)
        address, size, move = ctypes.addressof(stat), self.layout.size, ctypes.memmove
        for name, packed, following in self.entries_from(offset, info):
            move(address, packed, size)
            if fill(buffer, name, pointer, following):
                break
        return 0


def serve(core: Core, mountpoint: str, options: dict[str, Any]) -> None:
    """Mount, and return when it has been unmounted.

    Raises:
        RuntimeError: libfuse refuses; it has written why to the standard error.

    """
    background = {"max_background": MAX_BACKGROUND, "congestion_threshold": MAX_BACKGROUND * 3 // 4, "max_readahead": 1048576}
    options = options | {"use_ino": True, "nonempty": True} | background
    table = fuse.fuse_operations()
    table.flag_nullpath_ok = 1
    callbacks.serve(fuse._libfuse.fuse_main_real, table, Fuse2(core).functions(), mountpoint, options)
