"""One mount from its beginning to its end: checks, options, the thread that libfuse runs in, readiness, and stopping.

libfuse's loop runs in a thread of its own, and `Session.run` waits in the caller's. So Python's signal handlers run at once (the
interpreter runs them in the main thread only), and neither the bindings, which reset SIGINT in the main thread only, nor libfuse, which
replaces default handlers only, take them away: install handlers for SIGINT, SIGTERM and SIGHUP before `run`.

A mount is in one of these states: not begun; started (the kernel has opened the connection); ended. `stop` may be called in any of them, by
any thread; one that comes before the mount is ready is remembered, and `run` undoes what it has begun instead of calling it ready. A mount that
is in use is left by libfuse's loop, which closes the connection: its users get ENOTCONN, and `run` returns. What is unmounted by path is only ever
this mount: one that was unmounted lazily, or covered, ends in the same way, and leaves alone what is at its path by now.
"""

import contextlib
import ctypes
import logging
import os
import re
import select
import shlex
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optfs.bridge import bindings, mounts
from optfs.bridge.bindings import Binding
from optfs.bridge.errnos import ErrorReporter
from optfs.bridge.handlers import Core
from optfs.bridge.kernel_cache import KernelCache
from optfs.errors import ConfigError, MountError
from optfs.filesystem import FileSystem

logger = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
"""The kernel's readahead on the mount: as long as libfuse 3's longest request. 128 KiB, the kernel's own, halves a stream's speed."""

ATTRIBUTE_SECONDS = 1.0
"""How long the kernel may believe attributes, at most. `KernelCache` remembers as long what it was told, so longer costs memory."""

MARGIN_SECONDS = 2.0
"""How long an answer may take from a handler to the kernel on a busy machine."""

_LEAVE_SECONDS = 3.0  # for handlers that wait for the network; then the mount is at least taken out of sight

_START_SECONDS = 30.0  # until libfuse has mounted or has failed: one system call, or one helper

