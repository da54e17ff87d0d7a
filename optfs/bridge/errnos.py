"""Which errno a program sees for an exception, and what is logged of it.

Rules: this is the only place that turns an exception into an errno (the table is in `optfs.errors`). Names that don't exist and the like
are everyday answers and aren't logged, nor are programs that are killed as they wait. A failing service is logged when that state begins,
and again after `QUIET` seconds without such a failure: a program that reads on asks thousands of times. An exception outside the tree is a
defect: EIO, and its traceback is logged once; so is an OSError, whose number tells of something else than the operation. Want of memory is
ENOMEM.

Lock order: `_lock` is a leaf; nothing is logged under it.
"""

import errno
import logging
import threading
import time

from optfs.errors import (
    Abandoned,
    AccessError,
    DeadlineExceeded,
    IsAFolder,
    NameTooLong,
    NoAttribute,
    NotAFolder,
    NotALink,
    NotFound,
    NotSupported,
    OptfsError,
    OutOfMemory,
    PathError,
    ServiceError,
    VersionGone,
)
from optfs.values import Clock

logger = logging.getLogger(__name__)

QUIET = 60.0
"""Seconds without a failure of a kind after which the next one is news."""

_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, errno.ENOENT),
    (NameTooLong, errno.ENAMETOOLONG),
    (NotAFolder, errno.ENOTDIR),
    (IsAFolder, errno.EISDIR),
    (NotALink, errno.EINVAL),
    (NoAttribute, errno.ENODATA),
    (NotSupported, errno.ENOTSUP),
    (PathError, errno.EINVAL),
    (AccessError, errno.EACCES),
    (Abandoned, errno.EINTR),
    (VersionGone, errno.ESTALE),
    (DeadlineExceeded, errno.ETIMEDOUT),
    (ServiceError, errno.EIO),
    (OutOfMemory, errno.ENOMEM),
    (MemoryError, errno.ENOMEM),
)


_UNREPORTED = (PathError, Abandoned, MemoryError)  # a report would take memory


def errno_of(error: BaseException) -> int:
    """Return the errno for an exception; EIO for one that nobody expected."""
    for kind, number in _ERRNOS:
        if isinstance(error, kind):
            return number
    return errno.EIO


class ErrorReporter:
    """Turns exceptions of handlers into errnos and logs what is news. Any thread may call it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock: when each kind last happened, by `clock`. Bounded by the number of exception classes and of defects' places.
        self._last: dict[object, float] = {}

    def errno(self, error: BaseException) -> int:
        """Return the errno, and log the cause where it is news."""
        if not isinstance(error, _UNREPORTED):
            self._report(error)
        return errno_of(error)

    def _report(self, error: BaseException) -> None:
        expected = isinstance(error, OptfsError)
        kind: object = type(error) if expected else (type(error), _place(error))
        now = self._clock()
        with self._lock:
            last = self._last.get(kind)
            self._last[kind] = now
        if expected:
            if last is None or now - last > QUIET:
                assert isinstance(error, OptfsError)
                logger.warning("%s%s", error.message, f" [{error.detail}]" if error.detail else "")
        elif last is None:
            logger.error("a file operation failed by a defect", exc_info=error)


def _place(error: BaseException) -> object:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace is not None else None
