"""The read-only file system: operations on paths and handles, without FUSE.

Job: joins the tree (what exists) with reading (the bytes of one pinned version) into what a file system call asks for. Nothing here
waits by itself: every call hands one deadline, `timeout` seconds from its start, to the layers below.

Rules: existence, size and times come from listings only. A handle pins the version that `open` saw. Paths are absolute, `/`-separated,
in the convention of `values.decode_name`.

Threads: any thread may call any method. `_handles` is a dict whose single operations are atomic; a handle's number is never used twice.
"""

import itertools
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from optfs.cache.protocol import BlockCache
from optfs.errors import IsAFolder, NoAttribute, NotALink, NotSupported, PathError
from optfs.tree.folders import File, Folder, Link, Node, inode_number
from optfs.values import AccountRoot, Clock, Deadline, ObjectInfo, Provider, encode_name, never

BLOCK_SIZE = 4096
"""Unit of `statfs`, bytes."""

XATTR_URI = "user.optfs.uri"
XATTR_ETAG = "user.optfs.etag"
XATTR_GENERATION = "user.optfs.generation"
XATTR_CACHED = "user.optfs.cached"


class Attributes(NamedTuple):
    """What `stat` shows of one name.

    Attributes:
        mode: type and permissions.
        size: bytes; of a link, the length of its target.
        mtime: seconds since the epoch.
        blocks: units of 512 bytes, rounded up (POSIX's `st_blocks`).
        version: of a file, what pins its content; None otherwise.

    """

    mode: int
    size: int
    mtime: float
    ino: int
    nlink: int
    blocks: int
    uid: int
    gid: int
    version: str | None


class Opened(NamedTuple):
    """One open file.

    Attributes:
        handle: for `read` and `close`.
        version: that the handle is pinned to.
        size: of that version, bytes.

    """

    handle: int
    version: str
    size: int


class Totals(NamedTuple):
    """What is known of the tree's extent: grows as folders are listed."""

    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns everything, and which permissions are taken away.

    Attributes:
        umask: bits taken from 0444 (files) and 0555 (folders).

    """

    uid: int
    gid: int
    umask: int


class Tree(Protocol):
    """The part of the tree that the file system needs (`tree.catalog.Catalog`)."""

    def lookup(self, path: str, deadline: Deadline) -> Node:
        """Return what the path names."""
        ...

    def children(self, path: str, deadline: Deadline) -> Sequence[tuple[str, Node]]:
        """Return what the folder lists."""
        ...

    def following(self, after: ObjectInfo, count: int) -> Sequence[ObjectInfo]:
        """Return the next files in the order of a walk, without a request."""
        ...


class PinnedFile(Protocol):
    """One open file of the reading layer (`reading.files.OpenFile`)."""

    def read(self, offset: int, length: int, abandoned: Callable[[], bool]) -> list[memoryview]:
        """Return exactly the bytes asked for, as far as the file goes; give up waiting for them where `abandoned` says so."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Reading(Protocol):
    """The part of the reading layer that the file system needs (`reading.files.Files`)."""

    def open(self, info: ObjectInfo, following: Callable[[int], Sequence[ObjectInfo]]) -> PinnedFile:
        """Open one version."""
        ...


def _nothing_known() -> Totals:
    return Totals(0, 0)


