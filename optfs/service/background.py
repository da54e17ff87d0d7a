"""The background process: `optfs mount` returns when the mount is usable, and a child of it goes on serving.

Algorithm: fork before any thread exists. The child leaves the session and the terminal, works, and tells its parent through a pipe either that
the mount is usable or which error ended it. The parent waits for that and returns, or raises the same error; warnings logged until then are
shown to the user, who may never look into the log. A child that dies without a word
is a MountError that quotes the last line of what it printed (libfuse and fusermount write to stderr).

Rules: nothing is handed over in arguments or environment: the child is a copy, so no secret becomes visible in `ps`. Descriptors of the
pipe aren't inherited by programs that the child runs. Those that the caller left open are closed once the mount is usable, or a lock of
`flock`, a pipe's reader and a file system would wait for the mount's end; but for what the settings name (`--token-file /dev/fd/9`).
"""

import contextlib
import json
import logging
import os
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, NoReturn

from optfs import errors
from optfs.errors import DeadlineExceeded, MountError, OptfsError
from optfs.service import logs

Announce = Callable[[], None]
Work = Callable[[Announce], int]
"""Serves; calls its argument when the mount is usable; returns the exit code."""

WARNINGS = 10  # shown at most; the log has all
LEAVING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # SIGINT raises KeyboardInterrupt already
GRACE = 5.0  # seconds between asking a child to end and ending it


class _Warnings(logging.Handler):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < WARNINGS:
            self.lines.append(" ".join(logs.redact(record.getMessage()).split()))


def run(work: Work, timeout: float, keep: Collection[int] = ()) -> list[str]:
    """Run `work` in a background process; return the warnings, a line each, when it is usable. `keep`: inherited descriptors that it needs.

    Raises:
        OptfsError: what `work` raised before it was usable; MountError when it died without a word; DeadlineExceeded when it said nothing
            for `timeout` seconds.

    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as words:
        sys.stdout.flush()
        sys.stderr.flush()
        with _ended_by_signals() as changed:
            # Held back where a signal would find a child that nobody knows of yet, or a child that takes itself for its parent.
            signal.pthread_sigmask(signal.SIG_BLOCK, changed)
            child = os.fork()
            if child == 0:
                for number in changed:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, changed)
                os.close(reading)
                _serve(work, writing, words, keep)
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, changed)
                os.close(writing)
                with os.fdopen(reading, "rb") as pipe:
                    return _await(child, pipe, words, timeout)
            except BaseException:
                _end(child)
                raise


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[Collection[int]]:
    """Let the signals that end a program raise SystemExit within the block: a child that isn't usable yet must end with its parent.

    Yields those that did end it; what ignores them (nohup) still does.
    """

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in LEAVING if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield before.keys()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(work: Work, writing: int, words: IO[bytes], keep: Collection[int]) -> NoReturn:
    """Be the child, to the end of its process."""
    code = 1
    told = False
    warnings = _Warnings()
    logger = logging.getLogger("optfs")
    logger.addHandler(warnings)

    def tell(answer: dict[str, object]) -> None:
        nonlocal told
        if not told:
            told = True
            logger.removeHandler(warnings)
            with contextlib.suppress(OSError):  # the parent may have been killed; the mount stays
                os.write(writing, json.dumps(answer).encode())
            os.close(writing)

    inherited: list[int] = []

    def announce() -> None:
        _redirect(os.devnull, (1, 2))
        words.close()
        for descriptor in inherited:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        tell({"warnings": warnings.lines})

    try:
        inherited += set(_inherited()).difference(keep)  # now: libraries may open some that look the same
        os.setsid()
        _redirect(os.devnull, (0,))
        for descriptor in (1, 2):
            os.dup2(words.fileno(), descriptor)
        os.chdir("/")  # keeps no folder busy
        code = work(announce)
        tell({"kind": "MountError", "message": "the mount ended before it was usable"})
    except OptfsError as error:
        code = 1
        # A layer's own subclass is told as the exception of `errors` that it is a kind of.
        kind = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
        tell({"kind": kind.__name__, "message": error.message})
    except BaseException as error:
        logging.getLogger(__name__).exception("the mount process failed")
        code = 1
        tell({"kind": "OptfsError", "message": f"unexpected {type(error).__name__}: this is a bug; see {logs.destination()}"})
    finally:
        # Not sys.exit: whatever the parent's program meant to do at its end is the parent's alone.
        logging.shutdown()
        os._exit(code)


def named(paths: Iterable[Path | None]) -> set[int]:
    """Return the descriptors that paths name, as `/dev/fd/9` does."""
    found = (re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path)) for path in paths)
    return {int(match[1]) for match in found if match}


def _inherited() -> list[int]:
    """Return the descriptors, beyond 0 to 2, that the program which started this one left open: Python's own aren't inheritable."""
    found = []
    with contextlib.suppress(OSError):  # there may be no /dev/fd
        for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers, no paths
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                if int(name) > 2 and os.get_inheritable(int(name)):
                    found.append(int(name))
    return found


def _redirect(path: str, descriptors: tuple[int, ...]) -> None:
    opened = os.open(path, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def _await(child: int, pipe: IO[bytes], words: IO[bytes], timeout: float) -> list[str]:
    """Be the parent: wait for the child's answer."""
    until = time.monotonic() + timeout
    raw = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise DeadlineExceeded(f"the mount was not usable after {timeout:.0f} s; run `optfs doctor`")
        piece = os.read(pipe.fileno(), 65536)
        if not piece:
            break
        raw += piece
    if not raw:
        _, status = os.waitpid(child, 0)
        raise MountError(f"the mount process {_how(status)}{_last_line(words)}; run `optfs doctor`")
    answer = json.loads(raw)
    if "kind" in answer:
        os.waitpid(child, 0)
        raise getattr(errors, answer["kind"])(answer["message"])
    return list(answer["warnings"])


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)}"
    return f"ended with code {os.waitstatus_to_exitcode(status)}"


def _last_line(words: IO[bytes]) -> str:
    words.seek(0)
    lines = words.read(65536).decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _end(child: int) -> None:
    """End a child that didn't come up; one that ended already is fine."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
