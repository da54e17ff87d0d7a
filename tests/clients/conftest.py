"""A generated export, mounted from each provider, for programs that know nothing of optfs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from optfs.demo.export import Part, Plan, parts
from optfs.demo.services import Services
from tests.support.mounting import Mounted, require

PLAN = Plan(days=3, experiments=3, events=7, rows=40)  # all irregular names of events, a day with two parts, an incomplete day


@dataclass(frozen=True)
class Export:
    """What was generated, and where it is mounted.

    Attributes:
        folder: the account's folder of the mount.
        files: content by key below it.

    """

    services: Services
    folder: Path
    parts: list[Part]

    @property
    def files(self) -> dict[str, bytes]:
        """Content of each object, by its key below the account's prefix."""
        return {part.key: part.data for part in self.parts}

    def data(self, kind: str) -> list[Part]:
        """Return the Parquet files of a type."""
        return [part for part in self.parts if part.rows and part.key.startswith(f"type={kind}/")]


@pytest.fixture(scope="session")
def generated() -> list[Part]:
    """The export's objects."""
    return list(parts(PLAN))


@pytest.fixture(scope="session", params=["aws", "gcp"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, generated: list[Part]) -> Iterator[Export]:
    """The export, mounted."""
    require("auto")
    with Services(page_size=20) as services:
        for part in generated:
            services.put(part.key, part.data, mtime=1_780_000_000)
        with Mounted(services, tmp_path_factory.mktemp("clients"), request.param, "auto") as mount:
            yield Export(services, mount.account, generated)
