"""What libfuse calls, for both bindings: from C's arguments to the file system and back.

`Handlers` has what both have in common; `fuse3` and `fuse2` add what differs. Pointers arrive as numbers, since most are only passed on.

Rules: a handler returns 0 or a number of bytes, or raises; `functions` turns an exception into a negative errno and never lets one through to C.
A read's bytes go from the reading layer's memory into what libfuse writes to the kernel, copied once. Everything that would change something is
EROFS, although the kernel itself refuses most of it on a read-only mount. `flush`, `access`, `fsync` aren't offered: libfuse then tells
the kernel once not to ask. libfuse gives no path where there is a handle (`nullpath_ok`), which spares it the making of one.

Threads: libfuse calls from threads of its own, many at once. `_folders` is a dict whose single operations are atomic; one folder handle
is used by one call at a time (the kernel holds the folder's position lock).
"""

import errno
import itertools
from collections.abc import Callable, Iterator
from ctypes import memmove, string_at
from typing import Any

from optfs.bridge.callbacks import Callback
from optfs.bridge.callers import Caller, killed
from optfs.bridge.errnos import ErrorReporter
from optfs.bridge.kernel_cache import KernelCache
from optfs.bridge.structs import StatLayout
from optfs.errors import Abandoned, VersionGone
from optfs.filesystem import BLOCK_SIZE, Attributes, FileSystem
from optfs.tree.layout import MAX_NAME
from optfs.values import decode_name, encode_name

