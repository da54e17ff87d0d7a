"""Mounts `optfs` as users do, in a process of its own, against the embedded services, and always unmounts."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from optfs.bridge import bindings, mounts
from optfs.demo.services import Services
from optfs.errors import MountError

LIMIT = 30.0
"""Seconds that anything which happens soon may take on a loaded machine."""

COMBINATIONS = [(provider, binding) for provider in ("aws", "gcp") for binding in bindings.BINDINGS]


def require(binding: str) -> None:
    """Skip the test where this machine can't mount with the binding."""
    try:
        bindings.choose(binding)
    except MountError as error:
        pytest.skip(error.message)


def eventually(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Wait until the condition holds; fail with `what` after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {limit:.0f} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """Demand that the block fails with one of these errnos."""
    with pytest.raises(OSError) as failed:  # noqa: PT011 - the errno is looked at
        yield
    assert failed.value.errno in numbers, failed.value


class Mounted:
    """A mount in a process of its own. A context manager; leaving it unmounts, and leaves no process."""

    def __init__(self, services: Services, folder: Path, provider: str, binding: str, *options: str) -> None:
        """Describe it; `folder` is an empty folder for the mount point, the cache and the log. `options` are those of `optfs mount`."""
        self.services = services
        self.path = folder / "mnt"
        self.cache = folder / "cache"
        self.log = folder / "log"
        self._command = [
            *(sys.executable, "-m", "optfs", "mount", "--foreground", "--provider", provider, "--binding", binding),
            *("--cache-dir", str(self.cache), "--cache-size", "1GiB", "--cache-min-free", "0%", *options, str(self.path)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def account(self) -> Path:
        """The account's folder."""
        return self.path / self.services.account

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | self.services.environment
            )
        try:
            eventually(self._usable, "the mount is usable")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unmount, and wait for the process; by force when it doesn't end."""
        process = self._process
        if process is None:
            return
        self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LIMIT)
            pytest.fail(f"the mount process didn't end: {self.text()}")
        finally:
            while mounts.find(self.path) is not None:
                mounts.unmount(self.path, lazy=True)

    def kill(self) -> None:
        """End the process as `kill -9` does; leaves a dead mount point."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(LIMIT)

    def text(self) -> str:
        """Return what the process wrote."""
        return self.log.read_text(errors="replace")

    def _usable(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"optfs mount ended with {self._process.returncode}: {self.text()}")
        # A dead mount that this one takes the place of is still in the table, and the kernel still answers `stat` for it.
        return mounts.find(self.path) is not None and not mounts.is_dead(self.path) and self.account.is_dir()
