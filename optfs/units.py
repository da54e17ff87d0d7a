"""Text that users write, as values: sizes, durations, paths, URLs and the like.

Every parser takes text and returns the value, or raises ValueError with the rest of a sentence that begins with the text ("is no size; …").
No parser reads a file or asks the network.
"""

import contextlib
import ipaddress
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optfs.values import MiB

MINIMAL_MEMORY = (
    8 * MiB
)  # less the shares of the cache and of malloc, that is 16 blocks of 256 KiB: with less, readers wait for one another

Parser = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class FreeFloor:
    """How much of a file system stays free: the larger of `size` bytes and `fraction` (0 … 1) of the whole."""

    size: int = 0
    fraction: float = 0.0

    def of(self, total: int) -> int:
        """Return the floor, bytes, on a file system of `total` bytes."""
        return max(self.size, int(self.fraction * total))


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?b)?|b)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def parse_size(text: str) -> int:
    """Return bytes: `10GiB`, `10G` (the same), `500MB` (powers of ten), `0`.

    Raises:
        ValueError: it is no size.

    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("is no size; write 256MiB, 10GiB, 500MB or 0")
    number, letter, ending = match.groups()
    base = 1000 if (ending or "").lower() == "b" else 1024
    size = float(number) * base ** (1 + "kmgt".index(letter.lower()) if letter else 0)
    if size >= 1 << 63:
        raise ValueError("is more than there can be")
    return int(size)


def parse_duration(text: str) -> float:
    """Return seconds: `500ms`, `60s`, `60` (the same), `15m`, `1h`, `1d`.

    Raises:
        ValueError: it is no duration.

    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("is no duration; write 500ms, 60s, 15m or 1h")
    return float(match.group(1)) * _SECONDS[(match.group(2) or "s").lower()]


def parse_flag(text: str) -> bool:
    """Return the truth that a word tells.

    Raises:
        ValueError: it is neither yes nor no.

    """
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is neither yes nor no; write true or false")
    return word in _TRUE


def parse_duration_within(low: float, high: float, names: str) -> Parser:
    """Return a parser of durations of `low` to `high` seconds; `names` says these bounds to a user."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not low <= seconds <= high:
            raise ValueError(f"is out of range; it must be {names}")
        return seconds

    return parse


def parse_memory(text: str) -> int:
    """Return bytes, not fewer than `MINIMAL_MEMORY`."""
    size = parse_size(text)
    if size < MINIMAL_MEMORY:
        raise ValueError("is too little; at least 8MiB are needed")
    return size


def parse_floor(text: str) -> FreeFloor:
    """Return a floor of free space: `5%`, `2GiB`."""
    if not text.strip().endswith("%"):
        return FreeFloor(size=parse_size(text))
    try:
        percent = float(text.strip()[:-1])
    except ValueError:
        raise ValueError("is no part of the disk; write 5% or 2GiB") from None
    if not 0 <= percent <= 100:
        raise ValueError("is out of range; it must be 0% to 100%")
    return FreeFloor(fraction=percent / 100)


def parse_choice(*choices: str) -> Parser:
    """Return a parser of one of these words, in any case."""

    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return text.strip().lower()

    return parse


def parse_path(text: str) -> Path:
    """Return an absolute path; `~` is the user's home.

    Raises:
        ValueError: it is none, or begins where there is nothing.

    """
    if not text or "\0" in text:
        raise ValueError("is no path")
    try:
        return absolute(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("begins with the home of a user who isn't known here") from None


def absolute(path: Path) -> Path:
    """Return an absolute path: the background process works in /.

    Raises:
        ValueError: it begins in the current folder, which was removed.

    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise ValueError("begins in the current folder, which was removed; go to another, or write the whole path") from None


def parse_command(text: str) -> tuple[str, ...]:
    """Return a command's words, split as a shell would; its program is made absolute where it is a path."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"can't be split into words: {error}") from None
    if not words:
        raise ValueError("is empty")
    if "/" in words[0]:
        words[0] = str(parse_path(words[0]))
    return tuple(words)


def is_account(text: str) -> bool:
    """Return whether a text may be an account id."""
    return _ACCOUNT.fullmatch(text) is not None


def parse_account(text: str) -> str:
    """Return an account id."""
    if not is_account(text.strip()):
        raise ValueError("is no account id, such as 123456789")
    return text.strip()


def parse_id(text: str) -> int:
    """Return a numeric user or group id."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32 - 1:  # 2^32 - 1 means "no change" to the kernel
        raise ValueError("is no numeric id")
    return int(text)


def parse_umask(text: str) -> int:
    """Return permission bits from octal digits."""
    if re.fullmatch(r"(0o)?[0-7]{1,4}", text.strip()) is None or int(text, 8) > 0o777:
        raise ValueError("is no umask; write octal digits, such as 0222")
    return int(text, 8)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only be this machine."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def parse_url(text: str) -> str:
    """Return a URL without a trailing slash: https, or http on loopback."""
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in {"http", "https"} or not host or port == 0 or not text.strip().isprintable() or " " in text.strip():
        raise ValueError("is no URL; it must be https://host[:port][/path]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password")
    if "?" in text or "#" in text:
        raise ValueError("must hold no query or fragment")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("must be https: http is for loopback only, because secrets go there")
    return text.strip().rstrip("/")


def parse_endpoint(text: str) -> str:
    """Return a URL as `parse_url` does, of a server alone: a store adds the whole path."""
    url = parse_url(text)
    if urlsplit(url).path:
        raise ValueError("must hold no path; write https://host[:port]")
    return url


def parse_address(text: str) -> Address:
    """Return where to listen, from `HOST:PORT`."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not port.isdigit() or not port.isascii() or int(port) > 65535:
        raise ValueError("is no address; write HOST:PORT, such as 127.0.0.1:9100")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def parse_word(text: str) -> str:
    """Return text of visible ASCII without spaces."""
    if re.fullmatch(r"[\x21-\x7e]{1,200}", text.strip()) is None:
        raise ValueError("holds characters that can't be")
    return text.strip()
