"""Real mounts of services that break: what programs get meanwhile, how long it takes them, and what the mount logs of it."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from optfs.demo.faults import Action, Fault
from optfs.demo.services import Services
from optfs.demo.traffic import Kind
from tests.support.mounting import LIMIT, Mounted, eventually, require

Got = TypeVar("Got")

TIMEOUT = 3.0
"""`--timeout` of these mounts, seconds."""
SLACK = 15.0
"""Seconds by which a loaded machine may be late."""
PIECE = 128 * 1024
"""Bytes that are read at a time."""


class Outcome(NamedTuple):
    """What a program got of a file.

    Attributes:
        content: all bytes that it got, from the start of the file.
        errno: of the failure that ended it; 0 when it reached the end.
        seconds: the longest that a single operation took.

    """

    content: bytes
    errno: int
    seconds: float


def read(path: Path) -> Outcome:
    """Read a file from start to end as a program does, with plain system calls."""
    content = bytearray()
    longest = 0.0
    began = time.monotonic()
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return Outcome(b"", error.errno or 0, time.monotonic() - began)
    try:
        while True:
            began = time.monotonic()
            piece = os.read(fd, PIECE)
            longest = max(longest, time.monotonic() - began)
            if not piece:
                return Outcome(bytes(content), 0, longest)
            content += piece
    except OSError as error:
        return Outcome(bytes(content), error.errno or 0, max(longest, time.monotonic() - began))
    finally:
        os.close(fd)


def names(path: Path) -> tuple[list[str], int, float]:
    """List a folder; return its names, the errno of a failure or 0, and the seconds that it took."""
    began = time.monotonic()
    try:
        found, number = sorted(os.listdir(path)), 0  # noqa: PTH208 - the system call itself
    except OSError as error:
        found, number = [], error.errno or 0
    return found, number, time.monotonic() - began


def all_at_once(things: Mapping[str, Path], what: Callable[[Path], Got]) -> dict[str, Got]:
    """Do the same with all paths at the same time, each in a thread of its own."""
    with ThreadPoolExecutor(len(things)) as threads:
        return dict(zip(things, threads.map(what, things.values()), strict=True))


def readable(path: Path, content: bytes, limit: float = LIMIT) -> None:
    """Wait until a file can be read, and demand its bytes."""
    eventually(lambda: read(path).errno == 0, f"{path.name} can be read", limit)
    assert read(path).content == content


class Ground(NamedTuple):
    """Services and a mount of them that a test may disturb."""

    services: Services
    mount: Mounted

    def break_key(self, kind: Kind, key: str, action: Action, times: int | None = None) -> Fault:
        """Let requests for one key (of listings: one prefix) go wrong; `key` is relative to the account's folder."""
        whole = self.services.prefix + key
        return self.services.faults.add(Fault(lambda request: request.kind == kind and request.key == whole, action, times))

    def break_all(self, kind: Kind, action: Action, times: int | None = None) -> Fault:
        """Let requests of a kind go wrong."""
        return self.services.faults.add(Fault(lambda request: request.kind == kind, action, times))

    def path(self, key: str) -> Path:
        """Where a key shows."""
        return self.mount.account / key

    def warnings(self, *, since: int = 0) -> list[str]:
        """Return the lines of the mount's log from warnings on, behind its first `since` characters."""
        lines = self.mount.text()[since:].splitlines()
        return [line for line in lines if " WARNING " in line or " ERROR " in line]


@contextlib.contextmanager
def mounted(services: Services, folder: Path, provider: str, binding: str, *options: str) -> Iterator[Ground]:
    """Mount services that run, without a block cache; `options` come last, and win."""
    require(binding)
    common = ("--timeout", f"{TIMEOUT:.0f}s", "--cache-size", "0")
    with Mounted(services, folder, provider, binding, *common, *options) as mount:
        yield Ground(services, mount)


@contextlib.contextmanager
def ground(services: Services, folder: Path, provider: str, binding: str, *options: str) -> Iterator[Ground]:
    """Start the services and mount them as `mounted` does."""
    with services, mounted(services, folder, provider, binding, *options) as ready:
        yield ready