_NEEDED = frozenset(
    os.path.realpath(path)
    for path in ("/", "/bin", "/dev", "/etc", "/lib", "/lib64", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var")
)

_FUSE = os.makedev(10, 229)  # /dev/fuse, admin-guide/devices.txt


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.

    Attributes:
        binding: which.
        account: shown as the source, `optfs#<account>`.
        allow_other: whether other users may look.
        listing_ttl: seconds; attributes are believed no longer than listings.

    """

    binding: Binding
    account: str
    allow_other: bool = False
    listing_ttl: float = 60.0


class Session:
    """One mount of one file system."""

    def __init__(self, filesystem: FileSystem, mountpoint: str, options: MountOptions) -> None:
        """Describe it; `run` mounts."""
        self._filesystem = filesystem
        self._mountpoint = mounts.resolve(mountpoint)
        self._options = options
        self._started = threading.Event()
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._asked = threading.Event()
        # Written by the loop's thread before it sets _ended.
        self._error: BaseException | None = None
        # Written by the loop's thread before it sets _started: the mount's number in the table; None where that can't be told.
        self._device: str | None = None
        # Written by `run` before the loop's thread starts.
        self._core: Core | None = None
        self._loop: threading.Thread | None = None

    @property
    def mountpoint(self) -> str:
        """Its absolute path."""
        return self._mountpoint

    def run(self, on_ready: Callable[[], None]) -> None:
        """Mount, call `on_ready` in this thread when the mount can be used (never after `stop`), and return when it has been unmounted.

        Raises:
            MountError: FUSE is missing or refuses, or the mount point can't be used.

        """
        check_mountpoint(self._mountpoint)
        if self._options.allow_other:
            check_allow_other()
        serve_loop = bindings.load(self._options.binding)
        _prepare_cancelling()
        names = min(ATTRIBUTE_SECONDS, self._options.listing_ttl) if sys.platform.startswith("linux") else 0.0
        # Only libfuse 3 can tell the kernel to keep none while it matters (`KernelCache.on_torn`).
        lifetime = names if self._options.binding == "fuse3" else 0.0
        # The kernel's clock starts when it takes the answer, so what it was told is remembered for longer than it believes it. Where it
        # believes nothing, it still takes the size that it heard just before an open for the size of what is opened. Only Linux asks anew.
        kernel = KernelCache(lifetime + MARGIN_SECONDS if sys.platform.startswith("linux") else 0.0, time.monotonic)
        core = self._core = Core(self._filesystem, kernel, ErrorReporter(), self._on_start)
        options = self._libfuse_options(names, lifetime)

        def loop() -> None:
            try:
                serve_loop(core, self._mountpoint, options)
            except BaseException as error:  # noqa: BLE001 - told to whoever waits in `run`
                self._error = error
            finally:
                self._ended.set()
                self._changed.set()

        thread = self._loop = threading.Thread(target=loop, name="fuse-loop", daemon=True)
        said = _Captured()
        if self._asked.is_set():
            return
        with said:
            thread.start()
            self._changed.wait(_START_SECONDS)
        if not self._started.is_set():
            self._undo()
            raise MountError(_refusal(self._mountpoint, said.text, self._error))
        if said.text:  # what other threads logged meanwhile
            os.write(2, said.text.encode())
        self._widen_readahead()
        try:
            if self._asked.is_set():
                self.stop()  # once more: it may have been too early to do anything
            else:
                on_ready()
        except BaseException:
            self.stop()  # else the end of the process would leave a dead mount point
            raise
        thread.join()
        if self._error is not None:
            logger.warning("the mount at %s ended: %s", self._mountpoint, self._error)

    def stop(self) -> None:
        """Unmount and make `run` return, also while the mount is in use; returns before `run` does where a handler still waits."""
        self._asked.set()
        if not self._started.is_set() or self._ended.is_set():
            return
        assert self._core is not None
        if self._is_in_place():
            try:
                mounts.unmount(self._mountpoint)
            except MountError as failure:
                logger.info("%s; its users lose it", failure.message)
            else:
                return
        if self._is_in_place():
            self._core.leave()
            self._wake_loop()
            if self._ended.wait(_LEAVE_SECONDS):
                return
        if self._is_in_place():
            with contextlib.suppress(MountError):
                mounts.unmount(self._mountpoint, lazy=True)
        if not self._is_in_place():
            self._unmount_elsewhere()
            self._sever()

    def _undo(self) -> None:
        """Take away what is mounted of a start that failed.

        Raises:
            MountError: somebody else has mounted there meanwhile.

        """
        if self._ended.is_set():  # libfuse has said why, and has undone it
            check_mountpoint(self._mountpoint)
            return
        with contextlib.suppress(MountError):
            if mounts.find(self._mountpoint) is not None:
                mounts.unmount(self._mountpoint, lazy=True)

    def _unmount_elsewhere(self) -> None:
        """Unmount this mount where it was moved to, as with a folder above it."""
        with contextlib.suppress(MountError):
            for mount in mounts.mounts():
                top = mounts.find(mount.mountpoint)
                if mount.device == self._device and top is not None and top.device == self._device:
                    mounts.unmount(mount.mountpoint, lazy=True)

    def _sever(self) -> None:
        """End the loop of a mount that isn't at its path any more.

        At its end libfuse unmounts by path unless the connection is closed, so the connection's place is taken by a pipe that nobody reads,
        which looks the same. The kernel closes the connection when the last thread has let go of it.
        """
        with contextlib.suppress(OSError):  # no descriptor left: the end of the process does it
            reading, writing = os.pipe()
            os.close(reading)
            try:
                connection = self._connection()
                if connection is None or _is_closed(connection):
                    return  # the loop ends by itself
                ctypes.PyDLL(None).dup2(writing, connection)  # os.dup2 may wait for the interpreter's lock, and the loop may end meanwhile
            finally:
                os.close(writing)
            assert self._core is not None
            self._core.leave()
            self._wake_loop()
            logger.info("what is at %s is not this mount any more; its users lose it", self._mountpoint)

    def _wake_loop(self) -> None:
        """Let the loop look whether it is to end; libfuse then unmounts lazily.

        The loop's thread waits in sem_wait, which any signal with a handler interrupts. A request to our own mount would do it, too, but
        where all handlers are busy, its sender could neither be answered nor killed; and to have a child send it takes descriptors.
        """
        thread = self._loop
        if thread is not None and thread.is_alive() and thread.ident is not None:
            signal.pthread_kill(thread.ident, signal.SIGHUP)  # handled by us, or else by libfuse

    def _is_in_place(self) -> bool:
        """Return whether what is at the mount point is this mount, or that can't be told."""
        connection = self._connection()
        if connection is not None and _is_closed(connection):
            return False  # and another may have its number by now
        try:
            found = mounts.find(self._mountpoint)
        except MountError:  # for want of a descriptor
            return True
        return self._device is None or (found is not None and found.device == self._device)

    def _connection(self) -> int | None:
        """Return the descriptor by which libfuse speaks with the kernel; None where it is closed, or isn't known."""
        connection = self._core.connection if self._core else None
        with contextlib.suppress(OSError):
            if connection is not None and os.fstat(connection).st_rdev == _FUSE:
                return connection
        return None

    def _on_start(self) -> None:
        try:
            with contextlib.suppress(MountError):
                found = mounts.find(self._mountpoint)
                self._device = found.device if found else None
        finally:
            self._started.set()
            self._changed.set()

    def _libfuse_options(self, names: float, lifetime: float) -> dict[str, object]:
        options: dict[str, object] = {
            "ro": True,
            "nodev": True,
            "nosuid": True,
            "noexec": True,
            "noatime": True,
            "default_permissions": True,  # the kernel checks modes, so that no handler has to
            "fsname": "optfs#" + re.sub(r"[^0-9A-Za-z_.-]", "_", self._options.account),  # a comma would end the option
            "subtype": "optfs",
            "entry_timeout": names,
            "attr_timeout": lifetime,
            "negative_timeout": 0,
        }
        if not sys.platform.startswith("linux"):
            options = {key: options[key] for key in ("ro", "fsname", "entry_timeout", "attr_timeout")}
        if self._options.allow_other:
            options["allow_other"] = True
        return options

    def _widen_readahead(self) -> None:
        if self._device is None:
            return
        try:
            Path(f"/sys/class/bdi/{self._device}/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n", encoding="ascii")
        except OSError as error:  # only root may
            logger.debug("the kernel's readahead stays as it is: %s", error)


def check_mountpoint(mountpoint: str) -> None:
    """Look whether the mount point can be used.

    Raises:
        ConfigError: it is missing, no folder, one that the machine needs, or can't be looked at.
        MountError: it is dead, or in a dead mount; already an optfs mount; or not writable for an ordinary user.

    """
    path = Path(mountpoint)
    quoted = shlex.quote(mountpoint)
    dead = [each for each in (path, *path.parents) if mounts.is_dead(each)]
    if dead:
        top = dead[-1]
        command = "fusermount3 -u -z" if mounts.find(top) is None else "optfs umount"
        raise MountError(f"{top} is left over from a mount whose process has ended; unmount it: {command} {shlex.quote(str(top))}")
    if mounts.find(mountpoint) is not None:
        raise MountError(f"{mountpoint} is already mounted by optfs; unmount it first: optfs umount {quoted}")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"{mountpoint} doesn't exist; make it: mkdir -p {quoted}") from None
    except OSError as error:
        raise ConfigError(f"{mountpoint} can't be looked at: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{mountpoint} isn't a folder; mount at one")
    if mountpoint in _NEEDED or path.is_relative_to("/proc") or path.is_relative_to("/sys"):
        raise ConfigError(f"a mount at {mountpoint} would hide what the machine needs; mount at a folder of its own")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise MountError(f"{mountpoint} isn't writable for you, which FUSE asks of a mount point; mount at a folder of your own")


