"""libfuse 3 through mfusepy: requests of 1 MiB, and folders read together with their attributes (READDIRPLUS).

mfusepy finds its library by `FUSE_LIBRARY_PATH`, which `optfs.bridge.bindings` sets while this module is imported.
"""

import ctypes
from typing import Any

import mfusepy

from optfs.bridge import callbacks
from optfs.bridge.handlers import Core, Handlers
from optfs.bridge.structs import join

_FILL_DIR_PLUS = 2  # FUSE_FILL_DIR_PLUS, fuse.h
_CAP_SPLICE_READ = (
    1 << 9
)  # fuse_common.h: requests come through pipes, two descriptors a thread; only what is written to us would gain by that
_CAP_READDIRPLUS_AUTO = 1 << 14  # fuse_common.h: the kernel guesses when attributes are worth asking for; they cost nothing here

MAX_BACKGROUND = 512
"""Requests of the kernel's readahead under way at once. Beyond them all reads wait, also of what is cached: with 64, 32 streams of a service
that doesn't answer held up everything. A stream has two. The kernel's own limit is 12."""

MAX_THREADS = MAX_BACKGROUND + 64
"""Threads that run handlers, made when all others are busy; some are left for other calls than readahead's. A handler waits for the network,
so that libfuse's own limit (10 since 3.12) would let ten slow readers stop all."""

IDLE_THREADS = 64

VERSION = (mfusepy.fuse_version_major, mfusepy.fuse_version_minor)

# The filler is called by PyDLL's convention, which keeps the interpreter's lock: it only copies an entry into libfuse's buffer, and no
# thread that holds libfuse's lock ever waits for the interpreter's.
_FILLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(mfusepy.c_stat), ctypes.c_longlong, ctypes.c_int)


class _Vector(ctypes.Structure):
    """`struct fuse_bufvec` of one buffer, fuse_common.h; mfusepy has a pointer where C has the buffer itself."""

    _fields_ = (("count", ctypes.c_size_t), ("idx", ctypes.c_size_t), ("off", ctypes.c_size_t), ("buf", mfusepy.fuse_buf))


_VECTOR_SIZE = ctypes.sizeof(_Vector) + 64  # later versions' buffers have more fields, 0 for none

# They are quick, so they keep the interpreter's lock.
_C = ctypes.PyDLL(None)
_malloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", _C))
_calloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)(("calloc", _C))
_get_session = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("fuse_get_session", mfusepy._libfuse))
_session_fd = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("fuse_session_fd", mfusepy._libfuse))
_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("free", _C))


def _vector_of(views: list[memoryview], length: int) -> int:
    """Return the address of a vector with a copy of pieces, `length` bytes in all; who gets it frees both."""
    memory = _malloc(length or 1)
    vector = _calloc(1, _VECTOR_SIZE)
    try:
        if not memory or not vector:
            raise MemoryError
        join(views, memory)
        filled = _Vector.from_address(vector)
        filled.count = 1
        filled.buf.size, filled.buf.mem, filled.buf.fd = length, memory, -1
    except BaseException:
        _free(memory)
        _free(vector)
        raise
    return int(vector)


class Fuse3(Handlers):
    """The handlers of one mount."""

    def __init__(self, core: Core) -> None:
        """Join the parts."""
        super().__init__(core, mfusepy, lambda: mfusepy.fuse_get_context()[2], listed=True)

    def init(self, connection: int, config: int) -> int:
        """Set up the connection."""
        wishes = mfusepy.fuse_conn_info.from_address(connection)
        wishes.want &= ~(_CAP_READDIRPLUS_AUTO | _CAP_SPLICE_READ)
        wishes.max_background = MAX_BACKGROUND
        wishes.congestion_threshold = MAX_BACKGROUND * 3 // 4
        settings = mfusepy.fuse_config.from_address(config)
        settings.use_ino = 1
        settings.nullpath_ok = 1
        lifetime = settings.attr_timeout  # libfuse keeps these settings as long as the mount lives, and reads them for each answer

        def keep_attributes(torn: bool) -> None:
            settings.attr_timeout = 0.0 if torn else lifetime

        self.core.kernel.on_torn = keep_attributes
        library = mfusepy._libfuse  # the binding's own handle; its `fuse_exit` works in handlers only
        session = ctypes.c_void_p(library.fuse_get_context().contents.fuse)
        self.core.leave = lambda: library.fuse_exit(session)
        self.core.connection = _session_fd(_get_session(session))
        self.core.started()
        return 0

    def getattr(self, path: int, buffer: int, info: int) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, info)

    def read_buf(self, _path: int, answer: int, size: int, offset: int, info: int) -> int:
        """Hand over bytes in memory that libfuse frees. It is taken when they are there: `read` would hold 1 MiB for each reader that waits."""
        ctypes.c_void_p.from_address(answer).value = _vector_of(*self.bytes_of(size, offset, info))
        return 0

    def readdir(self, _path: int, buffer: int, filler: int, offset: int, info: int, _flags: int) -> int:
        """Fill with attributes and real offsets: with offset 0, or without the flag, libfuse asks for each entry's attributes."""
        fill = _FILLER(filler)
        stat = mfusepy.c_stat()
        pointer = ctypes.pointer(stat)
        address, size, move = ctypes.addressof(stat), self.layout.size, ctypes.memmove
        for name, packed, following in self.entries_from(offset, info):
            move(address, packed, size)
            if fill(buffer, name, pointer, following, _FILL_DIR_PLUS):
                break
        return 0


def serve(core: Core, mountpoint: str, options: dict[str, Any]) -> None:
    """Mount, and return when it has been unmounted.

    Raises:
        RuntimeError: libfuse refuses; it has written why to the standard error.

    """
    if VERSION >= (3, 12):
        # Some idle threads stay, since starting one costs more than a request; without a number libfuse 3.14 complains of its own default.
        options = options | {"max_threads": MAX_THREADS, "max_idle_threads": IDLE_THREADS}
    callbacks.serve(mfusepy.fuse_main_real, mfusepy.fuse_operations(), Fuse3(core).functions(), mountpoint, options)
