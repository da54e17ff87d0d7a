"""A session of FUSE over a libfuse that a test plays: refusals, and ends before anybody could use it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from optfs import errors
from optfs.bridge import bindings, mounting, mounts
from optfs.bridge.handlers import Core
from optfs.filesystem import FileSystem, Owner


def _session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[Core], None]) -> mounting.Session:
    """Return a session whose libfuse is `loop`."""
    monkeypatch.setattr(bindings, "load", lambda _binding: lambda core, _mountpoint, _options: loop(core))
    filesystem = FileSystem(
        None,  # type: ignore[arg-type]  # never asked
        None,  # type: ignore[arg-type]  # never asked
        roots={},
        owner=Owner(0, 0, 0),
        cache=None,
        timeout=1.0,
        clock=lambda: 0.0,
    )
    return mounting.Session(filesystem, str(tmp_path), mounting.MountOptions("fuse3", "123"))


def test_what_libfuse_says_is_the_reason_of_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so on the standard error only."""

    def refuse(_core: Core) -> None:
        os.write(2, b"fusermount3: not on a Tuesday\n")
        raise RuntimeError(1)

    with pytest.raises(errors.MountError, match="not on a Tuesday; `optfs doctor`"):
        _session(tmp_path, monkeypatch, refuse).run(lambda: pytest.fail("not ready"))


def test_a_mount_that_cannot_be_announced_is_unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a dead mount point would stay behind."""
    unmounted = threading.Event()

    def loop(core: Core) -> None:
        core.started()
        unmounted.wait(30)

    monkeypatch.setattr(mounts, "unmount", lambda *_arguments, **_options: unmounted.set())
    session = _session(tmp_path, monkeypatch, loop)

    def announce() -> None:
        raise errors.ConfigError("nobody listens")

    with pytest.raises(errors.ConfigError):
        session.run(announce)
    assert unmounted.is_set()
