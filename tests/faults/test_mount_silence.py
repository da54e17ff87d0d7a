"""A service that takes requests and never answers, and more readers of it than optfs has connections: whom that holds up."""

import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from optfs.demo.faults import Fault, Stall
from optfs.demo.services import Services
from tests.support.broken import SLACK, Ground, ground, mounted, read, readable
from tests.support.mounting import LIMIT, eventually

SMALL = random.Random(1).randbytes(100_001)
LARGE = random.Random(2).randbytes(3_000_001)
CONNECTIONS = 30  # some fewer than `composition.THREADS`
CACHED, FREE = "type=a/date=2026-11-01/event=cached/part-0", "type=b/date=2026-11-01/event=free/part-0"
STUCK = [f"type=a/date=2026-11-01/event=stuck{number}/part-0" for number in range(200)]


@contextmanager
def stuck_readers(ready: Ground, keys: Sequence[str] = STUCK) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have programs read what S3 doesn't answer for, until all connections are taken."""
    paths = [ready.path(key) for key in keys]
    for path in paths:
        path.stat()
    fault = ready.services.faults.add(
        Fault(lambda request: (request.kind, request.service) == ("get", "s3") and "/event=stuck" in request.key, Stall())
    )
    readers = [subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for path in paths]
    try:
        eventually(lambda: fault.hits >= CONNECTIONS, "the connections are taken")
        yield readers
    finally:
        kill_all(readers)
        ready.services.faults.remove(fault)


def kill_all(readers: list[subprocess.Popen[bytes]]) -> None:
    """End the readers."""
    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.wait(LIMIT)


def gets_of(services: Services, key: str) -> int:
    """Return how often a key was read so far; those of others may still arrive."""
    return sum(entry.kind == "get" and entry.key == services.prefix + key for entry in services.requests.entries())


def at_once(path: Path, content: bytes) -> None:
    """Demand that a file is read without waiting for others."""
    got = read(path)
    assert (got.errno, got.content) == (0, content)
    assert got.seconds < SLACK


@pytest.mark.parametrize(("binding", "count", "content"), [("fuse3", 200, SMALL), ("fuse3", 100, LARGE), ("fuse2", 200, SMALL)])
def test_what_is_cached_stays_readable_while_a_silent_service_holds_up_all_connections(
    tmp_path: Path, binding: str, count: int, content: bytes
) -> None:
    """Read from the block cache, as the mount is a new one: neither connections nor room in memory nor the kernel's requests are all taken."""
    services = Services(gcs=False)
    for key in [*STUCK[:count], CACHED]:
        services.put(key, content)
    with services:
        with mounted(services, tmp_path, "aws", binding, "--cache-size", "64MiB") as ready:
            readable(ready.path(CACHED), content)
            eventually(lambda: int(os.getxattr(ready.path(CACHED), "user.optfs.cached")) == len(content), "it is in the cache")
        assert gets_of(services, CACHED)
        with (
            mounted(services, tmp_path, "aws", binding, "--cache-size", "64MiB", "--timeout", "120s") as ready,
            stuck_readers(ready, STUCK[:count]),
        ):
            before = gets_of(services, CACHED)
            at_once(ready.path(CACHED), content)
            assert gets_of(services, CACHED) == before


def test_a_silent_service_does_not_hold_up_what_the_other_one_holds(tmp_path: Path) -> None:
    """Each has connections of its own, and room in memory."""
    services = Services()
    for key in STUCK[:100]:
        services.s3_bucket.put(services.prefix + key, LARGE)
    services.gcs_bucket.put(services.prefix + FREE, LARGE)
    with ground(services, tmp_path, "auto", "fuse3", "--timeout", "120s") as ready, stuck_readers(ready, STUCK[:100]):
        at_once(ready.path(FREE), LARGE)


@pytest.mark.parametrize("binding", ["fuse3", "fuse2"])
def test_all_readers_of_one_file_can_be_killed(tmp_path: Path, binding: str) -> None:
    """Four that read a file whose bytes don't come end when they are killed."""
    services = Services(gcs=False)
    services.put(FREE, LARGE)
    with ground(services, tmp_path, "aws", binding, "--timeout", "120s") as ready:
        path = ready.path(FREE)
        path.stat()
        fault = services.faults.add(Fault(lambda request: request.kind == "get", Stall(1000)))
        readers = [subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
        try:
            eventually(lambda: fault.hits > 0, "the file is being read")
            eventually(lambda: all(waits(reader.pid) for reader in readers), "all wait")
        finally:
            kill_all(readers)
            services.faults.remove(fault)


def waits(process: int) -> bool:
    """Tell whether a process waits in the kernel and can be killed at most."""
    return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "D"


def test_what_killed_programs_waited_for_in_vain_is_not_fetched_later(tmp_path: Path) -> None:
    """When the service answers again, its first requests are for those who still wait."""
    services = Services(gcs=False)
    for key in [*STUCK, FREE]:
        services.put(key, SMALL)
    with ground(services, tmp_path, "aws", "fuse3", "--timeout", "6s") as ready:
        with stuck_readers(ready) as readers:
            kill_all(readers)
            eventually(lambda: read(ready.path(FREE)).content == SMALL, "the connections are free again", 2 * LIMIT)
        asked = {entry.key for entry in services.requests.entries() if entry.kind == "get" and "/event=stuck" in entry.key}
        assert len(asked) < len(STUCK)
