"""The life of one mount process: from settings to unmounted.

Threads: the main thread starts everything, then waits for signals; `mount` runs the session of FUSE; the rest see docs/architecture.md.

A signal that asks for the end (`signals.ENDING`) before the session begins raises `Interrupted` in the main thread. While the session begins, it
is undone, and not announced. Both end with 128 + the signal's number. From then on a first one unmounts (lazily where the mount is in use) and
lets everything end in order; a second one, or `STOP_LIMIT` seconds, ends the process as it is. The kernel cuts the mount of a process that ended,
so nobody hangs on it.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from optfs.bridge import bindings, mounting, mounts
from optfs.config import Config
from optfs.errors import ConfigError
from optfs.service import allocator, logs, report, turns
from optfs.service.composition import Mount
from optfs.service.control import ControlServer, ask_mount
from optfs.service.providers import connect
from optfs.service.signals import ENDING, WAKE, Signals

logger = logging.getLogger(__name__)

STOP_LIMIT = 10.0
"""Seconds between asking a mount to end and leaving it: a lazily unmounted one lives as long as its last user."""

LEAVE_LIMIT = 0.5
"""Seconds for what has begun to end when nothing is mounted yet: requests that wait for a service are left."""


LAZY_LIMIT = 1.0
"""Seconds that a lazy unmount waits for the process, at most: while a file is open it won't end."""