def check_allow_other(config: Path = Path("/etc/fuse.conf")) -> None:
    """Look whether an ordinary user may let others in.

    Raises:
        MountError: /etc/fuse.conf doesn't have `user_allow_other`.

    """
    if os.geteuid() == 0 or not sys.platform.startswith("linux"):
        return
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if not any(line.strip() == "user_allow_other" for line in lines):
        raise MountError("--allow-other needs a line `user_allow_other` in /etc/fuse.conf; ask root to add it, or leave the option out")


def _is_closed(connection: int) -> bool:
    """Return whether the kernel has closed the connection: the mount is gone, and nobody uses it."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def _prepare_cancelling() -> None:
    """Load what glibc loads at the first pthread_cancel, by which libfuse's loop ends: it aborts the process that has no descriptor for it."""
    with contextlib.suppress(OSError):  # other libraries than glibc do without
        ctypes.CDLL("libgcc_s.so.1")


def _refusal(mountpoint: str, said: str, error: BaseException | None) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    cause = lines[-1] if lines else "FUSE doesn't answer"
    if error is not None and not isinstance(error, RuntimeError):  # RuntimeError: the bindings' word for a refusal by libfuse
        cause = f"{type(error).__name__}: {error}"
    return f"{mountpoint} can't be mounted: {cause}; `optfs doctor` looks for the reason"


class _Captured:
    """Collects what is written to the standard error: libfuse and its helper say there, and only there, why they refuse."""

    def __init__(self) -> None:
        self.text = ""

    def __enter__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_exception: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        with self._file as file:
            file.seek(0)
            self.text = file.read().decode("utf-8", "replace")
