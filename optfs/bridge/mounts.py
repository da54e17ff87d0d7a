"""The kernel's table of mounts, unmounting, and mount points that a dead process left behind.

`/proc/self/mountinfo` is described in proc_pid_mountinfo(5); space, tab, newline and backslash in its fields are octal escapes.
"""

import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from optfs.errors import MountBusy, MountError

FSTYPE = "fuse.optfs"

ANSWER_SECONDS = 2.0
"""How long a mount may take to answer `statvfs`, which it does without a request, before it counts as one that lives but is silent."""

_MOST_LINKS = 40  # Linux's own limit
_TIMEOUT = 30.0  # seconds for a helper that only makes one system call, on a busy machine
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table.

    Attributes:
        mountpoint: absolute path.
        source: as `fsname` told it.
        device: `major:minor`.

    """

    mountpoint: str
    fstype: str
    source: str
    device: str


def parse(table: bytes) -> list[Mount]:
    """Return the mounts of a table, in its order; later ones cover earlier ones. Lines that make no sense are left out."""
    found = []
    for line in table.splitlines():
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            device, mountpoint, fstype, source = fields[2], fields[4], fields[dash + 1], fields[dash + 2]
        except (ValueError, IndexError):
            continue
        found.append(Mount(_text(mountpoint), _text(fstype), _text(source), _text(device)))
    return found


def mounts() -> list[Mount]:
    """Return this machine's mounts that optfs made; empty where there is no /proc.

    Raises:
        MountError: the table can't be read: this process has no descriptor left.

    """
    return [mount for mount in _table() if mount.fstype == FSTYPE]


def _table() -> list[Mount]:
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MountError(f"the table of mounts can't be read: {error.strerror}") from error
    return parse(table)


def find(mountpoint: str | os.PathLike[str]) -> Mount | None:
    """Return optfs's mount at this folder; None where there is none, or another mount covers it: unmounting would take that away."""
    wanted = resolve(mountpoint)
    matching = [mount for mount in _table() if mount.mountpoint == wanted]
    return matching[-1] if matching and matching[-1].fstype == FSTYPE else None


def resolve(mountpoint: str | os.PathLike[str]) -> str:
    """Return the path as the table has it, without touching the mount itself, which may be dead."""
    path = os.path.abspath(os.fspath(mountpoint))  # noqa: PTH100 - Path.resolve would ask the mount itself
    for _ in range(_MOST_LINKS):
        parent, name = os.path.split(path.rstrip("/") or "/")
        if name in {"", ".", ".."}:
            return os.path.realpath(path)
        path = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118 - names may be odd bytes; a string it stays
        try:
            target = os.readlink(path)  # noqa: PTH115 - as above; a mount point is no link, and isn't asked
        except OSError:
            break
        path = os.path.join(os.path.dirname(path), target)  # noqa: PTH118, PTH120 - as above
    return path


def is_dead(mountpoint: str | os.PathLike[str]) -> bool:
    """Return whether the process that served this mount point is gone. One that doesn't answer within `ANSWER_SECONDS` isn't."""
    dead: list[bool] = []

    def look() -> None:
        try:
            os.statvfs(mountpoint)  # not stat: the kernel may answer that alone, from attributes that it was told just before the end
        except OSError as error:
            dead.append(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    thread = threading.Thread(target=look, daemon=True)  # left behind where the process is stopped: nothing else ends such a wait
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # no memory for one more
        look()
    else:
        thread.join(ANSWER_SECONDS)
    return dead == [True]


def recover_stale(mountpoint: str | os.PathLike[str]) -> bool:
    """Unmount what a dead optfs left at this folder; return whether there was something.

    Raises:
        MountError: it can't be unmounted.

    """
    if not is_dead(mountpoint) or find(mountpoint) is None:
        return False
    unmount(mountpoint, lazy=True)
    return True


def unmount(mountpoint: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Unmount; `lazy` takes a mount out of sight that is in use, and lets it end with its last user.

    Raises:
        MountBusy: in use.
        MountError: not permitted, not mounted; the message has the helper's own words.

    """
    path = resolve(mountpoint)
    reason = "neither fusermount3, fusermount nor umount is installed; install it: apt install fuse3"
    for command in _commands(path, lazy=lazy):
        program = shutil.which(command[0], path=_search_path())
        if program is None:
            continue
        try:
            done = subprocess.run(  # noqa: S603 - a fixed program; the path comes after `--` or is absolute
                [program, *command[1:]], capture_output=True, check=False, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, env=_environment()
            )
        except subprocess.TimeoutExpired as error:
            raise MountError(f"{path}: {command[0]} doesn't end; try `optfs umount --lazy`") from error
        except OSError as error:  # this process has no descriptor or no memory left
            raise MountError(f"{path} can't be unmounted: {command[0]} can't be started: {error.strerror}") from error
        if done.returncode == 0:
            return
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = "; ".join(lines) or f"{command[0]} failed"
        if any(line.rstrip(".").endswith("busy") for line in lines):  # no helper has an exit code for it
            raise MountBusy(f"{path} can't be unmounted: {reason}")
    raise MountError(f"{path} can't be unmounted: {reason}")


def _commands(path: str, *, lazy: bool) -> Iterable[list[str]]:
    for helper in ("fusermount3", "fusermount"):
        yield [helper, "-u", *(["-z"] if lazy else []), "--", path]
    yield ["umount", *(["-l"] if lazy and os.uname().sysname == "Linux" else []), path]


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin", "/bin", "/usr/bin"])


def _environment() -> dict[str, str]:
    """Return what the helpers need: no secret of ours, and their messages in English, since `busy` is looked for."""
    return {"PATH": _search_path(), "LC_ALL": "C"}


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
