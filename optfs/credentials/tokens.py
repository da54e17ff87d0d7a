"""Where the personal access token comes from: a file, a command, or the environment.

Rules: the token is read anew for each renewal, so that a rotated one is seen. A file that others may read is refused, as ssh refuses a
key. A command runs without a shell, for a limited time, and inherits no secret from our environment. A token is one line of printable
ASCII; anything else is refused before it can get into a header. No repr, message or log holds a token.
"""

import logging
import os
import shlex
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from optfs.errors import ConfigError, ServiceUnavailable

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT = 30.0  # seconds: a password manager may ask its user something
LONGEST = 4096  # bytes; real tokens have fewer than 100
VARIABLES = ("OPTIMIZELY_API_TOKEN", "OPTIMIZELY_PAT")
"""In order of precedence."""

_SECRET_PREFIXES = ("OPTIMIZELY_API_TOKEN", "OPTIMIZELY_PAT", "AWS_SECRET", "AWS_SESSION", "AWS_SECURITY")


class TokenSource(Protocol):
    """Gives the token."""

    def read(self) -> str:
        """Return the token as it is now.

        Raises:
            ConfigError: there is none, or it can't be used.
            ServiceUnavailable: the command that gives it failed this time.

        """
        ...


def scrubbed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for children: without the token and without AWS's secrets."""
    return {name: value for name, value in environment.items() if not name.startswith(_SECRET_PREFIXES)}


def checked(token: str, origin: str) -> str:
    """Return a token without surrounding white space.

    Raises:
        ConfigError: it is empty, or holds what no token holds.

    """
    token = token.strip()
    if not token:
        raise ConfigError(f"{origin} is empty; put the personal access token there")
    if len(token) > LONGEST or not all("!" <= character <= "~" for character in token):
        raise ConfigError(f"{origin} doesn't hold a personal access token: one line without spaces is expected")
    return token


class TokenFile:
    """A file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"

    def read(self) -> str:
        """Return the file's token; see `TokenSource`."""
        origin = f"the token file {self._path}"
        try:
            with open(self._path, "rb") as file:
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

    def __init__(self, command: str, environment: Mapping[str, str], timeout: float = COMMAND_TIMEOUT) -> None:
        """Take a command line, split as a shell would but run without one.

        Raises:
            ConfigError: it can't be split.

        """
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"--token-command can't be understood: {error}") from None
        if not self._arguments:
            raise ConfigError("--token-command is empty")
        self._environment = scrubbed_environment(environment)
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"TokenCommand({self._arguments[0]!r} …)"

    def read(self) -> str:
        """Run the command and return what it printed; see `TokenSource`."""
        origin = f"the output of the token command ({self._arguments[0]})"
        try:
            done = subprocess.run(  # noqa: S603 - the user's own command
                self._arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                env=self._environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceUnavailable(f"the token command ({self._arguments[0]}) took longer than {self._timeout:g} s") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"the token command ({self._arguments[0]}) can't be run: {error}") from None
        if done.returncode != 0:
            # What it printed isn't logged: it may hold the token.
            raise ServiceUnavailable(f"the token command ({self._arguments[0]}) failed with exit code {done.returncode}")
        return checked(done.stdout.decode("latin-1"), origin)


class TokenVariable:
    """A token that was in the environment when the mount started."""

    def __init__(self, name: str, value: str) -> None:
        self._name = name
        self._value = value

    def __repr__(self) -> str:
        return f"TokenVariable({self._name!r})"

    def read(self) -> str:
        """Return the token; see `TokenSource`."""
        return checked(self._value, f"the environment variable {self._name}")


def find_token(file: Path | None, command: str | None, environment: Mapping[str, str]) -> TokenSource | None:
    """Return the source that settings and environment name, or None.

    Raises:
        ConfigError: both a file and a command are given, or the command can't be understood.

    """
    if file is not None and command is not None:
        raise ConfigError("--token-file and --token-command exclude one another")
    if file is not None:
        return TokenFile(file)
    if command is not None:
        return TokenCommand(command, environment)
    for name in VARIABLES:
        if environment.get(name, "").strip():
            return TokenVariable(name, environment[name])
    return None
