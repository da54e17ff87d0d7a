"""What happens to the cache folder of a running mount costs speed at most: reads stay right, and one warning tells."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optfs.demo.services import Services
from tests.support.mounting import eventually, require
from tests.support.processes import MIB, MountProcess, forget_pages

DAY = "type=decisions/date=2026-11-01/"
FILES = {f"{DAY}experiment={number}/part-0.parquet": os.urandom(30_000 + number) for number in range(8)}
FILES[f"{DAY}experiment=9/part-0.parquet"] = os.urandom(5 * MIB + 17)

NEW = {f"type=events/date=2026-11-01/event={number}/part-0.parquet": os.urandom(40_000 + number) for number in range(3)}
"""Objects that nothing reads before the harm is done."""

NAME = f"{DAY}experiment=1/part-0.parquet"

KINDS = [("aws", "fuse3"), ("gcp", "fuse2")]


@pytest.fixture
def services() -> Iterator[Services]:
    """An account with small files and a big one."""
    with Services() as made:
        for key, data in (FILES | NEW).items():
            made.put(key, data)
        yield made


def read_all(mount: MountProcess) -> None:
    """Read every file from the mount's process, not from the kernel's pages."""
    for key, data in FILES.items():
        path = mount.account / key
        forget_pages(path)
        assert path.read_bytes() == data, key


def fill(services: Services, folder: Path, kind: tuple[str, str]) -> MountProcess:
    """Return a mount that isn't mounted and whose cache holds everything."""
    mount = MountProcess(services, folder, *kind)
    with mount:
        read_all(mount)
        mount.holds(mount.account / key for key in FILES)
        assert mount.end() == 0
    mount.log.unlink()
    services.requests.clear()
    return mount


def flip(mount: MountProcess) -> None:
    """Change one byte in the middle of each block."""
    for number, path in enumerate(mount.blocks()):
        with path.open("r+b") as file:
            at = path.stat().st_size * (number + 1) // 20
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x40]))


def cut(mount: MountProcess) -> None:
    """Shorten each block."""
    for path in mount.blocks():
        os.truncate(path, path.stat().st_size - 1)


def swap(mount: MountProcess) -> None:
    """Give each block the content of another."""
    paths = mount.blocks()
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def link(mount: MountProcess) -> None:
    """Put a symbolic link to an endless file in the place of each block."""
    for path in mount.blocks():
        path.unlink()
        path.symlink_to("/dev/zero")


