"""Objects that are overwritten and deleted under a real mount, while something of them is open, read ahead, in memory or on disk.

A handle reads the bytes of the version that it was opened at, or ESTALE; a new open sees the new version as soon as a listing has shown it.
"""

import errno
import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from optfs.demo.faults import Answer, Fault, Html
from optfs.demo.services import Services
from optfs.demo.traffic import Request
from optfs.values import MiB
from tests.support.broken import ground, mounted, read
from tests.support.mounting import eventually

KEY = "type=decisions/date=2026-11-01/experiment=1/part-0.parquet"
SHORT_TTL = ("--listing-ttl", "100ms")
OLD = random.Random(3).randbytes(24 * MiB + 3)
NEW = random.Random(4).randbytes(24 * MiB + 3)

every_mount = pytest.mark.parametrize(("provider", "binding"), [("aws", "fuse3"), ("gcp", "fuse3"), ("aws", "fuse2")])
either_store = pytest.mark.parametrize("provider", ["aws", "gcp"])


def becomes(path: Path, content: bytes, *, before: bytes) -> None:
    """Wait until a new open sees `content`; until then it sees what was before, or is told that it's gone."""

    def seen() -> bool:
        got = read(path)
        assert got.errno in {0, errno.ESTALE}
        assert got.content == content or before.startswith(got.content)
        return got.errno == 0 and got.content == content

    eventually(seen, "a new open sees the new version")


def own_bytes(fd: int, content: bytes, offset: int, length: int) -> bool:
    """Read from an old handle: True: its own bytes; False: ESTALE; anything else fails."""
    try:
        got = os.pread(fd, length, offset)
    except OSError as error:
        assert error.errno == errno.ESTALE  # noqa: PT017 - the other outcome that is allowed
        return False
    assert got == content[offset : offset + len(got)]
    assert got
    return True


@every_mount
def test_overwritten_between_two_blocks_of_a_readahead(tmp_path: Path, provider: str, binding: str) -> None:
    """Half a stream has come when the object changes: the stream's bytes stay the old ones or end with ESTALE."""
    services = Services()
    services.put(KEY, OLD)
    with ground(services, tmp_path, provider, binding, "--memory", "16MiB", *SHORT_TTL) as ready:
        services.pace.rate = 8 * MiB  # of each connection: ranges are under way when the object changes
        fd = os.open(ready.path(KEY), os.O_RDONLY)
        try:
            for offset in range(0, 2 * MiB, 128 * 1024):
                assert own_bytes(fd, OLD, offset, 128 * 1024)
            services.put(KEY, NEW)
            services.pace.rate = 1024 * MiB
            outcomes = [own_bytes(fd, OLD, offset, 128 * 1024) for offset in range(2 * MiB, len(OLD), 128 * 1024)]
            assert not outcomes[-1]  # it lies further on than memory has room for
            becomes(ready.path(KEY), NEW, before=OLD)
            own_bytes(fd, OLD, 0, 128 * 1024)
        finally:
            os.close(fd)


@either_store
def test_overwritten_and_deleted_while_in_the_block_cache(tmp_path: Path, provider: str) -> None:
    """What the disk holds of a version serves that version alone, in this mount and in the next one."""
    services = Services()
    services.put(KEY, OLD)
    services.put(KEY + ".other", b"x")
    options = ("--cache-size", "1GiB", *SHORT_TTL)
    with services:
        with mounted(services, tmp_path, provider, "fuse3", *options) as ready:
            path = ready.path(KEY)
            assert read(path).content == OLD
            eventually(lambda: int(os.getxattr(path, "user.optfs.cached")) == len(OLD), "all of it is in the cache")
        services.put(KEY, NEW)
        services.requests.clear()
        with mounted(services, tmp_path, provider, "fuse3", *options) as ready:
            path = ready.path(KEY)
            assert read(path).content == NEW
            eventually(lambda: int(os.getxattr(path, "user.optfs.cached")) == len(NEW), "all of it is in the cache")
            services.delete(KEY)
            eventually(lambda: read(path).errno == errno.ENOENT, "it is gone")
            services.put(KEY, OLD[::-1])
            eventually(lambda: read(path).errno == 0, "it is back")
            assert read(path).content == OLD[::-1]