REFUSED = (
    *("mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "chmod", "chown", "truncate", "write", "create", "utimens"),
    *("setxattr", "removexattr", "ftruncate", "fallocate", "write_buf"),
)
"""Operations that change something, by libfuse's names."""

ANSWERED = (
    *("getattr", "fgetattr", "readlink", "open", "read", "read_buf", "release", "statfs", "getxattr", "listxattr"),
    *("opendir", "readdir", "releasedir", "init"),
)

_WRITING = 0o3 | 0o1000  # O_ACCMODE and O_TRUNC of Linux; access modes other than O_RDONLY write


class _Folder:
    """An open folder: its path, and the listing that this reading of it sees."""

    __slots__ = ("entries", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: list[tuple[str, Attributes]] = []


class Core:
    """State of one mount that handlers share."""

    def __init__(self, filesystem: FileSystem, kernel: KernelCache, reporter: ErrorReporter, started: Callable[[], None]) -> None:
        """Join the parts; `started` is called by libfuse's thread once the kernel has opened the connection."""
        self.filesystem = filesystem
        self.kernel = kernel
        self.reporter = reporter
        self.started = started
        # Set by the binding before `started` is called: asks libfuse's loop to end after its next request. Not to be called once it has ended.
        self.leave: Callable[[], object] = lambda: None
        # Set as `leave` is: the descriptor by which libfuse speaks with the kernel; None where it isn't known.
        self.connection: int | None = None


class Handlers:
    """The operations that are the same for libfuse 2 and 3."""

    def __init__(self, core: Core, binding: Any, caller: Caller, *, listed: bool) -> None:
        """Join the parts.

        Args:
            core: the mount's.
            binding: the module that defines C's structures: `fuse` or `mfusepy`.
            caller: works in handlers only.
            listed: whether the kernel hears attributes with the names of a folder.

        """
        core.filesystem.abandoned = lambda: core.kernel.in_vain() or killed(caller)
        self.core = core
        self.layout = StatLayout(binding.c_stat)
        self.caller = caller
        self._listed = listed
        # Make a structure of what lies at an address, without a copy.
        self._info = binding.fuse_file_info.from_address
        self._statvfs = binding.c_statvfs.from_address
        self._folders: dict[int, _Folder] = {}
        self._numbers = itertools.count(1)

    def functions(self) -> dict[str, Callback]:
        """Return what libfuse may call, by its names for the operations."""
        found = {name: getattr(self, name, None) for name in ANSWERED}
        functions = {name: self._guarded(handler) for name, handler in found.items() if handler is not None}
        return functions | dict.fromkeys(REFUSED, refuse)

    def _guarded(self, handler: Callback) -> Callback:
        def guarded(*arguments: int) -> int:
            try:
                return handler(*arguments) or 0
            except BaseException as error:  # noqa: BLE001 - nothing may reach C, where it would be lost
                return -self.core.reporter.errno(error)

        return guarded

    def fill_attributes(self, path: int, buffer: int, info: int) -> int:
        """Answer `getattr`; also a LOOKUP arrives as one."""
        core = self.core
        if info:  # an open file's own version, whatever the path names by now
            handle = self._info(info).fh
            if not core.kernel.fits(handle):
                return -errno.ESTALE
            attributes = core.filesystem.attributes_of(handle)
            core.kernel.told_of(handle, self.caller)
        else:
            name = _name(path)
            attributes = core.filesystem.attributes(name)
            if attributes.version is not None:
                core.kernel.told(name, attributes.version, attributes.size, self.caller)
        memmove(buffer, self.layout.pack(attributes), self.layout.size)
        return 0

    def readlink(self, path: int, buffer: int, size: int) -> int:
        """Copy the target of a link, ended by a NUL and cut to the buffer, as libfuse wants it."""
        target = encode_name(self.core.filesystem.target(_name(path)))[: size - 1] + b"\0"
        memmove(buffer, target, len(target))
        return 0

    def open(self, path: int, info: int) -> int:
        """Open for reading, and tell the kernel what to think of its pages."""
        fi = self._info(info)
        if fi.flags & _WRITING:
            return -errno.EROFS
        name = _name(path)
        core = self.core
        handle, version, length = core.filesystem.open(name)
        opened = False
        try:
            mode = core.kernel.opened(name, version, length, handle)
            opened = not core.kernel.outdated(name, version, self.caller)
        finally:
            if not opened:  # also for want of memory: the kernel won't release what it wasn't given
                core.filesystem.close(handle)
                core.kernel.closed(handle)
        if not opened:
            return -errno.ESTALE
        fi.fh = handle
        fi.keep_cache = mode.keep_cache
        fi.direct_io = mode.direct_io
        return 0

    def bytes_of(self, size: int, offset: int, info: int) -> tuple[list[memoryview], int]:
        """Return bytes of an open file's pinned version, and how many they are: fewer than `size` only where the file ends."""
        core, handle = self.core, self._info(info).fh
        kernel = core.kernel
        try:
            if kernel.begin_read(handle, offset + size):
                views = core.filesystem.read(handle, offset, size)
                length = sum(map(len, views))
                if not kernel.misread(handle, offset + length, short=length < size):
                    return views, length
        except Abandoned:
            if killed(self.caller):
                raise
        finally:
            kernel.end_read()
        raise VersionGone("an open file was replaced by one of another size, so that its own end can't be told; open it again")

    def release(self, _path: int, info: int) -> int:
        """Close a file."""
        handle = self._info(info).fh
        self.core.filesystem.close(handle)
        self.core.kernel.closed(handle)
        return 0

    def statfs(self, _path: int, buffer: int) -> int:
        """Tell the size of what is known; nothing is free, since nothing can be written."""
        totals = self.core.filesystem.totals()
        stat = self._statvfs(buffer)
        stat.f_bsize = stat.f_frsize = BLOCK_SIZE
        stat.f_blocks = max(1, -(-totals.size // BLOCK_SIZE))  # `df` leaves out a file system without blocks
        stat.f_files = totals.files
        stat.f_namemax = MAX_NAME
        return 0

    def getxattr(self, path: int, name: int, buffer: int, size: int, *_position: int) -> int:
        """Copy an extended attribute, or tell its length."""
        return _copy(self.core.filesystem.xattr(_name(path), _name(name)), buffer, size)

    def listxattr(self, path: int, buffer: int, size: int) -> int:
        """Copy the names of the extended attributes, or tell their length."""
        names = self.core.filesystem.xattrs(_name(path))
        return _copy(b"".join(encode_name(name) + b"\0" for name in names), buffer, size)

    def opendir(self, path: int, info: int) -> int:
        """Give a handle; the listing is taken when it is read."""
        self._info(info).fh = number = next(self._numbers)
        self._folders[number] = _Folder(_name(path))
        return 0

    def releasedir(self, _path: int, info: int) -> int:
        """Let go of the listing."""
        self._folders.pop(self._info(info).fh, None)
        return 0

    def entries_from(self, offset: int, info: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield name, packed attributes, and the next entry's offset. A reading of a folder sees one listing; a rewind takes a new one.

        The entry at which the caller stops counts as one that didn't fit into the answer.
        """
        core = self.core
        folder = self._folders[self._info(info).fh]
        if offset == 0:
            folder.entries = core.filesystem.entries(folder.path)
        entries = folder.entries
        pack, kernel, caller = self.layout.pack, core.kernel, self.caller
        if offset < 2:
            here = core.filesystem.attributes(folder.path)
            above = here._replace(ino=core.filesystem.folder_number(folder.path.rpartition("/")[0] or "/"))
            for position, (dots, shown) in enumerate(((b".", here), (b"..", above))[offset:], offset + 1):
                yield dots, pack(shown), position
            offset = 2
        base = folder.path.rstrip("/") + "/"
        unsettled: list[str] = []
        try:
            for position in range(offset - 2, len(entries)):
                name, attributes = entries[position]
                version = attributes.version if self._listed else None
                # First, as libfuse notes with each entry for how long it may be believed (`KernelCache.on_torn`).
                if version is not None and kernel.note(base + name, version, attributes.size, _nobody):
                    unsettled.append(base + name)
                yield encode_name(name), pack(attributes), position + 3
                if version is not None:
                    kernel.heard(base + name, version, caller)
        finally:  # before the answer, wherever the caller stops
            for path in unsettled:
                kernel.settle(path)


def _nobody() -> int:
    return -1


def _name(address: int) -> str:
    return decode_name(string_at(address))


def refuse(*_arguments: int) -> int:
    """Answer what would change something."""
    return -errno.EROFS


def _copy(data: bytes, buffer: int, size: int) -> int:
    if size == 0 or not buffer:
        return len(data)
    if len(data) > size:
        return -errno.ERANGE
    memmove(buffer, data, len(data))
    return len(data)
