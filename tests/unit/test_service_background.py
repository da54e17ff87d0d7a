"""The background process: its parent returns when it is usable, or raises what ended it. Each test forks in a program of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest


def run(body: str, *, limit: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a program that starts a background process and prints what came of it."""
    program = f"""
import os, signal, sys, time
from optfs.errors import *
from optfs.service import background

{textwrap.dedent(body)}

try:
    warnings = background.run(work, {limit}, globals().get("keep", ()))
except OptfsError as error:
    print(type(error).__name__, error.message)
else:
    print("usable", *warnings)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)


def ended(pid: int) -> bool:
    """Wait until a process has ended, 30 s at most."""
    for _ in range(1500):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_the_parent_returns_when_the_child_is_usable_and_the_child_goes_on(tmp_path: Path) -> None:
    done = run(f"""
        def work(announce):
            announce()
            print("nobody sees this")
            with open({str(tmp_path / "child")!r}, "w") as file:
                file.write(f"{{os.getpid()}} {{os.getsid(0)}} {{os.getcwd()}} {{os.readlink('/proc/self/fd/0')}}")
            while not os.path.exists({str(tmp_path / "stop")!r}):
                time.sleep(0.02)
            return 0
    """)
    assert done.stdout == "usable\n"
    assert done.stderr == ""
    for _ in range(1500):
        if (tmp_path / "child").exists() and (words := (tmp_path / "child").read_text().split()):
            break
        time.sleep(0.02)
    pid, session, folder, stdin = words
    assert session == pid
    assert folder == "/"
    assert stdin == "/dev/null"
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    (tmp_path / "stop").touch()
    assert ended(int(pid))


def test_what_the_caller_left_open_is_closed_once_the_mount_is_usable(tmp_path: Path) -> None:
    """A lock of flock(1), say. What the process opened itself stays open, and what its settings name; its own temporary file doesn't."""
    done = run(f"""
        lock = os.open({str(tmp_path / "lock")!r}, os.O_CREAT | os.O_RDWR)
        os.set_inheritable(lock, True)
        ours = os.open({str(tmp_path)!r}, os.O_RDONLY)

        named = os.open({str(tmp_path / "named")!r}, os.O_CREAT | os.O_RDWR)
        os.set_inheritable(named, True)
        keep = background.named(["/dev/fd/" + str(named), "/proc/self/fd/999", "/dev/fd/x", "/a/dev/fd/" + str(lock), None])

        def is_open(descriptor):
            try:
                os.fstat(descriptor)
            except OSError:
                return False
            return True

        def deleted():
            for name in os.listdir("/proc/self/fd"):
                try:
                    if os.readlink("/proc/self/fd/" + name).endswith(" (deleted)"):
                        return True
                except OSError:
                    pass
            return False

        def work(announce):
            before = is_open(lock)
            announce()
            found = before, is_open(lock), is_open(ours), is_open(named), is_open(0), is_open(2), deleted()
            with open({str(tmp_path / "part")!r}, "w") as file:
                file.write(repr(found))
            os.rename({str(tmp_path / "part")!r}, {str(tmp_path / "found")!r})
            return 0
    """)
    assert (done.stdout, done.stderr) == ("usable\n", "")
    found = tmp_path / "found"
    for _ in range(1500):
        if found.exists():
            break
        time.sleep(0.02)
    assert found.read_text() == repr((True, False, True, True, True, True, False))


@pytest.mark.parametrize("kind", ["ConfigError", "TokenRefused", "ServiceUnavailable", "MountError", "DeadlineExceeded"])
def test_what_ends_the_child_before_it_is_usable_is_raised_in_the_parent(kind: str) -> None:
    done = run(f"""
        def work(announce):
            raise {kind}("what happened; what to do")
    """)
    assert done.stdout == f"{kind} what happened; what to do\n"


def test_warnings_until_then_are_handed_to_the_parent_as_lines_without_secrets() -> None:
    done = run("""
        import logging

        def work(announce):
            logging.getLogger("optfs.x").info("ordinary")
            logging.getLogger("optfs.x").warning("left out:\\n Bearer %s", "very-secret")
            announce()
            logging.getLogger("optfs.x").warning("too late")
            return 0
    """)
    assert done.stdout == "usable left out: Bearer [hidden]\n"


def test_a_subclass_of_some_layer_is_raised_as_the_kind_of_error_that_it_is() -> None:
    done = run("""
        class Stalled(ServiceUnavailable):
            pass

        def work(announce):
            raise Stalled("nothing arrives")
    """)
    assert done.stdout == "ServiceUnavailable nothing arrives\n"


def test_a_child_that_crashes_is_told_with_the_last_line_that_it_printed() -> None:
    done = run("""
        def work(announce):
            os.write(2, b"first\\nfusermount3: no permission\\n")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert done.stdout == "MountError the mount process was ended by signal 9 (fusermount3: no permission); run `optfs doctor`\n"


def test_a_bug_in_the_child_is_told_by_its_kind_without_its_text(tmp_path: Path) -> None:
    done = run("""
        def work(announce):
            raise KeyError("2:very-secret")
    """)
    assert done.stdout.startswith("OptfsError unexpected KeyError: this is a bug; see ")
    assert "very-secret" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_parent_that_is_ended_takes_a_child_with_it_that_is_not_usable_yet(number: signal.Signals, tmp_path: Path) -> None:
    """As `timeout` and service managers do: the child mounted all the same, later."""
    program = f"""
import os, time
from optfs.service import background

def work(announce):
    with open({str(tmp_path / "child")!r}, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
    return 0

background.run(work, 60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    for _ in range(1500):
        if (tmp_path / "child").exists() and (pid := (tmp_path / "child").read_text()):
            break
        time.sleep(0.02)
    parent.send_signal(number)
    assert parent.wait(30) == 128 + number
    assert ended(int(pid))


def test_a_child_that_ends_before_it_is_usable_is_a_failure() -> None:
    done = run("""
        def work(announce):
            return 0
    """)
    assert done.stdout == "MountError the mount ended before it was usable\n"


def test_a_child_that_never_becomes_usable_is_ended(tmp_path: Path) -> None:
    done = run(
        f"""
        def work(announce):
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            time.sleep(60)
    """,
        limit=1.0,
    )
    assert done.stdout.startswith("DeadlineExceeded the mount was not usable after 1 s")
    if (tmp_path / "pid").exists() and (text := (tmp_path / "pid").read_text()):
        assert ended(int(text))


def test_ctrl_c_while_waiting_ends_the_child(tmp_path: Path) -> None:
    program = f"""
import os, time
from optfs.service import background
def work(announce):
    open({str(tmp_path / "new")!r}, "w").write(str(os.getpid()))
    os.rename({str(tmp_path / "new")!r}, {str(tmp_path / "pid")!r})
    time.sleep(60)
try:
    background.run(work, 60)
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        for _ in range(1500):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.02)
        parent.send_signal(signal.SIGINT)
        assert parent.communicate(timeout=30)[0] == "interrupted\n"
    assert ended(int((tmp_path / "pid").read_text()))
