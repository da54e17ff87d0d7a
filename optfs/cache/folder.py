"""The folder of blocks: opened safely, and reached by descriptors alone.

`<cache-dir>/blocks-v1/<shard>/<block>`; `cache.db` beside the shards is the index. Another format would be another `blocks-vN`, so that
two versions of the program don't disturb each other.

Rules:
- `blocks-v1` and its shards are real folders, owned by this user, closed to others. One that others may write to is refused,
  at opening and, by the writer, before each batch.
- Blocks are opened relative to a shard's descriptor with O_NOFOLLOW, so that no symbolic link is followed, to read or to write.
- A block is written to `<name>.tmp` in its shard and renamed: a name either holds a whole block or, after a crash of the machine, something
  that fails its checksums. Nothing is synced.
- Where a directory has the name of a file that goes, it is moved to `blocks-v1/aside-…` and left there: nobody knows what it holds.
- The temporary name follows from the block's, so that what a killed process left is overwritten rather than gathered; and while somebody
  writes a block, nobody else does: two would rename one another's halves.

Threads: any. Descriptors are closed when the last reference goes, so a reader that holds a `Folder` never uses a recycled descriptor.
"""

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from optfs.buffers import Buffer
from optfs.cache.blockfile import GRAIN, SHARDS, block_name, data_matches, header_length, header_matches, identity
from optfs.cache.protocol import BlockKey
from optfs.errors import ConfigError

BLOCKS = "blocks-v1"
INDEX = "cache.db"
"""The name that diskcache gives it."""
TEMPORARY = ".tmp"
IN_FLIGHT = 60.0
"""Seconds after which a block that is being written is taken for one that a killed process left."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that somebody planted would hang.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder holds blocks that optfs can fetch again. See https://bford.info/cachedir/
"""


class Folder:
    """An open folder of blocks.

    Attributes:
        path: of the folder.
        fd: its descriptor.

    """

    def __init__(self, path: Path, fd: int, shards: Sequence[int]) -> None:
        """Take over the descriptors; `open_folder` is the way to make one."""
        self.path = path
        self.fd = fd
        self._shards = tuple(shards)
        self._identity = _inode(os.fstat(fd))
        weakref.finalize(self, _close_all, (fd, *self._shards))

    def gone(self) -> bool:
        """Tell whether the path no longer leads to this folder and its shards."""
        try:
            if _inode(os.lstat(self.path)) != self._identity:
                return True
            return any(
                _inode(os.stat(name, dir_fd=self.fd, follow_symlinks=False)) != _inode(os.fstat(fd))
                for name, fd in zip(SHARDS, self._shards, strict=True)
            )
        except OSError:
            return True

    def check(self) -> None:
        """Check anew what was checked at opening: whose the folders are, and who may write to them.

        Raises:
            ConfigError: the folder isn't this user's own any more.
            OSError: the disk fails.

        """
        _check_parent(self.path.parent, self.path.parent.stat())
        for name, fd in zip(("", *SHARDS), (self.fd, *self._shards), strict=True):
            _check_own(self.path / name, os.fstat(fd))

    def names(self, shard: int) -> list[str]:
        """Return the names in a shard."""
        # A descriptor of its own, as listings through one descriptor share a position.
        fd = os.open(".", _DIRECTORY, dir_fd=self._shards[shard])
        try:
            return os.listdir(fd)  # noqa: PTH208 - a Path can't list a descriptor
        finally:
            os.close(fd)

    def stat(self, name: str) -> os.stat_result | None:
        """Return a block's (or a temporary file's) attributes, or None if it isn't there."""
        try:
            return os.stat(name, dir_fd=self._shard(name), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> int:
        """Return a descriptor to read a block.

        Raises:
            OSError: FileNotFoundError where it isn't there, ELOOP for a symbolic link.

        """
        return os.open(name, _READ, dir_fd=self._shard(name))

    def is_in_flight(self, name: str, now: float) -> bool:
        """Return whether somebody is writing a block; `now`: seconds since the epoch."""
        writing = self.stat(name + TEMPORARY)
        return writing is not None and stat.S_ISREG(writing.st_mode) and abs(now - writing.st_mtime) <= IN_FLIGHT

    def write(self, name: str, pieces: Iterable[tuple[int, bytes | memoryview]], now: float) -> bool:
        """Write a block; return False when it is left to somebody else who is writing it.

        Args:
            name: the file's.
            pieces: all of it, each with its offset.
            now: seconds since the epoch.

        Raises:
            OSError: the disk fails; nothing is left of the block.

        """
        shard = self._shard(name)
        temporary = name + TEMPORARY
        if self.is_in_flight(name, now):
            return False
        self.unlink(temporary)
        try:
            fd = os.open(temporary, _WRITE, 0o600, dir_fd=shard)
        except FileExistsError:
            if self.is_in_flight(name, now):  # begun since
                return False
            raise
        try:
            _write_all(fd, pieces)
            # Whoever was stopped for a while may find that it was taken for dead, and that the name is another one's by now.
            if not self._is(temporary, fd):
                return False
            try:
                os.rename(temporary, name, src_dir_fd=shard, dst_dir_fd=shard)
            except IsADirectoryError:
                self.unlink(name)
                os.rename(temporary, name, src_dir_fd=shard, dst_dir_fd=shard)
        except FileNotFoundError:
            return False
        except BaseException:  # also for want of memory
            if self._is(temporary, fd):
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=shard)
            raise
        finally:
            os.close(fd)
        return True

    def _is(self, name: str, fd: int) -> bool:
        found = self.stat(name)
        return found is not None and _inode(found) == _inode(os.fstat(fd))

    def unlink(self, name: str) -> bool:
        """Remove a block (or whatever has this name in its shard); return False where it is gone already.

        Raises:
            OSError: the disk fails.

        """
        try:
            self._remove(name, self._shard(name))
        except FileNotFoundError:
            return False
        return True

    def unlink_in(self, shard: int, name: str) -> bool:
        """Remove whatever has this name in a shard, if that can be done; return whether it was."""
        try:
            self._remove(name, self._shards[shard])
        except OSError:
            return False
        return True

    def unlink_beside(self, name: str) -> None:
        """Remove whatever has this name beside the shards, if anything.

        Raises:
            OSError: the disk fails.

        """
        with contextlib.suppress(FileNotFoundError):
            self._remove(name, self.fd)

    def statvfs(self) -> os.statvfs_result:
        """Return what the file system says of its space."""
        return os.fstatvfs(self.fd)

    def _remove(self, name: str, parent: int) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            os.rename(name, f"aside-{name}-{os.urandom(4).hex()}", src_dir_fd=parent, dst_dir_fd=self.fd)

    def _shard(self, name: str) -> int:
        return self._shards[SHARDS.index(name[0])]


