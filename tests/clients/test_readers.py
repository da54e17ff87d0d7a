"""The programs that users point at a mount: what they read is what was generated, on both services."""

import importlib.util
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.compute
import pyarrow.dataset
import pytest

from optfs.demo.export import Part, Plan, parts
from optfs.demo.services import Services
from tests.support.mounting import Mounted, require

PLAN = Plan(days=4, experiments=5, events=6, rows=40)


@dataclass(frozen=True)
class Export:
    """A mounted export, and what it was made of."""

    mount: Mounted
    parts: list[Part]
    services: Services

    @property
    def account(self) -> Path:
        """The account's folder."""
        return self.mount.account

    def sums(self, kind: str) -> tuple[int, int]:
        """Return rows and revenue (cents) of a type, by the generator's own numbers."""
        chosen = [part for part in self.parts if part.key.startswith(f"type={kind}/")]
        return sum(part.rows for part in chosen), sum(part.revenue for part in chosen)

    def rows_by_date(self, kind: str) -> dict[str, int]:
        """Return rows of each date."""
        found: dict[str, int] = defaultdict(int)
        for part in self.parts:
            if part.key.startswith(f"type={kind}/") and part.rows:
                found[part.key.split("/")[1].removeprefix("date=")] += part.rows
        return dict(found)


@pytest.fixture(scope="module", params=["aws", "gcp"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """A small export, mounted."""
    require("fuse3")
    made = list(parts(PLAN))
    with Services(account=PLAN.account) as services:
        for part in made:
            services.put(part.key, part.data)
        with Mounted(services, tmp_path_factory.mktemp("clients"), request.param, "fuse3") as mount:
            yield Export(mount, made, services)


def test_pandas_reads_a_day_file_by_file(export: Export) -> None:
    """Each file of a type, one after the other, as in a notebook."""
    files = sorted(export.account.glob("type=events/date=*/event=*/*.parquet"))
    frame = pd.concat([pd.read_parquet(file, engine="pyarrow", partitioning=None) for file in files])
    assert (len(frame), int(frame["revenue"].sum())) == export.sums("events")


def test_pandas_reads_a_whole_type_as_one_dataset(export: Export) -> None:
    """The partitions of the path become columns."""
    frame = pd.read_parquet(export.account / "type=decisions", engine="pyarrow")
    assert len(frame) == export.sums("decisions")[0]
    assert frame["date"].astype(str).value_counts().to_dict() == export.rows_by_date("decisions")


def test_pyarrow_finds_hive_partitions(export: Export) -> None:
    """A filter on the date reads that date alone."""
    dataset = pyarrow.dataset.dataset(export.account / "type=events", format="parquet", partitioning="hive", exclude_invalid_files=False)
    date, rows = next(iter(export.rows_by_date("events").items()))
    table = dataset.to_table(columns=["revenue", "date"], filter=pyarrow.compute.field("date") == date)
    assert table.num_rows == rows
    assert dataset.count_rows() == export.sums("events")[0]


def test_duckdb_globs_with_hive_partitioning(export: Export) -> None:
    """A glob over all dates, summed by the engine."""
    query = "select count(*), sum(revenue) from read_parquet(?, hive_partitioning = true)"
    found = duckdb.execute(query, [f"{export.account}/type=events/*/*/*.parquet"]).fetchone()
    assert found is not None
    assert tuple(int(value) for value in found) == export.sums("events")


def test_polars_scans_lazily(export: Export) -> None:
    """A lazy scan pushes the selection down to the files."""
    frame = pl.scan_parquet(f"{export.account}/type=decisions/**/*.parquet", hive_partitioning=True).select("date").collect()
    counts = {str(date): count for date, count in frame["date"].value_counts().iter_rows()}
    assert counts == export.rows_by_date("decisions")


SPARK = """
import sys
from pyspark.sql import SparkSession
session = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1")
           .config("spark.driver.bindAddress", "127.0.0.1").getOrCreate())
frame = session.read.parquet(sys.argv[1])
print("ANSWER", frame.count(), frame.agg({"revenue": "sum"}).collect()[0][0], frame.select("date").distinct().count())
session.stop()
"""


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark (300 MB, and Java) isn't installed")
def test_spark_discovers_partitions(export: Export) -> None:
    """Spark's partition discovery walks the tree and asks for `.crc` files, which cost no request."""
    export.services.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", SPARK, str(export.account / "type=events")], capture_output=True, text=True, check=True, timeout=110
    )
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER")).split()[1:]
    assert (int(answer[0]), int(answer[1])) == export.sums("events")
    assert int(answer[2]) == PLAN.days
    assert export.services.requests.count("other") == 0


def shell(line: str, *arguments: str | Path) -> str:
    """Run a line of shell, which must succeed, and return what it prints."""
    words = ["bash", "-euo", "pipefail", "-c", line, "bash", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, errors="surrogateescape", timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_find_sees_every_file_with_its_size(export: Export) -> None:
    """Names and sizes of the whole tree."""
    found = shell('cd "$1" && find . -type f -printf "%s %P\\0"', export.account)
    assert sorted(found.split("\0")[:-1]) == sorted(f"{len(part.data)} {part.key}" for part in export.parts)


def test_ls_recursively_lists_each_file_once(export: Export) -> None:
    """Short names are in no listing, so nothing is counted twice."""
    assert shell('ls -lR "$1" | grep -c "\\.parquet$"', export.account).strip() == str(sum(1 for part in export.parts if part.rows))


def test_cp_copies_bytes_and_times(export: Export, tmp_path: Path) -> None:
    """A recursive copy equals the export."""
    shell('cp -r --preserve=timestamps "$1" "$2"', export.account, tmp_path / "copy")
    for part in export.parts:
        copied = tmp_path / "copy" / part.key
        assert copied.read_bytes() == part.data
        assert int(copied.stat().st_mtime) == int((export.account / part.key).stat().st_mtime)


def test_tar_packs_the_tree_without_complaint(export: Export) -> None:
    """`tar` warns of files that change under it; nothing does."""
    names = shell('tar cf - -C "$1" . | tar tf - | grep -v "/$" | wc -l', export.account)
    assert int(names) == len(export.parts)


def test_checksums_equal_the_originals(export: Export) -> None:
    """`sha256sum` of every file, in parallel."""
    import hashlib  # noqa: PLC0415 - of this test alone

    lines = shell('cd "$1" && find . -type f -print0 | xargs -0 -P 4 -n 7 sha256sum -z', export.account)
    found = {line.split("  ./", 1)[1]: line.split("  ", 1)[0] for line in lines.split("\0")[:-1]}
    assert found == {part.key: hashlib.sha256(part.data).hexdigest() for part in export.parts}


def test_programs_for_the_export_find_their_folder_by_short_names(export: Export) -> None:
    """`OPTIMIZELY_DATA_DIR=<mount>/<account>`, and the newest complete day."""
    environment = os.environ | {"OPTIMIZELY_DATA_DIR": str(export.account)}
    line = 'ls "$OPTIMIZELY_DATA_DIR"/decisions/latest/ | grep -c experiment='
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == PLAN.experiments
    complete = sorted(part.key.split("/")[1] for part in export.parts if part.key.endswith("_SUCCESS"))
    assert os.readlink(export.account / "decisions/latest") == complete[-1]  # noqa: PTH115 - the text of the link
