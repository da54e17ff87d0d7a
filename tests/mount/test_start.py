"""A mount that is asked to end while it starts: it ends at once, is not mounted, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optfs.bridge import mounts
from optfs.demo.faults import Fault, Stall
from optfs.demo.services import Services
from optfs.service import running
from tests.support.mounting import eventually, require

SOON = 5.0
"""Seconds: about one is promised, machines are loaded, and what the mounts wait for never comes."""

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
PLACES = [["--foreground"], []]


class Starting:
    """A command `optfs mount` that doesn't become usable by itself."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.services = services
        self.folder = folder
        self.point = folder / "mnt"
        self.point.mkdir()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, *options: str, before: str = "") -> None:
        """Start it; `before` is Python that runs in the process first."""
        program = f"import os, signal, time\n{before}\nimport runpy\nrunpy.run_module('optfs', run_name='__main__', alter_sys=True)"
        line = [sys.executable, "-c", program, "mount", *options, "--timeout", "300s", "--log-file", str(self.log), str(self.point)]
        environment = {**os.environ, **self.services.environment, "OPTFS_CACHE_DIR": str(self.folder / "cache")}
        self._process = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL)

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and return the exit code, which comes soon."""
        assert self._process is not None
        if number is not None:
            self._process.send_signal(number)
        code = self._process.wait(SOON)
        assert mounts.find(self.point) is None
        return code

    def close(self) -> None:
        """Leave nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        while mounts.find(self.point) is not None:
            mounts.unmount(self.point, lazy=True)


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Starting]:
    """A command that mounts an account with one file."""
    require("auto")
    with Services() as services:
        services.put("type=events/date=2026-11-01/event=a/part.parquet", b"x")
        made = Starting(services, tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("place", PLACES, ids=["front", "background"])
@pytest.mark.parametrize("kind", ["credentials", "list"])
def test_a_signal_ends_a_start_that_waits_for_a_service(starting: Starting, place: list[str], kind: str, number: signal.Signals) -> None:
    """It was looked at when all had answered, and then too early for the mount: that stayed, dead."""
    fault = starting.services.faults.add(Fault(lambda request: request.kind == kind, Stall()))
    starting.begin(*place)
    eventually(lambda: fault.hits > 0, "the service is asked")
    assert starting.end(number) == 128 + number
    assert "is mounted" not in starting.log.read_text()


def test_a_signal_just_before_a_service_is_asked_ends_the_start(starting: Starting) -> None:
    """When signals are taken over already, but don't raise yet."""
    starting.services.faults.add(Fault(lambda request: request.kind == "credentials", Stall()))
    before = """
from optfs.service import running
real = running._interruptible
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return real(*arguments)
running._interruptible = interrupted
"""
    starting.begin("--foreground", before=before)
    assert starting.end() == 128 + signal.SIGTERM


@pytest.mark.parametrize("place", PLACES, ids=["front", "background"])
def test_a_signal_ends_a_start_that_waits_for_the_first_listings(starting: Starting, place: list[str]) -> None:
    """Their threads aren't waited for."""
    fault = starting.services.faults.add(Fault(lambda request: request.kind == "list" and "type=" in request.key, Stall()))
    starting.begin(*place)
    eventually(lambda: fault.hits > 0, "a type is listed")
    assert starting.end(signal.SIGTERM) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("place", PLACES, ids=["front", "background"])
def test_a_signal_ends_the_tokens_command_too(starting: Starting, place: list[str], number: signal.Signals) -> None:
    script = starting.folder / "give"
    script.write_text(f"#!/bin/sh\necho $$ > '{starting.folder}/new'\nmv '{starting.folder}/new' '{starting.folder}/pid'\nexec sleep 60\n")
    script.chmod(0o700)
    starting.begin(*place, "--token-command", str(script))
    eventually((starting.folder / "pid").exists, "the command runs")
    assert starting.end(number) == 128 + number
    assert running.end_of(int((starting.folder / "pid").read_text()), 1.0)


@pytest.mark.parametrize("moment", ["_prepare_cancelling", "Session._on_start", "Session._widen_readahead"])
def test_a_signal_between_mounting_and_usable_unmounts(starting: Starting, moment: str) -> None:
    """Before libfuse's loop begins, while the kernel greets it, and before the mount is announced."""
    before = f"""
from optfs.bridge import mounting
from optfs.bridge.mounting import Session
real = mounting.{moment}
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    real(*arguments)
mounting.{moment} = interrupted
"""
    starting.begin("--foreground", before=before)
    eventually(lambda: starting.log.exists() and "SIGTERM" in starting.log.read_text(), "the signal has arrived")
    assert starting.end() == 128 + signal.SIGTERM
    assert "is mounted" not in starting.log.read_text()