def open_folder(cache_dir: Path) -> Folder:
    """Open `<cache_dir>/blocks-v1`, made where it is missing.

    Raises:
        ConfigError: it isn't a folder of this user's own.
        OSError: the disk fails.

    """
    with contextlib.suppress(FileExistsError):  # a file or a dangling link: told below
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = _open_directory(cache_dir, None)
    try:
        _check_parent(cache_dir, os.fstat(parent))
        path = cache_dir / BLOCKS
        fd = _own_directory(path, parent)
    finally:
        os.close(parent)
    fds = [fd]
    try:
        for name in SHARDS:
            if not _is_directory(name, fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            fds.append(_own_directory(path / name, fd))
        _tag(fd)
    except BaseException:
        _close_all(fds)
        raise
    return Folder(path, fd, fds[1:])


def read_block(folder: Folder, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
    """Return a block, checked against its identity and checksums, or None if the file is damaged or another's; see `BlockCache.get`.

    Raises:
        OSError: FileNotFoundError where there is none; else the disk fails.

    """
    return _read(folder, key, 0, key.length, into)


def read_range(folder: Folder, key: BlockKey, start: int, length: int) -> bytes | None:
    """Return a range of a block as `read_block` does the whole; see `BlockCache.get_range`."""
    low, high = start - key.start, start - key.start + length
    begin = low - low % GRAIN
    data = _read(folder, key, begin // GRAIN, min(high + -high % GRAIN, key.length) - begin, None)
    return None if data is None else bytes(data[low - begin : high - begin])


def _read(folder: Folder, key: BlockKey, first: int, length: int, into: Buffer | None) -> bytes | Buffer | None:
    """Return `length` bytes, whole grains from number `first` on."""
    expected = identity(key)
    offset = header_length(key, expected)
    fd = folder.open(block_name(key))
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != offset + key.length:
            return None
        header = os.pread(fd, offset, 0)
        if len(header) != offset or not header_matches(header, expected):
            return None
        data, done = _pread(fd, length, offset + first * GRAIN, into)
    finally:
        os.close(fd)
    return data if done == length and data_matches(header, expected, first, data) else None


def _pread(fd: int, length: int, offset: int, into: Buffer | None) -> tuple[bytes | Buffer, int]:
    """Read to where it is wanted; return that, and how much it was."""
    if into is not None:
        return into, os.preadv(fd, [into], offset)
    data = os.pread(fd, length, offset)
    return data, len(data)


def _open_directory(path: Path, parent: int | None) -> int:
    try:
        return os.open(path if parent is None else path.name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:  # which of the two a link gives depends on the kernel
            raise
        raise ConfigError(f"the cache folder {path} is not a folder (or is a link): remove it, or choose another --cache-dir") from None


def _own_directory(path: Path, parent: int) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=parent)
    fd = _open_directory(path, parent)
    try:
        _make_private(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_private(path: Path, fd: int) -> None:
    found = os.fstat(fd)
    _check_own(path, found)
    if found.st_mode & 0o077:
        os.fchmod(fd, 0o700)


def _check_parent(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {os.geteuid(), 0} and os.geteuid() != 0:
        raise ConfigError(f"the cache folder {path} belongs to another user: choose another --cache-dir")
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise ConfigError(f"others may write to the cache folder {path}: chmod go-w it, or choose another --cache-dir")


def _check_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigError(f"the cache folder {path} belongs to another user: choose another --cache-dir")
    if found.st_mode & 0o022:
        raise ConfigError(f"others may write to the cache folder {path}: remove it, or choose another --cache-dir")


def _is_directory(name: str, parent: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _tag(fd: int) -> None:
    try:
        tag = os.open("CACHEDIR.TAG", _WRITE, 0o600, dir_fd=fd)
    except FileExistsError:
        return
    try:
        os.write(tag, _TAG)
    finally:
        os.close(tag)


def _write_all(fd: int, pieces: Iterable[tuple[int, bytes | memoryview]]) -> None:
    for offset, piece in pieces:
        done = os.pwrite(fd, piece, offset)
        while done < len(piece):  # a disk that fills up, or a signal, cut the first write
            done += os.pwrite(fd, memoryview(piece)[done:], offset + done)


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
