"""libfuse 3 through mfusepy: requests of 1 MiB, and folders read together with their attributes (READDIRPLUS).

mfusepy finds its library by `FUSE_LIBRARY_PATH`, which `optfs.bridge.bindings` sets while this module is imported.
"""

import ctypes
import os
from typing import Any

import mfusepy

from optfs.bridge import callbacks, loop
from optfs.bridge.callers import ThreadCaller
from optfs.bridge.handlers import Core, Handlers

_FILL_DIR_PLUS = 2  # FUSE_FILL_DIR_PLUS, fuse.h
_CAP_READDIRPLUS_AUTO = 1 << 14  # fuse_common.h: the kernel guesses when attributes are worth asking for; they cost nothing here

MAX_BACKGROUND = 512
"""Requests of the kernel's readahead under way at once. Beyond them all reads wait, also of what is cached: with 64, 32 streams of a service
that doesn't answer held up everything. A stream has two. The kernel's own limit is 12."""

MAX_THREADS = MAX_BACKGROUND + 64
"""Threads that run handlers, made when all others are busy; some are left for other calls than readahead's. A handler waits for the network,
so that few threads would let as many slow readers stop all."""

IDLE_THREADS = 64

# The filler is called by PyDLL's convention, which keeps the interpreter's lock: it only copies an entry into libfuse's buffer, and no
# thread that holds libfuse's lock ever waits for the interpreter's.
_FILLER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(mfusepy.c_stat), ctypes.c_longlong, ctypes.c_int)


class _Arguments(ctypes.Structure):
    """`struct fuse_args`, fuse_opt.h."""

    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


_LIBRARY = mfusepy._libfuse  # the binding's own handle
_P = ctypes.c_void_p


def _function(result: Any, names: str, *arguments: Any, quick: bool = False) -> Any:
    """Return a function of libfuse's by the first of its names that there is; a quick one keeps the interpreter's lock."""
    prototype = ctypes.PYFUNCTYPE(result, *arguments) if quick else ctypes.CFUNCTYPE(result, *arguments)
    return prototype((next(name for name in names.split() if hasattr(_LIBRARY, name)), _LIBRARY))


# `fuse_new` is a macro since 3.17; the function below it has had this name since 3.11.
_new = _function(_P, "fuse_new_31 fuse_new", ctypes.POINTER(_Arguments), _P, ctypes.c_size_t, _P)
_mount = _function(ctypes.c_int, "fuse_mount", _P, ctypes.c_char_p)
_unmount = _function(None, "fuse_unmount", _P)
_destroy = _function(None, "fuse_destroy", _P)
_get_session = _function(_P, "fuse_get_session", _P, quick=True)
_session_fd = _function(ctypes.c_int, "fuse_session_fd", _P, quick=True)
_exited = _function(ctypes.c_int, "fuse_session_exited", _P, quick=True)
_free_arguments = _function(None, "fuse_opt_free_args", ctypes.POINTER(_Arguments))
_process = _function(None, "fuse_session_process_buf", _P, _P)


class Fuse3(Handlers):
    """The handlers of one mount."""

    def __init__(self, core: Core) -> None:
        """Join the parts."""
        self.calling = ThreadCaller()
        super().__init__(core, mfusepy, self.calling, listed=True)

    def init(self, connection: int, config: int) -> int:
        """Set up the connection."""
        wishes = mfusepy.fuse_conn_info.from_address(connection)
        wishes.want &= ~_CAP_READDIRPLUS_AUTO
        wishes.max_write = min(wishes.max_write, loop.GREATEST)  # the greatest read, too: libfuse makes one limit of both
        wishes.max_background = MAX_BACKGROUND
        wishes.congestion_threshold = MAX_BACKGROUND * 3 // 4
        settings = mfusepy.fuse_config.from_address(config)
        settings.use_ino = 1
        settings.nullpath_ok = 1
        lifetime = settings.attr_timeout  # libfuse keeps these settings as long as the mount lives, and reads them for each answer

        def keep_attributes(torn: bool) -> None:
            settings.attr_timeout = 0.0 if torn else lifetime

        self.core.kernel.on_torn = keep_attributes
        self.core.started()
        return 0

    def getattr(self, path: int, buffer: int, info: int) -> int:
        """See `fill_attributes`."""
        return self.fill_attributes(path, buffer, info)

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


class _Request(ctypes.Structure):
    """`struct fuse_buf` and room for the fields of later versions, 0 for none."""

    _fields_ = (("buf", mfusepy.fuse_buf), ("later", ctypes.c_byte * 64))


def serve(core: Core, mountpoint: str, options: dict[str, Any]) -> None:
    """Mount, and return when it has been unmounted.

    Raises:
        RuntimeError: libfuse refuses; it has written why to the standard error.
        OSError: the kernel gives no requests.

    """
    handlers = Fuse3(core)
    table = mfusepy.fuse_operations()
    made = callbacks.fill(table, handlers.functions())
    words = callbacks.arguments(options)
    arguments = _Arguments(len(words), (ctypes.c_char_p * len(words))(*words), 0)
    try:
        fuse = _new(arguments, ctypes.addressof(table), ctypes.sizeof(table), None)
    finally:
        _free_arguments(arguments)
    if not fuse:
        raise RuntimeError("libfuse refuses the options")
    try:
        if _mount(fuse, os.fsencode(mountpoint)):
            raise RuntimeError("libfuse can't mount")
        try:
            _serve(handlers, _get_session(fuse))
        finally:
            _unmount(fuse)
    finally:
        _destroy(fuse)
        del made  # only now: C's functions exist as long as these


def _serve(handlers: Fuse3, session: int) -> None:
    def pass_on(address: int, length: int) -> bool:
        request = _Request()
        request.buf.mem, request.buf.size = address, length
        _process(session, ctypes.addressof(request))  # until here, what raises has changed nothing
        return not loop.insist(_exited, session)

    core = handlers.core
    core.connection = _session_fd(session)
    serving = loop.Loop(
        core.connection, handlers.calling, pass_on, handlers.hand_over, core.reporter.errno, most=MAX_THREADS, idle=IDLE_THREADS
    )
    core.leave = serving.leave
    os.chdir("/")  # keeps no folder busy, as libfuse's own `main`
    serving.run()
