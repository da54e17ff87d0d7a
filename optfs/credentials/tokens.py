"""Where the personal access token comes from: a file, a command, or the environment.

Rules: the token is read anew for each renewal, so that a rotated one is seen. A file that others may read is refused, as ssh refuses a
key. A command runs without a shell, for a limited time (for a renewal no longer than that may take), and inherits no secret from our
environment. A token is one line of printable ASCII; anything else is refused before it can get into a header. No repr, message or log holds
a token.
"""

import contextlib
import os
import re
import selectors
import shlex
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from optfs.errors import ConfigError, ServiceUnavailable

COMMAND_TIMEOUT = 30.0  # seconds: a password manager may ask its user something
LOOK_AGAIN = 0.05  # seconds: how soon the end of a command is seen that closed its outputs, or left them to others
LEAVE_AFTER = 0.5  # seconds: what SIGKILL ended is gone sooner
LONGEST = 4096  # bytes; real tokens have fewer than 100
VARIABLES = ("OPTIMIZELY_API_TOKEN", "OPTIMIZELY_PAT")
"""In order of precedence."""

_SECRETS = re.compile(r"OPTIMIZELY_API_TOKEN|OPTIMIZELY_PAT|(AWS|GOOGLE)_.*(KEY|SECRET|TOKEN|CREDENTIAL).*")


class TokenSource(Protocol):
    """Gives the token."""

    def read(self, timeout: float = COMMAND_TIMEOUT) -> str:
        """Return the token as it is now, within `timeout` seconds.

        Raises:
            ConfigError: there is none, or it can't be used.
            ServiceUnavailable: the command that gives it failed this time, or doesn't answer.

        """
        ...


def scrubbed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for children: without the token and without AWS's and Google's secrets."""
    return {name: value for name, value in environment.items() if not _SECRETS.fullmatch(name)}


def checked(token: str, origin: str) -> str:
    """Return a token without surrounding white space.

    Raises:
        ConfigError: it is empty, or holds what no token holds.

    """
    token = token.strip()
    if not token:
        raise ConfigError(f"{origin} is empty; the personal access token is expected there")
    if len(token) > LONGEST or not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{origin} doesn't hold a personal access token: one line without spaces is expected")
    return token


class TokenFile:
    """A file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"

    def read(self, timeout: float = COMMAND_TIMEOUT) -> str:  # noqa: ARG002 - a file makes nobody wait
        """Return the file's token; see `TokenSource`."""
        origin = f"the token file {self._path}"
        try:
            # Non-blocking: a FIFO would hold us until somebody writes into it, before we can see that it is no file.
            with open(self._path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{origin} is no file")
                if status.st_mode & 0o077:
                    mode = stat.S_IMODE(status.st_mode)
                    raise ConfigError(f"{origin} may be read by others (mode {mode:04o}); run: chmod 600 {shlex.quote(str(self._path))}")
                if status.st_uid not in (os.geteuid(), 0):
                    raise ConfigError(f"{origin} belongs to somebody else (uid {status.st_uid}); it must be yours")
                raw = file.read(LONGEST + 3)
        except OSError as error:
            raise ConfigError(f"{origin} can't be read: {error.strerror}") from error
        return checked(raw.decode("latin-1"), origin)


class TokenCommand:
    """A command whose standard output is the token."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None) -> None:
        """Take a command's words, at least one; it is run without a shell, in `folder` (`/` once that is gone), or in the current one."""
        self._arguments = words
        self._environment = scrubbed_environment(environment)
        self._folder = folder

    def _place(self) -> Path | None:
        return Path("/") if self._folder is not None and not self._folder.is_dir() else self._folder

    def __repr__(self) -> str:
        return f"TokenCommand({self._arguments[0]!r} …)"

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            # A session of its own: what the command started ends with it.
            return subprocess.Popen(  # noqa: S603 - the user's own command
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                cwd=self._place(),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"the token command ({self._arguments[0]}) can't be run: {reason}") from None

    def read(self, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run the command and return what it printed; see `TokenSource`."""
        origin = f"the output of the token command ({self._arguments[0]})"
        with contextlib.ExitStack() as stack:
            with _signals_held_back():  # one that raises would leave a command that nobody ends
                process = self._start()
                stack.callback(_end, process)
            printed, complaint = _outputs(process, time.monotonic() + timeout)
        if printed is None:
            raise ServiceUnavailable(f"the token command ({self._arguments[0]}) doesn't answer: it took longer than {timeout:g} s")
        if process.returncode != 0:
            # What it printed isn't shown: it may hold the token.
            raise ServiceUnavailable(
                f"the token command ({self._arguments[0]}) failed with exit code {process.returncode}; run it by hand to see why",
                detail=_one_line(complaint, hidden=printed),
            )
        return checked(printed.decode("latin-1"), origin)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started; what can't be killed (sudo's is another user's) is left behind without its outputs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # subprocess reaps it as it starts the next one
        process.wait(LEAVE_AFTER)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let signals that have handlers wait for the end of the block. Only the main thread's handlers can raise; elsewhere nothing is done.

    Not by a mask: the command would inherit it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: arrived.append(number))
        for number in signal.valid_signals()
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _outputs(process: subprocess.Popen[bytes], end: float) -> tuple[bytes | None, bytes]:
    """Return the start of what a command prints on standard output and standard error until it exits; None for the first: too late.

    Not `communicate`: that keeps all of an endless output, and waits for whoever inherited the pipes after the command has exited.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    taken = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in taken:
            selector.register(stream, selectors.EVENT_READ)
        while True:
            exited = process.poll() is not None  # asked before reading, so that what it printed last is read
            ready = selector.select(0 if exited else LOOK_AGAIN) if selector.get_map() else []
            for key, _ in ready:
                stream = process.stdout if key.fileobj is process.stdout else process.stderr
                piece = os.read(stream.fileno(), LONGEST)
                if not piece:
                    selector.unregister(stream)
                taken[stream] += piece[: LONGEST + 1 - len(taken[stream])]
            if exited and not any(key.fileobj is process.stdout for key, _ in ready):
                return bytes(taken[process.stdout]), bytes(taken[process.stderr])
            if time.monotonic() >= end:
                return None, b""
            if not selector.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_AGAIN)


def _one_line(complaint: bytes, *, hidden: bytes) -> str:
    """Return the last line of a command's complaint, short and printable, without what it printed as its answer."""
    text = complaint.decode("utf-8", "replace").strip()
    secret = hidden.decode("utf-8", "replace").strip()
    if not text or (secret and secret in text):
        return ""
    return "".join(filter(str.isprintable, text.splitlines()[-1]))[:200]


class TokenVariable:
    """A token that was in the environment when the mount started."""

    def __init__(self, name: str, value: str) -> None:
        self._name = name
        self._value = value

    def __repr__(self) -> str:
        return f"TokenVariable({self._name!r})"

    def read(self, timeout: float = COMMAND_TIMEOUT) -> str:  # noqa: ARG002 - a variable makes nobody wait
        """Return the token; see `TokenSource`."""
        return checked(self._value, f"the environment variable {self._name}")


def find_token(
    file: Path | None, command: Sequence[str] | None, environment: Mapping[str, str], *, folder: Path | None = None
) -> TokenSource | None:
    """Return the source that settings and environment name, or None. Of a file and a command the settings have one at most."""
    if file is not None:
        return TokenFile(file)
    if command is not None:
        return TokenCommand(command, environment, folder=folder)
    for name in VARIABLES:
        if environment.get(name, "").strip():
            return TokenVariable(name, environment[name])
    return None
