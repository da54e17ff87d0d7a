# ruff: noqa: PTH208 - the tests make the system calls themselves
"""What programs see while the service fails, and that all recovers without a remount."""

import contextlib
import errno
import os
import signal
import subprocess

import pytest

from optfs.bridge import mounts
from optfs.demo.faults import Answer, Fault, Stall
from optfs.demo.services import Services
from tests.mount.conftest import Mounting
from tests.support.mounting import LIMIT, Mounted, eventually, fails_with

KEY = "type=decisions/date=2026-11-01/experiment=1/part-0.parquet"
OTHER = "type=decisions/date=2026-11-01/experiment=1/part-1.parquet"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"), errno.EACCES),
        (Answer(500, b""), errno.EIO),
        (Stall(), errno.ETIMEDOUT),
    ],
    ids=["refused", "failing", "stalled"],
)
def test_a_failing_read_has_the_errno_of_its_cause(mounting: Mounting, services: Services, action: Answer | Stall, expected: int) -> None:
    """And the same file can be read as soon as the service is well, without a remount."""
    services.put(KEY, b"x" * 1000)
    path = mounting(services, "--timeout", "5s").account / KEY
    path.stat()
    fault = services.faults.add(Fault(lambda request: request.kind == "get", action))
    with fails_with(expected):
        path.read_bytes()
    services.faults.remove(fault)

    def well() -> bool:
        try:
            return path.read_bytes() == b"x" * 1000
        except OSError:
            return False

    eventually(well, "the file can be read again")


def test_what_is_cached_stays_readable_while_the_services_are_down(mounting: Mounting, services: Services) -> None:
    """Listings too; what isn't cached fails; all recovers."""
    services.put(KEY, b"k" * 100_000)
    services.put(OTHER, b"o" * 100_000)
    mount = mounting(services, "--timeout", "5s", "--listing-ttl", "200ms")
    assert (mount.account / KEY).read_bytes() == b"k" * 100_000
    services.outage()
    try:
        assert sorted(os.listdir((mount.account / KEY).parent)) == ["part-0.parquet", "part-1.parquet"]
        assert (mount.account / KEY).read_bytes() == b"k" * 100_000
        with fails_with(errno.EIO, errno.ETIMEDOUT):
            (mount.account / OTHER).read_bytes()
    finally:
        services.end_outage()

    def well() -> bool:
        try:
            return (mount.account / OTHER).read_bytes() == b"o" * 100_000
        except OSError:
            return False

    eventually(well, "what wasn't cached can be read again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-C", "kill -9"])
def test_a_reader_that_waits_for_the_network_can_be_ended(mounting: Mounting, services: Services, number: signal.Signals) -> None:
    """At once, not after `--timeout`."""
    services.put(KEY, b"x" * 1000)
    path = mounting(services, "--timeout", "300s").account / KEY
    path.stat()
    fault = services.faults.add(Fault(lambda request: request.kind == "get", Stall()))
    try:
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL) as reader:
            eventually(lambda: services.requests.count("get") > 0, "the read has reached the service")
            reader.send_signal(number)
            assert reader.wait(LIMIT) == -number
    finally:
        services.faults.remove(fault)


def test_a_mount_in_use_ends_when_it_is_told_to(mounting: Mounting, services: Services) -> None:
    """SIGTERM; the open file fails from then on, and the process ends (checked by the helper)."""
    services.put(KEY, b"x" * 1000)
    mount = mounting(services)
    with (mount.account / KEY).open("rb", buffering=0) as file:
        mount.close()
        assert mounts.find(mount.path) is None
        with fails_with(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
            file.read(10)
        with contextlib.suppress(OSError):
            file.close()  # tells of the lost connection as well


def test_a_mount_point_left_by_a_killed_process_is_recovered(mounting: Mounting, services: Services) -> None:
    """`recover_stale` takes away exactly what is dead."""
    mount: Mounted = mounting(services)
    assert not mounts.recover_stale(mount.path)
    mount.kill()
    eventually(lambda: mounts.is_dead(mount.path), "the mount point is dead")
    assert mounts.recover_stale(mount.path)
    assert mounts.find(mount.path) is None
    assert os.listdir(mount.path) == []
