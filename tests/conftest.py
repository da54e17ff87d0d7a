"""What every test gets: no leftovers of the caller's environment, and failure on a log error that nobody expected."""

import logging
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# The same examples each time, so that a failure is about the change at hand; no time limit an example, since machines are loaded; and no
# database, since a checkout may be read-only.
hypothesis.settings.register_profile("optfs", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("optfs")


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def no_log_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test during which optfs logged an error, unless it is marked `log_errors`."""
    handler = _Errors()
    logger = logging.getLogger("optfs")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.records and request.node.get_closest_marker("log_errors") is None:
        pytest.fail("logged unexpectedly: " + "; ".join(record.getMessage() for record in handler.records))


@pytest.fixture(autouse=True, scope="session")
def clean_environment() -> None:
    r"""Take the caller's own credentials and settings out of the way.

    Shells start background jobs with ctrl-C and ctrl-\\ ignored, and children inherit it: tests that press them need the defaults.
    """
    for name in list(os.environ):
        if name.startswith(("OPTFS_", "OPTIMIZELY_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR")):
            del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