def fifo(mount: MountProcess) -> None:
    """Put a pipe that nobody writes into in the place of each block."""
    for path in mount.blocks():
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize("kind", KINDS[:1])
def test_what_the_cache_answers_is_told_as_no_miss(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    """Nor as several hits: a read at random looks for its pieces before it looks for the block that holds them."""
    with fill(services, tmp_path, kind) as mount:
        with (mount.account / f"{DAY}experiment=9/part-0.parquet").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert len(os.pread(file.fileno(), MIB, MIB)) == MIB
        told = mount.status()["cache"]
        assert (told["hits"] > 0, told["misses"]) == (True, 0)


@pytest.mark.parametrize("harm", [flip, cut, swap, link, fifo])
def test_harm_to_all_blocks_costs_fetching_again_and_one_warning(
    services: Services, tmp_path: Path, harm: Callable[[MountProcess], None]
) -> None:
    kind = KINDS[harm in (cut, link)]
    require(kind[1])
    mount = fill(services, tmp_path, kind)
    with mount:
        assert services.requests.count("get") == 0
        assert len(mount.blocks()) >= len(FILES)
        harm(mount)
        read_all(mount)
        fetched = {entry.key.removeprefix(services.prefix) for entry in services.requests.entries("get")}
        assert fetched == set(FILES)
        assert len([line for line in mount.warnings() if "cache" in line]) == 1, mount.text()
        assert len(mount.warnings()) == 1
        mount.holds(mount.account / key for key in FILES)
        assert mount.end() == 0
    services.requests.clear()
    with mount:
        read_all(mount)
        assert services.requests.count("get") == 0, "what was fetched again is whole again"


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_cache_folder_may_be_deleted_while_mounted(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    require(kind[1])
    mount = fill(services, tmp_path, kind)
    with mount:
        read_all(mount)
        assert services.requests.count("get") == 0
        shutil.rmtree(mount.cache)
        read_all(mount)
        for key, data in NEW.items():
            assert (mount.account / key).read_bytes() == data
        assert len(mount.warnings()) <= 1, mount.text()
        assert mount.end() == 0


def garbage(mount: MountProcess, stack: ExitStack) -> None:
    """Overwrite the index."""
    (mount.cache / "blocks-v1" / "cache.db").write_bytes(b"this is no database" * 1000)


def locked(mount: MountProcess, stack: ExitStack) -> None:
    """Hold the index's lock, as another process would that hangs."""
    connection = sqlite3.connect(mount.cache / "blocks-v1" / "cache.db", isolation_level=None)
    stack.callback(connection.close)
    connection.execute("BEGIN EXCLUSIVE")


@pytest.mark.parametrize("harm", [garbage, locked])
def test_an_index_that_is_damaged_or_locked_keeps_nobody_from_reading(
    services: Services, tmp_path: Path, harm: Callable[[MountProcess, ExitStack], None]
) -> None:
    require("auto")
    mount = fill(services, tmp_path, ("aws", "auto"))
    with ExitStack() as stack, mount:
        harm(mount, stack)
        read_all(mount)
        for key, data in NEW.items():
            assert (mount.account / key).read_bytes() == data
        fetched = {entry.key.removeprefix(services.prefix) for entry in services.requests.entries("get")}
        assert fetched == set(NEW), "reading needs no index"
        assert len(mount.warnings()) <= 1, mount.text()
        assert mount.end() == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Return what makes a folder read-only: for root by the kernel's means, for others by permissions."""
    with ExitStack() as stack:

        def protect(folder: Path) -> None:
            if os.geteuid() != 0:
                for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
                    path.chmod(0o500)
                    stack.callback(path.chmod, 0o700)
                return
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

        yield protect


def test_a_read_only_cache_folder_still_serves_what_it_holds(services: Services, tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    require("auto")
    mount = fill(services, tmp_path, ("gcp", "auto"))
    read_only(mount.cache)
    before = sorted(path.name for path in mount.blocks())
    with mount:
        read_all(mount)
        assert services.requests.count("get") == 0
        for key, data in NEW.items():
            assert (mount.account / key).read_bytes() == data
        eventually(lambda: len(mount.warnings()) == 1, "one warning tells that nothing can be written")
        assert sorted(path.name for path in mount.blocks()) == before
        assert mount.end() == 0
    assert len(mount.warnings()) == 1, mount.text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_cache_disk_means_no_caching(services: Services, tmp_path: Path) -> None:
    require("auto")
    mount = MountProcess(services, tmp_path, "aws", "auto")
    mount.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(mount.cache)], check=True)
    try:
        with mount:
            read_all(mount)
            read_all(mount)
            assert len(mount.warnings()) <= 1, mount.text()
            assert mount.end() == 0
    finally:
        subprocess.run(["umount", "-l", str(mount.cache)], check=True)


HANGING = """
import fcntl
from optfs.cache import disk

def hanging(read):
    def call(*arguments):
        with open({path!r}) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        return read(*arguments)
    return call

disk.read_block, disk.read_range = hanging(disk.read_block), hanging(disk.read_range)
"""
"""Makes a disk that gives nothing as long as somebody has an exclusive lock on the file at `path`."""


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_cache_disk_that_hangs_is_no_cache(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    """What it holds is fetched again, and the log says so, once; nothing fails, and the mount ends in order."""
    require(kind[1])
    fill(services, tmp_path, kind)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with MountProcess(services, tmp_path, *kind, "--timeout", "6s", before=HANGING.format(path=lock.name)) as mount:
            read_all(mount)
            assert {entry.key.removeprefix(services.prefix) for entry in services.requests.entries("get")} == set(FILES)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert mount.text().count("the cache's disk doesn't answer") == 1
            assert mount.warnings() == []
            assert mount.end() == 0


LATER = """
from optfs.cache import blockfile, folder
folder.BLOCKS = "blocks-v2"
blockfile._FORMAT = 2
"""
"""Makes the program a later one, whose blocks are of another format."""


def test_two_versions_of_the_program_share_a_cache_folder(services: Services, tmp_path: Path) -> None:
    """Both at once, each with blocks of its own; neither warns, and neither fetches again what it has."""
    require("fuse3")
    shared = ("--cache-dir", str(tmp_path / "cache"))
    mounts = [
        MountProcess(services, tmp_path / name, "aws", "fuse3", *shared, before=before) for name, before in (("now", ""), ("later", LATER))
    ]
    for fetches in (True, False):
        services.requests.clear()
        with mounts[0] as now, mounts[1] as later:
            for mount in (now, later, now, later):
                read_all(mount)
            for mount in (now, later):
                mount.holds(mount.account / key for key in FILES)
                assert mount.warnings() == []
        assert (services.requests.count("get") > 0) is fetches
    for version in ("blocks-v1", "blocks-v2"):
        assert len(list((tmp_path / "cache" / version).glob("[0-9a-f]/*"))) >= len(FILES)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_services_that_give_versions_the_same_names_share_a_cache_folder(tmp_path: Path, kind: tuple[str, str]) -> None:
    """Emulators begin to count generations anew: the bytes of the one before aren't those of the next one."""
    require(kind[1])
    for content in (b"a" * 30_000, b"b" * 30_000):
        with Services() as services:
            services.put(NAME, content)
            with MountProcess(services, tmp_path, *kind) as mount:
                assert (mount.account / NAME).read_bytes() == content
                mount.holds([mount.account / NAME])
                assert mount.end() == 0
