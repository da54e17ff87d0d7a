"""Asks a real mount what the reference model answers, by system calls alone, and compares."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TypeVar

from optfs.demo.services import Services
from tests.support import model
from tests.support.model import AFile, AFolder, ALink, Failure, Keys, Outcome, Path, Stored

T = TypeVar("T")


def attempt(call: Callable[[], T]) -> T | Failure:
    """Return what a system call returns, or its errno."""
    try:
        return call()
    except OSError as error:
        return Failure(error.errno or 0)


class Bucket:
    """What one provider's bucket of the services holds, written by the test and known to the model."""

    def __init__(self, services: Services, provider: str) -> None:
        self.services = services
        self._provider = provider
        self._bucket = services.s3_bucket if provider == "aws" else services.gcs_bucket
        self.keys: dict[str, Stored] = {}

    def put(self, key: str, content: bytes) -> Stored:
        """Write a version of an object."""
        version = self._bucket.put(self.services.prefix + key, content)
        tag = version.etag if self._provider == "aws" else str(version.generation)
        stored = self.keys[key] = Stored(content, version.mtime, tag)
        return stored

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._bucket.delete(self.services.prefix + key)
        del self.keys[key]

    def clear(self) -> None:
        """Delete all objects."""
        for key in list(self.keys):
            self.delete(key)


class Observer:
    """Looks at an account's folder on a mount and compares it with the keys that it is to show."""

    def __init__(self, account: FilePath, provider: str) -> None:
        self._account = os.fsencode(account)
        self._version_attribute = "user.optfs.etag" if provider == "aws" else "user.optfs.generation"

    def path(self, path: Path) -> bytes:
        """Return an absolute path."""
        return self._account + b"/" + model.on_disk(path) if path else self._account

    def look(self, keys: Keys, path: Path) -> Outcome:
        """Compare what is at a path: its kind, and of a file all that `stat` and the extended attributes tell."""
        place = self.path(path)
        here, expected = model.walk(keys, path)
        status = attempt(lambda: os.lstat(place))
        if isinstance(status, Failure):
            self.refused(path, status, expected)
            return expected
        if isinstance(expected, AFile):
            stored = expected.stored
            assert stat.S_ISREG(status.st_mode), path
            # the services know milliseconds, and a float of nanoseconds may be one bit off
            assert (status.st_size, round(status.st_mtime, 3)) == (len(stored.content), stored.mtime), path
            assert status.st_mode & 0o777 == 0o444
            assert os.getxattr(place, self._version_attribute) == stored.tag.encode()
            assert os.getxattr(place, "user.optfs.uri").endswith(b"/" + model.on_disk(here))
            assert attempt(lambda: os.open(place, os.O_RDWR)) == Failure(errno.EROFS)
            assert attempt(lambda: os.truncate(place, 0)) == Failure(errno.EROFS)
        elif isinstance(expected, ALink):
            assert stat.S_ISLNK(status.st_mode), path
            assert os.readlink(place) == model.raw(expected.target)  # noqa: PTH115 - a Path decodes, and bytes are compared
        else:
            assert expected == AFolder(), path
            assert stat.S_ISDIR(status.st_mode), path
        return expected

    def refused(self, path: Path, failure: Failure, expected: Outcome) -> None:
        """Compare errnos."""
        assert failure == expected, path

    def list_folder(self, keys: Keys, path: Path) -> None:
        """Compare a folder's names, in their order, and their kinds."""
        place = self.path(path)
        where, node = model.followed(keys, path)

        def scan() -> list[tuple[bytes, bool]]:
            with os.scandir(place) as entries:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

        found = attempt(scan)
        if isinstance(found, Failure):
            self.refused(path, found, node if isinstance(node, Failure) else Failure(errno.ENOTDIR))
            return
        assert node == AFolder(), path
        expected = model.children(keys, where)
        assert found == [(model.raw(name), isinstance(kind, AFolder)) for name, kind in expected.items()], path

    def open(self, keys: Keys, path: Path) -> tuple[int, Stored] | None:
        """Open a path; return the descriptor and the version that it is to be pinned to, or None where there is no file."""
        place = self.path(path)
        _, node = model.followed(keys, path)
        descriptor = attempt(lambda: os.open(place, os.O_RDONLY))
        if isinstance(descriptor, Failure):
            self.refused(path, descriptor, node)
            return None
        if not isinstance(node, AFile):
            os.close(descriptor)
            assert node == AFolder(), path  # a folder may be opened
            return None
        return descriptor, node.stored

    def pread(self, descriptor: int, stored: Stored, offset: int, count: int, *, current: bool, replaced: bool) -> None:
        """Compare bytes with those of the pinned version.

        ESTALE is right too where that is no longer the `current` one. Where a folder has `replaced` the file, the kernel may give it up:
        then EIO or ESTALE is right.
        """
        found = attempt(lambda: os.pread(descriptor, count, offset))
        if isinstance(found, Failure):
            assert found == Failure(errno.ESTALE) or (replaced and found == Failure(errno.EIO))
            assert replaced or not current, "ESTALE, but the version is there"
            return
        expected = stored.content[offset : offset + count]
        if found != expected:
            at = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), "the end")
            raise AssertionError(f"{len(found)} bytes instead of {len(expected)}; they differ first at {at}")

    def walk_all(self, keys: Keys) -> None:
        """Compare the whole tree, and every byte of every file."""
        self.list_folder(keys, ())
        for path, node in model.every_path(keys):
            assert self.look(keys, path) == node
            if isinstance(node, AFile):
                with open(self.path(path), "rb") as file:
                    assert file.read() == node.stored.content, path
            else:
                self.list_folder(keys, path)