class Interrupted(BaseException):
    """A signal asked for the end before the mount was usable."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def check(mountpoint: Path) -> None:
    """See that one can mount there; take away what a killed mount left.

    Raises:
        MountError: one can't.

    """
    if mounts.recover_stale(mountpoint):
        logger.info("%s was left over from a mount that had ended; it was unmounted", mountpoint)
    mounting.check_mountpoint(mounts.resolve(mountpoint))


def check_hidden(config: Config, mountpoint: Path) -> None:
    """See that the mount wouldn't hide what it needs itself.

    Raises:
        ConfigError: it would.

    """
    point = mounts.resolve(mountpoint)
    program = config.token_command[0] if config.token_command else ""
    needed = {
        "--token-file": config.token_file,
        "--token-command": config.folder / program if "/" in program else None,
        "--log-file": config.log_file,
        "--cache-dir": config.cache_dir if config.cache_size else None,
    }
    for name, path in needed.items():
        if path is not None and Path(mounts.resolve(path)).is_relative_to(point):
            raise ConfigError(
                f"{name}: {path} lies in the mount point, where the mount would hide it; put it elsewhere, or mount elsewhere"
            )


def run(config: Config, mountpoint: Path, announce: Callable[[], None], *, foreground: bool) -> int:
    """Mount, call `announce` when the mount is usable, serve until it is unmounted, and return the exit code.

    Main thread only. Where a signal ended it before it was usable, the process ends soon after the return, whatever is still running.

    Raises:
        OptfsError: it can't be mounted.

    """
    allocator.tune_malloc()
    allocator.forbid_core_files()
    allocator.raise_file_limit()
    check_hidden(config, mountpoint)
    logs.configure(config.log_level, config.log_file, config.log_format, foreground=foreground)
    check(mountpoint)
    if mounts.resolve(mountpoint) in map(str, (config.folder, *config.folder.parents)):
        config = dataclasses.replace(config, folder=Path("/"))  # else the token's command would ask the mount that waits for the token
    binding = bindings.choose(config.binding)
    if config.allow_other:
        mounting.check_allow_other()
    try:
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(Signals())
            with _interruptible(signals):
                session, ready = _begin(config, mountpoint, binding, announce, stack)
            _serve(session, ready, signals)
    except Interrupted as interrupted:
        logger.info("%s is not mounted: %s", mountpoint, signal.Signals(interrupted.number).name)
        return 128 + interrupted.number
    logger.info("%s is unmounted", mountpoint)
    return 0


def _begin(
    config: Config, mountpoint: Path, binding: bindings.Binding, announce: Callable[[], None], stack: contextlib.ExitStack
) -> tuple[mounting.Session, Callable[[], None]]:
    """Return a session and what it is to call when it is usable; what ends with it is put on the stack."""
    connected = connect(config)
    for each in connected:
        stack.callback(each.close)
    mount = Mount(config, connected, mountpoint, binding)
    stack.callback(mount.close)
    if config.metrics is not None:
        from optfs.service import metrics  # noqa: PLC0415 - only when asked for

        stack.callback(metrics.serve(config.metrics, lambda: report.document(mount)))
    mount.list_first()
    control = ControlServer(Path(mounts.resolve(mountpoint)), lambda: report.document(mount))
    stack.callback(control.close)
    options = mounting.MountOptions(binding, mount.account, config.allow_other, config.listing_ttl)

    def ready() -> None:
        control.start()
        providers = " and ".join(each.provider for each in mount.connected)
        logger.info("account %s (%s) is mounted at %s by %s", mount.account, providers, mountpoint, binding)
        announce()

    return mounting.Session(mount.filesystem, str(mountpoint), options), ready


@contextlib.contextmanager
def _interruptible(signals: Signals) -> Iterator[None]:
    """Let the first signal that asks for the end raise `Interrupted` within the block; `LEAVE_LIMIT` later the process ends as it is.

    One that came before is found at `signals`; one that comes while the block is left arrives there, too.
    """
    arrived: list[int] = []
    asked = threading.Event()

    def end() -> None:
        asked.wait()
        if arrived:
            time.sleep(LEAVE_LIMIT)
            os._exit(128 + arrived[0])

    def leave(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) == 1:
            asked.set()
            raise Interrupted(number)

    threading.Thread(target=end, name="leave", daemon=True).start()
    before = {number: signal.signal(number, leave) for number in ENDING}
    try:
        for number in signals.wait(0):
            if number in ENDING:
                leave(number, None)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.set()


def _serve(session: mounting.Session, ready: Callable[[], None], signals: Signals) -> None:
    """Run the session in a thread until it ends by itself or is asked to.

    Raises:
        Interrupted: it was asked to before it was usable.

    """
    failures: list[BaseException] = []
    usable = threading.Event()
    asked = threading.Event()

    def serve() -> None:
        try:
            with turns.turn(asked) as end_turn:

                def announce() -> None:
                    end_turn()
                    ready()
                    usable.set()

                session.run(announce)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failures.append(error)
        finally:
            signals.wake()

    def stop() -> None:
        asked.wait()
        session.stop()

    thread = threading.Thread(target=serve, name="mount", daemon=True)
    thread.start()
    threading.Thread(target=stop, name="unmount", daemon=True).start()  # now: when it is wanted, there may be no memory for a thread
    asked_at: float | None = None
    early: int | None = None
    while thread.is_alive():
        arrived = signals.wait(None if asked_at is None else max(0.0, asked_at + STOP_LIMIT - time.monotonic()))
        if WAKE in arrived:
            thread.join(1.0)
            continue
        ending = next((number for number in arrived if number in ENDING), None)
        if signal.SIGHUP in arrived and asked_at is None and signals.hung_up():  # once: `Session.stop` sends it, too
            ending = ending or signal.SIGHUP
        if asked_at is not None and (ending or time.monotonic() >= asked_at + STOP_LIMIT):
            logger.warning("the mount is in use and is left to its users' end")
            os._exit(128 + early if early else 1 if ending else 0)
        if ending:
            asked_at = time.monotonic()
            early = None if usable.is_set() else ending
            asked.set()
    if early:  # first: the terminal's SIGINT reaches a helper of libfuse's, too
        raise Interrupted(early)
    if failures:
        raise failures[0]


def end_of(pid: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds until a process has ended; return whether it has."""
    until = time.monotonic() + timeout
    while _is_running(pid):
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        # A zombie has ended, and its parent just hasn't looked; while other threads of it live (field 20), files are still open.
        return fields[0] not in {"Z", "X"} or int(fields[17]) > 1
    return True


def unmount(mountpoint: Path, *, lazy: bool, timeout: float) -> str | None:
    """Unmount and wait for the process behind it, up to `LAZY_LIMIT` where it may be in use; return a line where something else was done.

    Raises:
        ConfigError: nothing is mounted there.
        MountBusy: it is in use.
        MountError: it can't be unmounted.

    """
    path = Path(mounts.resolve(mountpoint))
    if mounts.recover_stale(path):
        return f"{path}: what a killed mount had left is unmounted"
    if mounts.find(path) is None:
        raise ConfigError(f"{path} is not mounted by optfs; see optfs status")
    answer = ask_mount(path)
    mounts.unmount(path, lazy=lazy)
    pid = answer.get("pid") if answer else None
    if isinstance(pid, int) and not end_of(pid, min(timeout, LAZY_LIMIT) if lazy else timeout):
        return f"{path} is unmounted; its process {pid} " + ("ends when the last file is closed" if lazy else "hasn't ended yet")
    return None
