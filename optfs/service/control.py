"""The control socket: how `optfs status` and `optfs umount` learn about a running mount.

A Unix socket for each mount, in a folder that only its user may enter; its name is a hash of the mount point. Whoever connects gets one JSON
document and the end of the stream; nothing is read from the client, so there is nothing to parse and nothing to attack.

Rules: the socket is 0600 in a 0700 folder of our own; a folder that isn't ours is refused. A socket on which nobody listens any more is removed
by whoever meets it. The document never holds a secret (`service.report` makes it of counters and times only).

Threads: `control` accepts and answers, one client at a time, each with a time limit.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Document = dict[str, Any]

PATIENCE = 2.0  # seconds for a client that doesn't take its answer, or a server that doesn't give one
LONGEST_PATH = 100  # bytes; Linux's limit for a socket's name is 108
ANSWER_LIMIT = 1 << 20


def runtime_folder() -> Path:
    """Return the folder of control sockets, whether it exists or not: `/run/optfs` for root, else below `XDG_RUNTIME_DIR` or the cache."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/optfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_absolute() and os.access(base, os.W_OK):
        return Path(base) / "optfs"
    return Path.home() / ".cache" / "optfs" / "run"


def socket_name(mountpoint: Path) -> str:
    """Return the name of a mount point's socket."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24] + ".sock"


class ControlServer:
    """Answers every client with a document."""

    def __init__(self, mountpoint: Path, document: Callable[[], Document], folder: Path | None = None) -> None:
        """Serve `document` for a mount point, once `start` was called."""
        self._folder = folder or runtime_folder()
        self._path = self._folder / socket_name(mountpoint)
        self._document = document
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> bool:
        """Listen; without a usable folder the mount works all the same, `optfs status` just doesn't see it. Return whether it listens."""
        try:
            _own_folder(self._folder)
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short(self._path) as name:
                self._path.unlink(missing_ok=True)  # of a mount that was killed; a living one holds the mount point itself
                before = os.umask(0o177)
                try:
                    server.bind(name)
                finally:
                    os.umask(before)
            server.listen(8)
        except OSError as error:
            logger.warning("no control socket at %s (%s): `optfs status` won't show this mount", self._path, error.strerror)
            return False
        self._socket = server
        self._thread = threading.Thread(target=self._serve, args=(server,), name="control", daemon=True)
        self._thread.start()
        return True

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self._closed.set()
        if self._socket is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
        self._thread.join(PATIENCE + 1)
        self._socket.close()

    def _serve(self, server: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                client, _ = server.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EINTR} and not self._closed.wait(0.5):
                    continue
                return
            with client:
                client.settimeout(PATIENCE)
                try:
                    client.sendall(json.dumps(self._document()).encode())
                except OSError:
                    pass  # it went away
                except Exception:
                    logger.exception("no status could be given")


def ask(path: Path) -> Document | None:
    """Return what the mount behind a socket tells; None when nobody is there, in which case the socket is removed, or it doesn't answer."""
    raw = b""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with client:
        client.settimeout(PATIENCE)
        try:
            with _short(path) as name:
                client.connect(name)
            while (piece := client.recv(65536)) and len(raw) < ANSWER_LIMIT:
                raw += piece
            answer = json.loads(raw)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except (OSError, ValueError):
            return None
    return answer if isinstance(answer, dict) else None


def ask_mount(mountpoint: Path, folder: Path | None = None) -> Document | None:
    """Return what the mount at a mount point tells, or None."""
    return next((answer for path in sockets(folder) if path.name == socket_name(mountpoint) and (answer := ask(path))), None)


def sockets(folder: Path | None = None) -> list[Path]:
    """Return the sockets that this user may ask; root may ask those of all users."""
    folders = [folder or runtime_folder()]
    if folder is None and os.geteuid() == 0:
        folders += sorted(Path("/run/user").glob("*/optfs"))
    return [path for each in folders for path in sorted(each.glob("*.sock"))]


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a socket's path that fits the kernel's limit."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _own_folder(folder: Path) -> None:
    """Make the folder, or see that it is ours alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the folder belongs to somebody else")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
