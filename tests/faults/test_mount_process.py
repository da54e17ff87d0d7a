"""A mount's process under load: killed, ended, out of descriptors, of memory and of patience; and readers that don't want to wait."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from optfs.bridge import mounts
from optfs.demo.faults import Fault, Stall
from optfs.demo.services import Services
from optfs.demo.traffic import Request
from optfs.errors import MountError
from optfs.service import running
from tests.support.mounting import LIMIT, eventually, require
from tests.support.processes import MIB, Load, MountProcess, at_once, descriptors, forget_pages, many_files

KINDS = [("aws", "fuse3"), ("gcp", "fuse2")]
"""A process's life depends on the binding; the provider takes turns."""

LOST = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENODEV, errno.EIO, errno.EINTR}
"""What a program may see whose mount is taken away: the connection is gone, and later the empty mount point is there."""

DAY = "type=decisions/date=2026-11-01/"


def content(number: int, size: int) -> bytes:
    """Return bytes that no other number has, at no offset."""
    return b"".join(b"%08d:%08d;" % (number, at) for at in range(size // 18 + 1))[:size]


SMALL = {f"{DAY}experiment={number}/part-0.parquet": content(number, 20_000 + number) for number in range(40)}
BIG = {f"{DAY}experiment=900{number}/part-0.parquet": content(900 + number, 9 * MIB + number) for number in range(3)}


@pytest.fixture
def services() -> Iterator[Services]:
    """An account with forty small files and three big ones."""
    with Services() as made:
        for key, data in (SMALL | BIG).items():
            made.put(key, data)
        yield made


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A provider and a binding."""
    provider, binding = request.param
    require(binding)
    return provider, binding


def files(mount: MountProcess, of: dict[str, bytes]) -> dict[Path, bytes]:
    """Return the mount's paths with what they must hold."""
    return {mount.account / key: data for key, data in of.items()}


def read_all(expected: dict[Path, bytes]) -> None:
    """Read every file from the mount's process, not from the kernel's pages."""
    for path, data in expected.items():
        forget_pages(path)
        assert path.read_bytes() == data, path


def gets(services: Services) -> set[str]:
    """Return the keys below the account's prefix that were fetched."""
    return {entry.key.removeprefix(services.prefix) for entry in services.requests.entries("get")}


def test_a_mount_killed_under_load_is_mounted_over_and_fetches_nothing_again(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    kept = {key: SMALL[key] for key in list(SMALL)[:20]} | {key: BIG[key] for key in list(BIG)[:1]}
    mount = MountProcess(services, tmp_path, *kind)
    with mount:
        read_all(files(mount, kept))
        mount.holds(files(mount, kept))
        with Load(files(mount, SMALL | BIG)) as load:
            eventually(lambda: load.done > 20, "the load is on")
            mount.kill()
            eventually(lambda: len(load.errors) > 0, "the load sees the end")
        assert load.wrong == []
        assert {error.errno for error in load.errors} <= LOST
    with mount:
        assert [found.mountpoint for found in mounts.mounts()].count(str(mount.path)) == 1
        services.requests.clear()
        read_all(files(mount, kept))
        assert gets(services) & set(kept) == set()
        read_all(files(mount, SMALL | BIG))
        assert mount.status()["cache"]["damaged"] == 0


def test_sigterm_under_load_ends_the_process_with_0_and_no_reader_gets_a_wrong_byte(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    with MountProcess(services, tmp_path, *kind) as mount:
        services.pace.rate = 20 * MIB
        with Load(files(mount, SMALL | BIG)) as load:
            eventually(lambda: load.done > 20, "the load is on")
            assert mount.end() == 0
        assert load.wrong == []
        assert {error.errno for error in load.errors} <= LOST
        assert "Traceback" not in mount.text()


def test_a_mount_in_use_is_not_unmounted_and_lazily_lives_until_its_last_reader(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    key, data = next(iter(BIG.items()))
    with MountProcess(services, tmp_path, *kind) as mount:
        with (mount.account / key).open("rb", buffering=0) as opened:
            assert opened.read(1000) == data[:1000]
            with pytest.raises(MountError, match="busy"):
                mounts.unmount(mount.path)
            assert os.pread(opened.fileno(), 5000, 8 * MIB) == data[8 * MIB :][:5000]
            mounts.unmount(mount.path, lazy=True)
            assert list(mount.path.iterdir()) == []
            assert os.pread(opened.fileno(), len(data), 0) + os.pread(opened.fileno(), 1, len(data)) == data
            assert psutil.pid_exists(mount.pid)
        assert mount.end(None) == 0


def test_a_signal_ends_a_mount_that_is_out_of_sight_and_leaves_alone_what_has_its_place(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    """SIGTERM to a lazily unmounted one ends it and its reader; the mount at its place goes on."""
    key, data = next(iter(BIG.items()))
    with MountProcess(services, tmp_path, *kind) as old, (old.account / key).open("rb", buffering=0) as opened:
        assert opened.read(1000) == data[:1000]
        mounts.unmount(old.path, lazy=True)
        with MountProcess(services, tmp_path, *kind) as new:
            os.kill(old.pid, signal.SIGTERM)
            assert running.end_of(old.pid, running.STOP_LIMIT / 2)
            with pytest.raises(OSError) as failed:  # noqa: PT011 - the errno is looked at
                os.pread(opened.fileno(), 1000, 8 * MIB)
            assert failed.value.errno in LOST
            read_all(files(new, SMALL))
            assert new.end() == 0


def test_a_signal_takes_away_a_mount_that_was_moved_with_a_folder_above_it(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    """Nothing stays mounted at its new place."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    with MountProcess(services, before, *kind) as mount:
        before.rename(after)
        os.kill(mount.pid, signal.SIGTERM)
        assert running.end_of(mount.pid, running.STOP_LIMIT / 2)
        assert mounts.find(after / mount.path.relative_to(before)) is None


def test_a_signal_ends_a_mount_that_is_out_of_sight_although_a_reader_waits(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    key = next(iter(BIG))
    fault = is_get_of(services, key)
    with MountProcess(services, tmp_path, *kind, "--timeout", "300s") as mount:
        with subprocess.Popen(["cat", str(mount.account / key)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
            try:
                eventually(lambda: fault.hits > 0, "the reader waits for the stalled connection")
                mounts.unmount(mount.path, lazy=True)
                os.kill(mount.pid, signal.SIGTERM)
                assert reader.wait(running.STOP_LIMIT / 2) == 1
                assert mount.end(None) == 0
            finally:
                reader.kill()
        assert "Traceback" not in mount.text()


def test_busy_threads_of_libfuse_hold_no_descriptors(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    """Twenty-four waiting reads open no pipe."""
    key = next(iter(BIG))
    with MountProcess(services, tmp_path, *kind, "--timeout", "300s") as mount, (mount.account / key).open("rb", buffering=0) as file:
        process, pipes = psutil.Process(mount.pid), descriptors(mount.pid, "pipe:")
        idle = process.num_threads()
        fault = is_get_of(services, key)
        readers = [threading.Thread(target=os.pread, args=(file.fileno(), 1, place * MIB // 4), daemon=True) for place in range(24)]
        try:
            for reader in readers:
                reader.start()
            eventually(lambda: process.num_threads() >= idle + 20, "handlers wait for the stalled connection")
            assert descriptors(mount.pid, "pipe:") == pipes
        finally:
            services.faults.remove(fault)
            for reader in readers:
                reader.join(LIMIT)


def test_sixty_four_descriptors_are_enough(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    with MountProcess(services, tmp_path, *kind, limits={resource.RLIMIT_NOFILE: (64, 64)}) as mount:
        assert psutil.Process(mount.pid).rlimit(psutil.RLIMIT_NOFILE) == (64, 64)  # type: ignore[attr-defined, unused-ignore] # Linux's
        expected = list(files(mount, SMALL | BIG).items())

        def read(number: int) -> None:
            path, data = expected[number]
            assert path.read_bytes() == data, path

        assert at_once(len(expected), read) == []
        assert descriptors(mount.pid) <= 64
        assert mount.status()["open_files"] <= len(expected)  # the control socket has a descriptor left, too
        assert mount.end() == 0


def test_five_hundred_open_files_are_read_each_at_its_own_place(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    many = {f"type=events/date=2026-11-01/event=e{number}/part-0.parquet": content(number, 3000 + number) for number in range(500)}
    for key, data in many.items():
        services.put(key, data)
    with many_files(700), MountProcess(services, tmp_path, *kind) as mount:
        expected = files(mount, many)
        before = descriptors(mount.pid)
        opened = {os.open(path, os.O_RDONLY): data for path, data in expected.items()}
        try:
            assert mount.status()["open_files"] == 500
            for descriptor, data in opened.items():
                assert os.pread(descriptor, 100, len(data) - 50) == data[-50:]
                assert os.pread(descriptor, 100, 0) == data[:100]
            assert descriptors(mount.pid) < before + 100, "an open file must not cost the mount a descriptor"
        finally:
            for descriptor in opened:
                os.close(descriptor)
        eventually(lambda: mount.status()["open_files"] == 0, "the mount has let go of all files")


def test_two_hundred_readers_at_once_all_read_right_and_share_what_is_fetched(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    with MountProcess(services, tmp_path, *kind) as mount:
        expected = list(files(mount, SMALL | BIG).items())
        services.requests.clear()

        def read(number: int) -> None:
            path, data = expected[number % len(expected)]
            with path.open("rb", buffering=0) as file:
                half = len(data) // 2
                assert os.pread(file.fileno(), len(data), half) == data[half:], path
                assert os.pread(file.fileno(), half, 0) == data[:half], path

        assert at_once(200, read) == []
        ranges = [(entry.key, entry.range) for entry in services.requests.entries("get")]
        assert len(ranges) == len(set(ranges)), "a range was fetched twice"
        assert gets(services) == set(SMALL | BIG)


def is_get_of(services: Services, key: str) -> Fault:
    """Return a fault that stalls what is fetched of one object, before the first byte."""
    whole = services.prefix + key

    def match(request: Request) -> bool:
        return request.kind == "get" and request.key == whole

    return services.faults.add(Fault(match, Stall()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
@pytest.mark.parametrize("of", [SMALL, BIG], ids=["small", "big"])
def test_a_reader_of_a_stalled_connection_can_be_ended_at_once(
    services: Services, tmp_path: Path, kind: tuple[str, str], of: dict[str, bytes], number: signal.Signals
) -> None:
    key, *others = of
    fault = is_get_of(services, key)
    with MountProcess(services, tmp_path, *kind, "--timeout", "300s") as mount:
        with subprocess.Popen(["cat", str(mount.account / key)], stdout=subprocess.DEVNULL) as reader:
            try:
                eventually(lambda: fault.hits > 0, "the reader waits for the stalled connection")
                path = mount.account / others[-1]
                assert path.read_bytes() == of[others[-1]], "another reader is not held up"
                assert reader.poll() is None
                reader.send_signal(number)
                assert reader.wait(LIMIT) == -number
            finally:
                reader.kill()
                services.faults.clear()
        assert (mount.account / key).read_bytes() == of[key]


def test_a_mount_ends_although_a_connection_stalls_and_a_reader_waits(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    key = next(iter(BIG))
    fault = is_get_of(services, key)
    with MountProcess(services, tmp_path, *kind, "--timeout", "300s") as mount:
        with subprocess.Popen(["cat", str(mount.account / key)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
            try:
                eventually(lambda: fault.hits > 0, "the reader waits for the stalled connection")
                assert mount.end() == 0
                assert reader.wait(LIMIT) == 1
            finally:
                reader.kill()
        assert "Traceback" not in mount.text()


def test_all_threads_have_ended_when_an_idle_mount_ends(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    with MountProcess(services, tmp_path, *kind) as mount:
        read_all(files(mount, SMALL | BIG))
        assert psutil.Process(mount.pid).num_threads() > 4, "there are threads to be ended"
        mounts.unmount(mount.path)
        assert mount.end(None) == 0
        assert "is left to its users' end" not in mount.text()
        assert mount.warnings() == []


FORBID = """
import ctypes
assert ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0) == 0, "no PR_SET_MDWE"  # PR_MDWE_REFUSE_EXEC_GAIN, linux/prctl.h
"""


def test_a_mount_works_where_memory_cannot_be_made_to_run(services: Services, tmp_path: Path, kind: tuple[str, str]) -> None:
    """As systemd's MemoryDenyWriteExecute and SELinux have it."""
    probe = subprocess.run([sys.executable, "-c", FORBID], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    with MountProcess(services, tmp_path, *kind, before=FORBID) as mount:
        read_all(files(mount, SMALL | BIG))
        assert min(path.name for path in (mount.account / DAY).iterdir()) == "experiment=0"
        assert "forbidden here" in mount.text()
        assert mount.end() == 0


def test_without_memory_reads_fail_or_are_right_and_all_is_well_when_there_is_some_again(
    services: Services, tmp_path: Path, kind: tuple[str, str]
) -> None:
    with MountProcess(services, tmp_path, *kind, "--cache-size", "0") as mount:
        expected = files(mount, SMALL | BIG)
        with Load(expected, threads=12) as load:  # until there are all threads that will be needed
            eventually(lambda: load.done > 300, "the load is on")
        assert (load.errors, load.wrong) == ([], [])
        before = resource.prlimit(mount.pid, resource.RLIMIT_AS)
        taken = psutil.Process(mount.pid).memory_info().vms
        resource.prlimit(mount.pid, resource.RLIMIT_AS, (taken, before[1]))
        with Load(expected, threads=4) as load:
            eventually(lambda: load.done + len(load.errors) > 300, "reads end, one way or the other")
        assert load.wrong == []
        assert {error.errno for error in load.errors} <= {errno.EIO, errno.ENOMEM, errno.ETIMEDOUT}
        resource.prlimit(mount.pid, resource.RLIMIT_AS, before)
        everything = list(expected.items())

        def read(number: int) -> None:
            path, data = everything[number]
            forget_pages(path)
            assert path.read_bytes() == data, path

        assert at_once(len(everything), read) == []
        assert mount.end() == 0