@every_mount
def test_a_version_that_a_read_finds_gone_is_looked_for_anew(tmp_path: Path, provider: str, binding: str) -> None:
    """In a complete day of the past, whose listing would be believed for an hour: a new open sees the new version, a deleted name is gone."""
    services = Services()
    services.put(KEY, OLD[:1000])
    services.put("type=decisions/date=2026-11-01/_SUCCESS", b"")
    services.put("type=decisions/date=2026-11-01/zero", b"zero")
    with ground(services, tmp_path, provider, binding) as ready:
        changed, deleted = ready.path(KEY), ready.path("type=decisions/date=2026-11-01/zero")
        assert (changed.stat().st_size, deleted.stat().st_size) == (1000, 4)
        services.put(KEY, NEW[:2000])
        assert read(changed).errno == errno.ESTALE
        assert read(changed).content == NEW[:2000]
        services.delete("type=decisions/date=2026-11-01/zero")
        assert read(deleted).errno == errno.ESTALE
        eventually(lambda: read(deleted).errno == errno.ENOENT, "the kernel doesn't believe in it any more", 5)
        assert deleted.name not in os.listdir(deleted.parent)  # noqa: PTH208 - the system call itself


@every_mount
def test_a_version_that_a_read_was_denied_is_looked_for_anew(tmp_path: Path, provider: str, binding: str) -> None:
    """S3 denies what is missing to who may not list the whole bucket: a part that was deleted would show, and fail, for an hour otherwise."""
    services = Services()
    services.put(KEY, OLD[:1000])
    services.put("type=decisions/date=2026-11-01/_SUCCESS", b"")
    services.put("type=decisions/date=2026-11-01/zero", b"zero")
    denied = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    with ground(services, tmp_path, provider, binding) as ready:
        deleted = ready.path("type=decisions/date=2026-11-01/zero")
        assert deleted.stat().st_size == 4
        services.delete("type=decisions/date=2026-11-01/zero")
        services.faults.add(Fault(lambda request: request.kind == "get" and request.key.endswith("/zero"), denied, times=None))
        assert read(deleted).errno == errno.EACCES
        eventually(lambda: read(deleted).errno == errno.ENOENT, "the kernel doesn't believe in it any more", 5)
        assert deleted.name not in os.listdir(deleted.parent)  # noqa: PTH208 - the system call itself


@every_mount
def test_deleted_while_open(tmp_path: Path, provider: str, binding: str) -> None:
    """What was fetched can be read, the rest is ESTALE, and the name is gone for everybody else."""
    services = Services()
    services.put(KEY, OLD)
    services.put(KEY + ".other", b"x")
    with ground(services, tmp_path, provider, binding, *SHORT_TTL) as ready:
        path = ready.path(KEY)
        fd = os.open(path, os.O_RDONLY)
        try:
            assert own_bytes(fd, OLD, 0, 4096)
            services.delete(KEY)
            eventually(lambda: read(path).errno == errno.ENOENT, "the name is gone")
            assert own_bytes(fd, OLD, 0, 4096)
            assert not own_bytes(fd, OLD, len(OLD) - 70_000, 4096)
            services.put(KEY, NEW[: 1 * MiB])
            eventually(lambda: read(path).errno == 0, "it is back")
            assert read(path).content == NEW[: 1 * MiB]
            assert not own_bytes(fd, OLD, len(OLD) - 70_000, 4096)
        finally:
            os.close(fd)


@every_mount
def test_a_reader_that_waits_for_the_end_hears_that_a_shorter_version_came(tmp_path: Path, provider: str, binding: str) -> None:
    """The kernel would take the shorter one's size for the end of the file, and the program its former content for shorter than it was."""
    services = Services()
    services.put(KEY, OLD[: 1 * MiB])
    with ground(services, tmp_path, provider, binding, *SHORT_TTL) as ready:
        path = ready.path(KEY)
        services.pace.rate = 256 * 1024  # the end comes after 4 s
        fd = os.open(path, os.O_RDONLY)
        outcomes: list[bool] = []
        reader = threading.Thread(target=lambda: outcomes.append(own_bytes(fd, OLD, 1 * MiB - 4096, 4096)))
        try:
            reader.start()
            eventually(lambda: services.requests.count("get") > 0, "its bytes are under way")
            services.put(KEY, NEW[:1000])
            began = time.monotonic()
            eventually(lambda: path.stat().st_size == 1000, "the new version shows")
            assert time.monotonic() - began < 3
            reader.join(60)
            assert outcomes == [False]
            services.pace.rate = 1024 * MiB
            assert read(path).content == NEW[:1000]
        finally:
            reader.join(60)
            os.close(fd)


@every_mount
@pytest.mark.parametrize("size", [5_000, 400_000])
def test_a_folder_that_shows_another_version_leaves_an_open_one_its_end(tmp_path: Path, provider: str, binding: str, size: int) -> None:
    """Names come with attributes, which the kernel believed for a second more: of the opened version it showed no end, or one too early."""
    services = Services()
    services.put(KEY, OLD[:200_000])
    with ground(services, tmp_path, provider, binding, "--listing-ttl", "1s") as ready:
        path = ready.path(KEY)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.pread(fd, 100, 0)
            os.pread(fd, 4096, 199_000)
            services.put(KEY, NEW[:size])
            eventually(lambda: [entry.stat().st_size for entry in os.scandir(path.parent)] == [size], "the new version shows")
            for _ in range(20):
                for offset in (0, 150_000, 199_000):
                    own_bytes(fd, OLD[:200_000], offset, 4096)
                time.sleep(0.03)
        finally:
            os.close(fd)


