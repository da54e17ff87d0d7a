"""The control socket: how `optfs status` and `optfs umount` learn about a running mount.

A Unix socket for each mount, in a folder that only its user may enter; its name is a hash of the mount point. Whoever connects gets one JSON
document and the end of the stream; nothing is read from the client, so there is nothing to parse and nothing to attack.

Rules: the socket is 0600 in a 0700 folder of our own; a folder that isn't ours is refused. A socket on which nobody listens any more is removed
when its owner meets it. Root, who asks all users' mounts, follows no link of theirs, removes nothing of theirs, and believes no answer that
isn't made like a document. The document never holds a secret (`service.report` makes it of counters and times only).

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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Document = dict[str, Any]

PATIENCE = 2.0  # seconds for a client that doesn't take its answer, or a server that doesn't give one
LONGEST_PATH = 100  # bytes; Linux's limit for a socket's name is 108
_REST = 0.5
"""Seconds until another try, where there was no memory or no descriptor."""

ANSWER_LIMIT = 1 << 20
USERS_FOLDERS = Path("/run/user")
"""Where each user who is logged in has a folder, named by their number."""


def runtime_folder() -> Path:
    """Return the folder of control sockets, whether it exists or not: `/run/optfs` for root, else below `XDG_RUNTIME_DIR` or the cache."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/optfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_absolute() and os.access(base, os.W_OK):
        return Path(base) / "optfs"
    return Path.home() / ".cache" / "optfs" / "run"


def own_folder(folder: Path) -> None:
    """Make the folder, or see that it is ours alone.

    Raises:
        OSError: it can't be made, or is another's.

    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the folder belongs to somebody else")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


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
        self._bound: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> bool:
        """Listen; without a usable folder the mount works all the same, `optfs status` just doesn't see it. Return whether it listens."""
        try:
            own_folder(self._folder)
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short(self._path) as name:
                self._path.unlink(missing_ok=True)  # of a mount that was killed, or unmounted lazily
                before = os.umask(0o177)
                try:
                    server.bind(name)
                finally:
                    os.umask(before)
            self._bound = self._found()
            server.listen(8)
        except OSError as error:
            logger.warning("no control socket at %s (%s): `optfs status` won't show this mount", self._path, error.strerror)
            return False
        thread = threading.Thread(target=self._serve, args=(server,), name="control", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no memory for one more
            server.close()
            logger.warning("no memory for a thread: `optfs status` won't show this mount")
            return False
        self._socket, self._thread = server, thread
        return True

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self._closed.set()
        if self._socket is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            if self._found() == self._bound:  # else of a later mount at the same place: this one was unmounted lazily
                self._path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
        self._thread.join(PATIENCE + 1)
        self._socket.close()

    def _found(self) -> tuple[int, int]:
        """Return which socket has the name now; no other can be taken for ours while ours is open."""
        found = self._path.lstat()
        return found.st_dev, found.st_ino

    def _serve(self, server: socket.socket) -> None:
        """Answer until the end; want of memory or descriptors leaves one unanswered."""
        going = True
        while going and not self._closed.is_set():
            try:
                going = self._answer(server)
            except BaseException:  # noqa: BLE001 - there may be no memory to handle it
                time.sleep(_REST)

    def _answer(self, server: socket.socket) -> bool:
        """Answer the next who asks; return False where nobody can ask any more."""
        try:
            client, _ = server.accept()
        except OSError as error:
            return error.errno in {
                errno.EMFILE,
                errno.ENFILE,
                errno.ENOMEM,
                errno.ENOBUFS,
                errno.ECONNABORTED,
                errno.EINTR,
            } and not self._closed.wait(_REST)
        with client:
            client.settimeout(PATIENCE)
            try:
                client.sendall(json.dumps(self._document()).encode())
            except OSError:
                pass  # it went away
            except Exception:
                logger.exception("no status could be given")
        return True


def ask(path: Path) -> Document | None:
    """Return what the mount behind a socket tells; None when it doesn't answer, or nobody is there: then a socket of our own is removed."""
    raw = b""
    until = time.monotonic() + PATIENCE
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with client:
        client.settimeout(PATIENCE)
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                return None
            with _short(path) as name:
                client.connect(name)
            while (piece := client.recv(65536)) and len(raw) < ANSWER_LIMIT:
                raw += piece
                client.settimeout(max(0.001, until - time.monotonic()))
            answer = json.loads(raw)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                if _is_folder_of(path.parent, os.geteuid()):
                    path.unlink()
            return None
        except (OSError, ValueError, RecursionError):
            return None
    return answer if isinstance(answer, dict) else None


def ask_mount(mountpoint: Path, folder: Path | None = None) -> Document | None:
    """Return what the mount at a mount point tells, or None. It holds what `_FIELDS` names, and may hold more."""
    answers = (ask(path) for path in sockets(folder) if path.name == socket_name(mountpoint))
    return next((answer for answer in answers if answer and _fits(answer, _FIELDS)), None)


def sockets(folder: Path | None = None) -> list[Path]:
    """Return the sockets that this user may ask; root may ask those of all users."""
    folders = [(folder or runtime_folder(), os.geteuid())]
    if folder is None and os.geteuid() == 0:
        folders += [(each / "optfs", int(each.name)) for each in sorted(USERS_FOLDERS.glob("*")) if each.name.isdecimal()]
    return [path for each, owner in folders if _is_folder_of(each, owner) for path in sorted(each.glob("*.sock"))]


def _is_folder_of(folder: Path, owner: int) -> bool:
    """Return whether it is a folder, no link to one, and a user's own."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 64  # false for NaN, too


def _process(value: object) -> bool:
    return isinstance(value, int) and 0 < value < 1 << 31


def _text(value: object) -> bool:
    return isinstance(value, str)


def _text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _number_or_none(value: object) -> bool:
    return value is None or _number(value)


def _absent(_value: object) -> bool:
    return False


_Shape = Callable[[object], bool] | dict[str, Any] | list[Any]
"""Of a value, of an object's fields (those that end with `?` may be missing), or of a list's one kind of item."""

_FIELDS: _Shape = {
    **dict.fromkeys(("mountpoint", "account", "binding", "version", "carrier?"), _text),
    **dict.fromkeys(("uptime", "bytes_fetched", "bytes_read", "retries", "errors"), _number),
    "pid": _process,
    "state?": _absent,  # the word of whoever looks
    "providers": [_text],
    "credentials": [
        {"provider": _text, "bucket": _text, "expires_in": _number_or_none, "last_refresh": _text_or_none, "last_error": _text_or_none}
    ],
    "cache": {"state": _text, **dict.fromkeys(("size", "limit", "hits", "misses"), _number)},
    "requests": {"list?": _number, "get?": _number},
    "memory": {"resident": _number},
    "readahead": {"unused": _number},
    "blocks": dict.fromkeys(("memory_hits", "disk_hits", "misses"), _number),
    "listings": {"failing?": [_text], "refusing?": [_text]},
}
"""What people are shown of a document (`optfs status`). Older versions told no carrier and less of listings."""


def _fits(value: object, shape: _Shape) -> bool:
    """Return whether a value has a shape."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            _fits(value[name.removesuffix("?")], inner) if name.removesuffix("?") in value else name.endswith("?")
            for name, inner in shape.items()
        )
    return shape(value)


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
