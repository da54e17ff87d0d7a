"""libfuse 3 through mfusepy: requests of 1 MiB, and folders read together with their attributes (READDIRPLUS).

mfusepy finds its library by `FUSE_LIBRARY_PATH`, which `optfs.bridge.bindings` sets while this module is imported.
"""

import ctypes
from typing import Any

import mfusepy

from optfs.bridge.handlers import REFUSED, Core, Handlers, operations
from optfs.bridge.structs import StatLayout

_FILL_DIR_PLUS = 2  # FUSE_FILL_DIR_PLUS, fuse.h
_CAP_READDIRPLUS_AUTO = 1 << 14  # fuse_common.h: the kernel guesses when attributes are worth asking for; they cost nothing here

MAX_BACKGROUND = 64
"""Requests of readahead under way at once; the kernel's own 12 leave a network's bandwidth unused."""

MAX_THREADS = 64
"""Threads that run handlers. libfuse 3.12 introduced a limit, of 10: a handler waits for the network, so ten slow readers would stop all."""

VERSION = (mfusepy.fuse_version_major, mfusepy.fuse_version_minor)

# The filler is called by PyDLL's convention, which keeps the interpreter's lock: it only copies an entry into libfuse's buffer, and no
# thread that holds libfuse's lock ever waits for the interpreter's.
_FILLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(mfusepy.c_stat), ctypes.c_longlong, ctypes.c_int)


class Fuse3(Handlers, mfusepy.FUSE):  # type: ignore[misc]  # mfusepy isn't followed by mypy
    """One mount; constructing it blocks until it has been unmounted."""

    def __init__(self, core: Core, mountpoint: str, options: dict[str, Any]) -> None:
        """Mount, and serve until unmounted.

        Raises:
            RuntimeError: libfuse refuses; it has written why to the standard error.

        """
        self.prepare(core, StatLayout(mfusepy.c_stat), lambda: mfusepy.fuse_get_context()[2], listed=True)
        if VERSION >= (3, 12):
            # Idle threads stay, since starting one costs more than a request; without a number libfuse 3.14 complains of its own default.
            options = options | {"max_threads": MAX_THREADS, "max_idle_threads": MAX_THREADS}
        mfusepy.FUSE.__init__(self, operations(), mountpoint, raw_fi=True, foreground=True, **options)

    def init_fuse_3(self, conn: Any, config: Any) -> int:
        """Set up the connection."""
        connection = conn.contents
        connection.want &= ~_CAP_READDIRPLUS_AUTO
        connection.max_background = MAX_BACKGROUND
        connection.congestion_threshold = MAX_BACKGROUND * 3 // 4
        settings = config.contents
        settings.use_ino = 1
        settings.nullpath_ok = 1
        lifetime = settings.attr_timeout  # libfuse keeps these settings as long as the mount lives, and reads them for each answer

        def keep_attributes(torn: bool) -> None:
            settings.attr_timeout = 0.0 if torn else lifetime

        self.core.kernel.on_torn = keep_attributes
        library = mfusepy._libfuse  # the binding's own handle; its `fuse_exit` works in handlers only
        session = ctypes.c_void_p(library.fuse_get_context().contents.fuse)
        self.core.leave = lambda: library.fuse_exit(session)
        self.core.started()
        return 0

    def getattr_fuse_3(self, path: bytes | None, buffer: Any, info: Any) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, info)

    def readdir_fuse_3(self, _path: bytes | None, buffer: Any, filler: Any, offset: int, info: Any, _flags: int) -> int:
        """Fill with attributes and real offsets: with offset 0, or without the flag, libfuse asks for each entry's attributes."""
        fill = _FILLER(ctypes.cast(filler, ctypes.c_void_p).value or 0)
        stat = mfusepy.c_stat()
        pointer = ctypes.pointer(stat)
        address, size, move = ctypes.addressof(stat), self.layout.size, ctypes.memmove
        for name, packed, following in self.entries_from(offset, info):
            move(address, packed, size)
            if fill(buffer, name, pointer, following, _FILL_DIR_PLUS):
                break
        return 0


for _name in REFUSED:
    _suffixed = f"{_name}_fuse_3"
    setattr(Fuse3, _suffixed if hasattr(mfusepy.FUSE, _suffixed) else _name, Handlers.refuse)