@every_mount
def test_an_end_that_is_cached_stays_the_end_while_other_reads_are_slow(tmp_path: Path, provider: str, binding: str) -> None:
    """The kernel drops it for a longer version when they have ended, and filled it up with zeros until then; also within one read of both."""
    services = Services()
    old = OLD[: 12 * MiB + 1000]
    services.put(KEY, old)
    with ground(services, tmp_path, provider, binding, "--timeout", "20s", *SHORT_TTL) as ready:
        path = ready.path(KEY)
        fd = os.open(path, os.O_RDONLY)
        tail, slow = 12 * MiB, 12 * MiB - 128 * 1024

        def read_slowly() -> None:
            own_bytes(fd, old, slow, 1 * MiB)

        reader = threading.Thread(target=read_slowly)
        looker = threading.Thread(target=path.stat)
        try:
            assert own_bytes(fd, old, tail, 4096)
            services.requests.clear()
            services.pace.latency = 1.5
            reader.start()
            eventually(lambda: services.requests.count("get") > 0, "its bytes are asked for")
            services.pace.latency = 0
            services.put(KEY, NEW)
            time.sleep(0.2)  # the listing's time to live
            looker.start()
            while reader.is_alive() or looker.is_alive():
                own_bytes(fd, old, tail, 4096)
                time.sleep(0.02)
        finally:
            reader.join(60)
            looker.join(60)
            os.close(fd)


@every_mount
def test_an_open_of_another_version_than_the_kernel_was_just_told_of_is_refused(tmp_path: Path, provider: str, binding: str) -> None:
    """It would take the size of the one that it asked for before for that of what is opened."""
    services = Services()
    services.put(KEY, version(1))
    numbers = itertools.count(2)

    def changes(request: Request) -> bool:
        if request.kind == "list":
            services.put(KEY, version(next(numbers)))
        return False

    with ground(services, tmp_path, provider, binding, "--listing-ttl", "1ms") as ready:
        path = ready.path(KEY)
        assert read(path).content == version(1)
        services.faults.add(Fault(changes, Html()))
        assert read(path).errno == errno.ESTALE


def version(number: int) -> bytes:
    """Return a content that tells its number at each place, and of another size than that of the number before."""
    return number.to_bytes(4, "big") * (50_001 + number * 7919 % 50_000)


def _read_on(path: Path, until: threading.Event, seen: list[int], wrong: list[str]) -> None:
    """Open and read again and again; note the versions seen in `seen`, the negative errno of a failure, and what bytes of none are in `wrong`."""
    while not until.is_set():
        got = read(path)
        if got.errno == errno.ESTALE:
            continue
        if got.errno:
            seen.append(-got.errno)
            continue
        number = int.from_bytes(got.content[:4], "big")
        whole = version(number)
        if got.content == whole:
            seen.append(number)
        else:
            words = {int.from_bytes(got.content[at : at + 4], "big") for at in range(0, len(got.content), 4)}
            wrong.append(
                f"{len(got.content)} bytes of {len(whole)} of version {number}, with those of {sorted(words)[:9]}, after {seen[-1:]}"
            )


@every_mount
def test_an_object_that_changes_all_the_time_is_never_mixed(tmp_path: Path, provider: str, binding: str) -> None:
    """Readers who open it again and again see whole versions, and never an older one after a newer one."""
    services = Services()
    services.put(KEY, version(1))
    with ground(services, tmp_path, provider, binding, "--cache-size", "1GiB", "--listing-ttl", "50ms") as ready:
        path = ready.path(KEY)
        until = threading.Event()
        seen: list[list[int]] = [[] for _ in range(4)]
        wrong: list[str] = []
        readers = [threading.Thread(target=_read_on, args=(path, until, versions, wrong)) for versions in seen]
        for reader in readers:
            reader.start()
        try:
            last = 1
            end = time.monotonic() + 4
            while time.monotonic() < end:
                last += 1
                services.put(KEY, version(last))
                time.sleep(0.08)
            eventually(lambda: all(versions and versions[-1] == last for versions in seen), "all see the last version")
        finally:
            until.set()
            for reader in readers:
                reader.join(60)
        assert wrong == []
        for versions in seen:
            assert min(versions) > 0, [number for number in versions if number <= 0]
            assert versions == sorted(versions)
            assert len(set(versions)) > 3
