"""A version is pinned at open, and a new open sees the new version whole, through all of the kernel's caches."""

import errno
import os

import pytest

from optfs.demo.services import Services
from tests.mount.conftest import Mounting
from tests.support.mounting import eventually, fails_with

KEY = "type=decisions/date=2026-11-01/experiment=1/part-0.parquet"
SHORT_TTL = ("--listing-ttl", "100ms")


@pytest.mark.parametrize("sizes", [(1000, 300_000), (300_000, 1000), (5000, 5000)], ids=["grows", "shrinks", "stays"])
def test_a_new_open_sees_the_new_version_whole(mounting: Mounting, services: Services, sizes: tuple[int, int]) -> None:
    """Never the new content cut to the former size, never a mix; read right after the former was read and looked at."""
    old, new = b"o" * sizes[0], b"n" * sizes[1]
    services.put(KEY, old)
    path = mounting(services, *SHORT_TTL).account / KEY
    for before, after in ((old, new), (new, old), (old, new)):
        assert path.read_bytes() == before
        services.put(KEY, after)

        def seen(before: bytes = before, after: bytes = after) -> bool:
            path.stat()
            try:
                content = path.read_bytes()
            except OSError as error:
                assert error.errno == errno.ESTALE  # noqa: PT017 - opened just before the listing showed the change
                return False
            assert content in (before, after)
            return content == after

        eventually(seen, "a new open sees the new version")
        assert path.stat().st_size == len(after)


def test_an_open_file_whose_version_is_gone_fails_with_estale(mounting: Mounting, services: Services) -> None:
    """The bytes that it was opened for are nowhere any more."""
    services.put(KEY, b"o" * 100_000)
    path = mounting(services, *SHORT_TTL).account / KEY
    with path.open("rb", buffering=0) as file:
        services.put(KEY, b"n" * 100_000)
        with fails_with(errno.ESTALE):
            file.read(100)


def test_a_deleted_file_ends_for_those_who_open_it_anew(mounting: Mounting, services: Services) -> None:
    """Once the listing shows it."""
    services.put(KEY, b"o" * 100)
    services.put(KEY + "-other", b"x")
    path = mounting(services, *SHORT_TTL).account / KEY
    assert path.read_bytes() == b"o" * 100
    services.delete(KEY)
    eventually(lambda: not path.exists(), "the file is gone")
    with pytest.raises(FileNotFoundError):
        path.read_bytes()


def test_two_versions_open_at_once_are_never_mixed(mounting: Mounting, services: Services) -> None:
    """The one opened first reads its own bytes or fails; the second reads the new ones."""
    old, new = b"o" * 200_000, b"n" * 200_000
    services.put(KEY, old)
    path = mounting(services, *SHORT_TTL).account / KEY
    first = os.open(path, os.O_RDONLY)
    try:
        assert os.pread(first, 200_000, 0) == old
        services.put(KEY, new)

        def renewed() -> bool:
            try:
                return path.read_bytes() == new
            except OSError:
                return False

        eventually(renewed, "a new open sees the new version")
        second = os.open(path, os.O_RDONLY)
        try:
            for _ in range(3):
                assert os.pread(second, 200_000, 0) == new
                try:
                    assert os.pread(first, 200_000, 0) == old
                except OSError as error:
                    assert error.errno == errno.ESTALE  # noqa: PT017 - reading its own bytes is fine as well
        finally:
            os.close(second)
    finally:
        os.close(first)