class FileSystem:
    """Everything that a mount answers."""

    def __init__(
        self,
        tree: Tree,
        files: Reading,
        *,
        roots: Mapping[Provider, AccountRoot],
        owner: Owner,
        cache: BlockCache | None,
        timeout: float,
        clock: Clock,
        totals: Callable[[], Totals] = _nothing_known,
    ) -> None:
        """Join tree and reading.

        Args:
            tree: what exists.
            files: reads one version.
            roots: where each provider's data lies, for `user.optfs.uri`.
            owner: of everything.
            cache: the block cache, for `user.optfs.cached`; None without one.
            timeout: seconds that one operation may wait for listings.
            clock: monotonic.
            totals: what `statfs` tells.

        """
        self._tree = tree
        self._files = files
        self._roots = roots
        self._cache = cache
        self._timeout = timeout
        self._clock = clock
        self._totals = totals
        self._uid, self._gid = owner.uid, owner.gid
        self._file_mode = stat.S_IFREG | (0o444 & ~owner.umask)
        self._folder_mode = stat.S_IFDIR | (0o555 & ~owner.umask)
        self._link_mode = stat.S_IFLNK | 0o777  # Linux ignores a link's permissions and shows all
        self._handles: dict[int, tuple[PinnedFile, Attributes]] = {}
        # Set by the bridge before the first operation: whether the program that the calling thread works for is being killed.
        self.abandoned: Callable[[], bool] = never
        self._numbers = itertools.count(1)

    def attributes(self, path: str) -> Attributes:
        """Return what `stat` shows.

        Raises:
            NotFound, NameTooLong, NotAFolder, AccessError, ServiceError, DeadlineExceeded: see `optfs.errors`.

        """
        return self._attributes(self._lookup(path))

    def entries(self, path: str) -> list[tuple[str, Attributes]]:
        """Return what a folder lists, in the order of the names' bytes, without `.` and `..`; raises as `attributes`."""
        attributes = self._attributes
        return [(name, attributes(node)) for name, node in self._tree.children(path, self._deadline())]

    def folder_number(self, path: str) -> int:
        """Return the inode number of the folder at `path`, which needn't be known to exist."""
        return inode_number(path)

    def target(self, path: str) -> str:
        """Return what a symbolic link points to.

        Raises:
            NotALink: the path names something else.

        """
        node = self._lookup(path)
        if not isinstance(node, Link):
            raise NotALink(f"{path!a} is not a symbolic link")
        return node.target

    def open(self, path: str) -> Opened:
        """Open a file at the version that its listing shows now.

        Raises:
            IsAFolder: the path names a folder.

        """
        node = self._file(path)
        info, tree = node.info, self._tree
        opened = self._files.open(info, lambda count: tree.following(info, count))
        handle = next(self._numbers)
        self._handles[handle] = opened, self._attributes(node)
        return Opened(handle, info.version, info.size)

    def read(self, handle: int, offset: int, size: int) -> list[memoryview]:
        """Return bytes of the pinned version: exactly `size`, fewer only where the file ends.

        Raises:
            VersionGone: the version is no longer there.
            AccessError, ServiceError, DeadlineExceeded: see `optfs.errors`.

        """
        return self._handles[handle][0].read(offset, size, self.abandoned)

    def attributes_of(self, handle: int) -> Attributes:
        """Return the pinned version's, whatever the path names now: what the kernel hears where it asks by a handle, before it reads on.

        Linux asks for `fstat` by the path. Sends nothing.
        """
        return self._handles[handle][1]

    def close(self, handle: int) -> None:
        """Let go of a handle; one that is closed already is ignored."""
        opened = self._handles.pop(handle, None)
        if opened is not None:
            opened[0].close()

    def xattr(self, path: str, name: str) -> bytes:
        """Return an extended attribute.

        Raises:
            NotSupported: the name lies outside `user.`; coreutils' `ls` remembers that and doesn't ask again for each file.
            NoAttribute: there is none of that name.

        """
        if not name.startswith("user."):
            raise NotSupported("only extended attributes in user. exist here")
        node = self._lookup(path)
        if isinstance(node, File):
            info = node.info
            root = self._roots[info.provider]
            if name == XATTR_URI:
                return encode_name(root.uri(info.key))
            if name == self._version_attribute(info):
                return info.version.encode()
            if name == XATTR_CACHED:
                cached = self._cache.cached_bytes(root.uri(info.key), info) if self._cache is not None else 0
                return str(cached).encode()
        raise NoAttribute(f"there is no extended attribute {name!a}")

    def xattrs(self, path: str) -> list[str]:
        """Return the names of a path's extended attributes; only files have any."""
        node = self._lookup(path)
        if isinstance(node, File):
            return [XATTR_URI, self._version_attribute(node.info), XATTR_CACHED]
        return []

    def totals(self) -> Totals:
        """Return what is known of the tree's extent, without a request."""
        return self._totals()

    def open_files(self) -> int:
        """Return how many handles are open."""
        return len(self._handles)

    def _deadline(self) -> Deadline:
        return Deadline.after(self._clock, self._timeout, self.abandoned)

    def _lookup(self, path: str) -> Node:
        return self._tree.lookup(path, self._deadline())

    def _file(self, path: str) -> File:
        node = self._lookup(path)
        if isinstance(node, File):
            return node
        if isinstance(node, Folder):
            raise IsAFolder(f"{path!a} is a folder")
        raise PathError(f"{path!a} is a symbolic link")  # the kernel follows links itself and never opens one

    @staticmethod
    def _version_attribute(info: ObjectInfo) -> str:
        return XATTR_ETAG if info.provider == "aws" else XATTR_GENERATION

    def _attributes(self, node: Node) -> Attributes:
        if isinstance(node, File):
            info = node.info
            size = info.size
            return Attributes(self._file_mode, size, info.mtime, node.ino, 1, (size + 511) >> 9, self._uid, self._gid, info.version)
        if isinstance(node, Folder):
            # nlink 1 tells `find` that a folder's links don't count its subfolders
            return Attributes(self._folder_mode, 0, node.mtime, node.ino, 1, 0, self._uid, self._gid, None)
        return Attributes(self._link_mode, len(encode_name(node.target)), node.mtime, node.ino, 1, 0, self._uid, self._gid, None)
