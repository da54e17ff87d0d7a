"""Logging of a mount: where it goes, how a line looks, and that no secret is in it.

Destination: `--log-file`; else stderr in the foreground; else syslog where there is one; else a file in the user's log folder.
At level debug the libraries' own loggers (urllib3, botocore, google) are heard too; otherwise their warnings, or errors, only.

Redaction works on the finished line, tracebacks and libraries' messages included: first the literal secrets that were registered
(`remember_secret`), then what has the shape of one: headers, signatures, fields of JSON answers.

Locks: `_lock` guards the set of literals; it is a leaf.
"""

import contextlib
import json
import logging
import logging.handlers
import os
import re
import stat
import sys
import threading
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from optfs.config import LogFormat, LogLevel
from optfs.errors import ConfigError
from optfs.values import MiB

SYSLOG = Path("/dev/log")
HIDDEN = "[hidden]"
SHORTEST_SECRET = 8  # characters; hiding shorter words would tear holes into ordinary text

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\b(bearer|basic)\s+[^\s'\",;]+", rf"\1 {HIDDEN}"),
        (r"AWS4-HMAC-SHA256 Credential=.*?Signature=[0-9a-f]+", f"AWS4-HMAC-SHA256 {HIDDEN}"),
        (
            r"\b(x-amz-security-token|x-amz-signature|x-amz-credential|x-goog-signature|x-goog-credential)(['\"]?\s*[:=]\s*b?['\"]?)[^\s'\"&,]+",
            rf"\1\2{HIDDEN}",
        ),
        (r"\b(signature)=[0-9a-z%+/_-]{16,}=*", rf"\1={HIDDEN}"),
        (
            (
                r"\b(token|access_?token|refresh_?token|session_?token|secret_?access_?key|secret_?key|private_?key|password)"
                r"(['\"]?\s*[:=]\s*b?['\"])[^'\"]*"
            ),
            rf"\1\2{HIDDEN}",
        ),
        (r"\b((?:access_|refresh_|session_|id_)?token)=[^\s&'\"]+", rf"\1={HIDDEN}"),
        (r"\bya29\.[0-9a-z._-]+", HIDDEN),
    )
)

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_lock = threading.Lock()
_literals: set[str] = set()
_destination = "stderr"  # set by `configure`, in the main thread before others start


def remember_secret(secret: str) -> None:
    """Hide this text wherever it comes up in a log line."""
    if len(secret) >= SHORTEST_SECRET:
        with _lock:
            _literals.add(secret)


def redact(text: str) -> str:
    """Return the text without secrets."""
    with _lock:
        literals = tuple(_literals)
    for literal in literals:
        text = text.replace(literal, HIDDEN)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """One line a record (and what follows of a traceback), redacted. What would break the line, or can't be written, is escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        """Return the line without what follows."""
        record.message = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a record, redacted."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=True)


def _open_private(path: str) -> TextIOWrapper:
    """Open a file to append to, and take it from all but its owner; special files (`/dev/stderr`, FIFOs) and other users' stay as they are."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without modes
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """A file that only its owner reads; one that was moved away (logrotate) is made anew. Lines are lost while it can't be."""

    def _open(self) -> TextIOWrapper:
        return _open_private(self.baseFilename)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Where the file can't be made anew, the standard library would raise in whoever logs."""
        try:
            super().emit(record)
        except (OSError, ValueError):  # the latter: a former stream that couldn't be closed
            with contextlib.suppress(OSError, ValueError):
                self.close()  # the next record opens it
            self.handleError(record)


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    """A file that only its owner reads, and a former one, when it has grown."""

    def _open(self) -> TextIOWrapper:
        return _open_private(self.baseFilename)


def configure(level: LogLevel, file: Path | None, log_format: LogFormat, *, foreground: bool) -> None:
    """Send all logs of this process to their destination. May be called again; the former destination is closed.

    Raises:
        ConfigError: the file can't be written.

    """
    global _destination  # noqa: PLW0603 - a process has one log
    handler = _handler(file, foreground=foreground)
    _destination = getattr(handler, "baseFilename", "syslog" if isinstance(handler, logging.handlers.SysLogHandler) else "stderr")
    prefix = "optfs[%(process)d]: " if isinstance(handler, logging.handlers.SysLogHandler) else "%(asctime)s "
    text = TextFormatter(prefix + "%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    root = logging.getLogger()
    for former in [present for present in root.handlers if getattr(present, "_optfs", False)]:
        root.removeHandler(former)
        former.close()
    handler._optfs = True  # type: ignore[attr-defined]  # a mark of ours on the library's object
    root.addHandler(handler)
    own = getattr(logging, level.upper())
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("optfs").setLevel(own)
    # They warn of what is no failure: a connection more than are kept, a place without a credential. What fails is logged by optfs itself.
    for name in ("urllib3.connectionpool", "google"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.ERROR)
    logging.raiseExceptions = False  # a full disk must not print tracebacks into a program's terminal


def destination() -> str:
    """Return where the log is: a file's path, `syslog` or `stderr`."""
    return _destination


def _handler(file: Path | None, *, foreground: bool) -> logging.Handler:
    if file is not None:
        try:
            return _PrivateFile(file)
        except OSError as error:
            raise ConfigError(f"--log-file: {file} can't be written: {error.strerror}") from None
    if foreground:
        return logging.StreamHandler(sys.stderr)
    if SYSLOG.exists():
        try:
            return logging.handlers.SysLogHandler(str(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            pass  # nobody listens: as without syslog
    return _fallback()


def _fallback() -> logging.Handler:
    import platformdirs  # noqa: PLC0415 - only where there is no syslog

    folder = Path(platformdirs.user_log_dir("optfs"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _PrivateRotatingFile(folder / "optfs.log", maxBytes=4 * MiB, backupCount=1)
    except OSError:
        return logging.NullHandler()
