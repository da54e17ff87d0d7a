"""A mount whose process a test limits, kills, signals and looks into; programs that read it while that happens."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from optfs.bridge import mounts
from optfs.demo.services import Services
from optfs.service import control
from tests.support.mounting import LIMIT, Mounted, eventually

MIB = 1 << 20

_LIMITED = (
    "import os, resource, sys; [resource.setrlimit(*pair) for pair in {limits}]; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Sets limits and becomes the program: `preexec_fn` isn't safe in a process that has threads."""


class MountProcess(Mounted):
    """A mount in a process of its own that may be mounted over a dead one."""

    def __init__(
        self,
        services: Services,
        folder: Path,
        provider: str,
        binding: str,
        *options: str,
        limits: Mapping[int, tuple[int, int]] | None = None,
        before: str = "",
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        """Describe it.

        Args:
            services: what is mounted.
            folder: for the mount point, the cache and the log.
            provider: which store.
            binding: which libfuse.
            options: of `optfs mount`.
            limits: soft and hard limits by resource.
            before: Python that runs in the process before the program does.
            environment: variables; those that are None are left out.

        """
        super().__init__(services, folder, provider, binding, *options)
        if limits:
            program = _LIMITED.format(limits=[(kind, pair) for kind, pair in limits.items()])
            self._command = [sys.executable, "-c", program, *self._command[1:]]
        if before:
            self._command = [sys.executable, "-c", f"{before}\nimport runpy\nrunpy.run_module('optfs')", *self._command[3:]]
        self._variables = {**services.environment, **(environment or {})}

    def __enter__(self) -> Self:
        if mounts.find(self.path) is None:  # a dead mount point is there, but can't be looked at
            self.path.mkdir(parents=True, exist_ok=True)
        wanted = {**os.environ, **self._variables}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in wanted.items() if value is not None},
            )
        try:
            eventually(self._usable, "the mount is usable")
        except BaseException:
            self.close()
            raise
        return self

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Send a signal, if any, and return the exit code; nothing may be mounted afterwards.

        A mount can be used before it is announced; one that is ended between says so by its exit code.
        """
        process = self._process
        assert process is not None
        if number is not None:
            eventually(lambda: " is mounted at " in self.text() or control.ask_mount(self.path) is not None, "the mount is announced")
            process.send_signal(number)
        code = process.wait(LIMIT)
        assert mounts.find(self.path) is None, "still mounted"
        return code

    def status(self) -> dict[str, Any]:
        """Return what the control socket tells."""
        found = control.ask_mount(self.path)
        assert found is not None, self.text()
        return found

    def holds(self, paths: Iterable[Path]) -> None:
        """Wait until the block cache holds all of these files."""
        for path in paths:
            size = path.stat().st_size
            eventually(lambda: int(os.getxattr(path, "user.optfs.cached")) == size, f"the cache holds {path}")  # noqa: B023 - called at once

    def blocks(self) -> list[Path]:
        """Return the files of the block cache that hold a block."""
        return [path for path in (self.cache / "blocks-v1").glob("[0-9a-f]/*") if path.suffix != ".tmp"]

    def warnings(self) -> list[str]:
        """Return the log's lines of level warning and above."""
        return [line for line in self.text().splitlines() if " WARNING " in line or " ERROR " in line or " CRITICAL " in line]


def descriptors(pid: int, kind: str = "") -> int:
    """Return how many descriptors a process has open; `kind`: what their links in /proc begin with."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            links.append(str(link.readlink()))
    return sum(link.startswith(kind) for link in links)


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[None]:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def at_once(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run `work(0)` … `work(count - 1)` in a thread each, all at once; return what they raised."""
    failures: list[BaseException] = []
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait(LIMIT)
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT)
    assert not any(thread.is_alive() for thread in threads), "a reader hangs"
    return failures


class Load:
    """Threads that read whole files over and over. Keeps what failed and what was wrong; leaving it stops them."""

    def __init__(self, files: Mapping[Path, bytes], threads: int = 6) -> None:
        """Describe it; entering starts the threads."""
        self._files = list(files.items())
        self._stop = threading.Event()
        self.errors: list[OSError] = []
        self.wrong: list[str] = []
        self.done = 0
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def _run(self, number: int) -> None:
        at = number
        while not self._stop.is_set():
            path, content = self._files[at % len(self._files)]
            at += 1
            try:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    got = file.read()
            except OSError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
                continue
            if got != content:
                self.wrong.append(f"{path.name}: {len(got)} bytes, not the {len(content)} right ones")
            self.done += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop and wait; a thread that hangs fails the test."""
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in self._threads), "a reader hangs"


def forget_pages(path: Path) -> None:
    """Drop the kernel's pages of a file, so that the next read reaches the mount."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
