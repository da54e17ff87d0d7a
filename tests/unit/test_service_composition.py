"""What one mount consists of."""

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from optfs.config import load
from optfs.errors import ConfigError
from optfs.service import composition
from optfs.service.composition import LIST_THREADS, Mount
from optfs.service.providers import Connected
from optfs.stores.counters import StoreCounters
from optfs.workers import Priority
from tests.support.trees import MemoryStore


def test_all_threads_for_listings_list_ahead_of_need(tmp_path: Path) -> None:
    """Whoever waits for a listing has one of his own: none is kept free."""
    source: Any = None
    connected = Connected("aws", source, MemoryStore("aws"), StoreCounters(), has_data=True)
    mount = Mount(load({"cache_size": "0"}, environ={}), [connected], tmp_path, "fuse2")
    together = threading.Barrier(LIST_THREADS + 1)

    def meet() -> None:
        together.wait(10)

    try:
        for _ in range(LIST_THREADS):
            mount._lists.submit(meet, Priority.PREFETCH)
        meet()
    finally:
        mount.close()


@pytest.mark.parametrize(("number", "refused"), [(errno.EROFS, False), (errno.EIO, False), (errno.EACCES, True), (errno.ENOTDIR, True)])
def test_a_cache_folder_on_a_failing_disk_is_no_mistake(number: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount goes without a cache, or with what that holds; a wrong folder is told at once."""

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(composition, "open_folder", fail)
    with pytest.raises(ConfigError, match="--cache-dir") if refused else contextlib.nullcontext():
        composition.check_cache_folder(load({"cache_dir": "/somewhere"}, environ={}))


def test_a_cache_that_a_mount_would_go_without_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`optfs doctor` says so, and that nothing is wrong otherwise: a mount only warns."""

    def problem(**options: str) -> str:
        return composition.check_cache_folder(load({"cache_dir": str(tmp_path / "cache"), **options}, environ={}))

    assert problem() == ""
    assert "--cache-size 0" in problem(cache_size="0")
    assert "--cache-size is less" in problem(cache_size="500KiB")
    (tmp_path / "cache").chmod(0o777)
    assert "others" in problem()
    (tmp_path / "cache").chmod(0o700)
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert "isn't writable" in problem()
