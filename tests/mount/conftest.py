"""A mount for each provider and binding: one that many tests only look at, and one for each test that disturbs it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optfs.demo.services import Services
from tests.support.mounting import COMBINATIONS, Mounted, require

DAY = "type=decisions/date=2026-11-01/"
CONTENT = bytes(range(256)) * 1000

ODD_EVENTS = ("NULL", "a b", "Main_Nav_javascript%3Avoid(0);", "x%2Fy", "line\nbreak", "caf\u00e9", "cafe\u0301", "bad\udcff\udc80")


def fill(services: Services) -> None:
    """Put what the tests look at."""
    services.put(DAY + "experiment=42/part-0.parquet", CONTENT, mtime=1_700_000_000.5)
    services.put(DAY + "experiment=43/part-0.parquet", CONTENT[:1000])
    services.put(DAY + "_SUCCESS", b"")
    services.put("type=decisions/date=2026-11-02/experiment=42/part-0.parquet", b"newer")
    for name in ODD_EVENTS:
        services.put(f"type=events/date=2026-11-01/event={name}/part-0.parquet", name.encode("utf-8", "surrogateescape"))
    services.put("type=events/date=2026-11-01/event=" + "n" * 300 + "/part-0.parquet", b"left out")
    services.put("type=events/date=2026-11-01/empty/", b"")
    services.put("type=events/date=2026-11-01/both", b"a file below a folder")
    services.put("type=events/date=2026-11-01/both/inner", b"inner")


@pytest.fixture(scope="session", params=COMBINATIONS, ids="-".join)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount that tests only look at."""
    provider, binding = request.param
    require(binding)
    with Services(page_size=7) as services:
        fill(services)
        with Mounted(services, tmp_path_factory.mktemp("mount"), provider, binding) as mount:
            yield mount


Mounting = Callable[..., Mounted]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def mounting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounting]:
    """Return a function that mounts `services` with options; the test may disturb what it gets."""
    provider, binding = request.param
    require(binding)
    with ExitStack() as stack:

        def mount(services: Services, *options: str) -> Mounted:
            return stack.enter_context(Mounted(services, tmp_path, provider, binding, *options))

        yield mount


@pytest.fixture
def services() -> Iterator[Services]:
    """Services with an empty account; a test fills them."""
    with Services() as services:
        yield services
