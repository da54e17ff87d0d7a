"""Which errno a program sees for an exception, and what is logged of it."""

import errno
import logging

import pytest

from optfs import errors
from optfs.bridge.errnos import ErrorReporter, errno_of

ERRNOS = [
    (errors.NotFound, errno.ENOENT),
    (errors.NameTooLong, errno.ENAMETOOLONG),
    (errors.NotAFolder, errno.ENOTDIR),
    (errors.IsAFolder, errno.EISDIR),
    (errors.NotALink, errno.EINVAL),
    (errors.NoAttribute, errno.ENODATA),
    (errors.NotSupported, errno.ENOTSUP),
    (errors.TokenRefused, errno.EACCES),
    (errors.CredentialRejected, errno.EACCES),
    (errors.AccessDenied, errno.EACCES),
    (errors.ServiceUnavailable, errno.EIO),
    (errors.InvalidResponse, errno.EIO),
    (errors.OutOfMemory, errno.ENOMEM),
    (errors.DeadlineExceeded, errno.ETIMEDOUT),
    (errors.VersionGone, errno.ESTALE),
    (errors.Abandoned, errno.EINTR),
]


@pytest.mark.parametrize(("kind", "number"), ERRNOS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_error_has_its_errno(kind: type[errors.OptfsError], number: int) -> None:
    """The table of `optfs.errors`."""
    assert errno_of(kind("message")) == number


def test_a_failing_service_is_logged_when_it_begins_and_again_after_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Not once a request."""
    moments = iter([0.0, 1.0, 50.0, 100.0, 200.0, 200.0])
    reporter = ErrorReporter(lambda: next(moments))
    with caplog.at_level(logging.WARNING, "optfs"):
        for _ in range(4):
            assert reporter.errno(errors.ServiceUnavailable("down", detail="request 7")) == errno.EIO
        assert [record.getMessage() for record in caplog.records] == ["down [request 7]"]
        reporter.errno(errors.ServiceUnavailable("down"))
        reporter.errno(errors.AccessDenied("no"))
        reporter.errno(errors.NotFound("everyday"))
    assert [record.getMessage() for record in caplog.records][1:] == ["down", "no"]


@pytest.mark.log_errors
@pytest.mark.parametrize("error", [KeyError("defect"), OSError(errno.ENOSPC, "defect")], ids=lambda error: type(error).__name__)
def test_a_defect_is_eio_and_logged_once_with_its_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """However often it happens; whatever number an error of the system has, no program is told."""
    reporter = ErrorReporter(lambda: 0.0)
    for _ in range(3):
        with pytest.raises(type(error)) as defect:
            raise error
        assert reporter.errno(defect.value) == errno.EIO
    assert [bool(record.exc_info) for record in caplog.records if record.levelno == logging.ERROR] == [True]


def test_want_of_memory_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """That would take some."""
    assert ErrorReporter(lambda: 0.0).errno(MemoryError()) == errno.ENOMEM
    assert caplog.records == []
