"""pandas, pyarrow, DuckDB, polars and Spark on a mount give what was generated.

Each program runs in a process of its own, as a user's does: some hold the interpreter's lock while they read, and the embedded services need it.
"""

import importlib.util
import io
import json
import subprocess
import sys
from typing import Any

import pyarrow.parquet
import pytest

from optfs.demo.export import Part
from tests.clients.conftest import Export

Answer = dict[str, list[Any]]
"""For each group its rows, its revenue in cents, its smallest and its greatest `uuid`."""


def run(program: str, export: Export) -> Any:
    """Run a program with the account's folder as argument, and return the JSON document that it prints last."""
    done = subprocess.run([sys.executable, "-c", program, str(export.folder)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def table(part: Part) -> Any:
    """Return what a generated file holds, from memory."""
    return pyarrow.parquet.read_table(io.BytesIO(part.data))


def expected(parts: list[Part], level: str) -> Answer:
    """Return the answer by the value of a level of the path: `date`, `experiment` or `event`, as it stands in the key."""
    uuids: dict[str, list[str]] = {}
    revenue: dict[str, int] = {}
    for part in parts:
        (group,) = [name.partition("=")[2] for name in part.key.split("/") if name.startswith(f"{level}=")]
        uuids.setdefault(group, []).extend(table(part).column("uuid").to_pylist())
        revenue[group] = revenue.get(group, 0) + part.revenue
    return {group: [len(found), revenue[group], min(found), max(found)] for group, found in uuids.items()}


def test_pandas_reads_a_file_a_day_and_all_columns_of_both(export: Export) -> None:
    day = "type=events/date=2026-06-30"
    chosen = next(part for part in export.data("events") if part.key.startswith(day + "/event=purchase/"))
    answer = run(
        "import json, sys, pandas\n"
        f"file = pandas.read_parquet(sys.argv[1] + '/' + {chosen.key!r})\n"
        f"day = pandas.read_parquet(sys.argv[1] + {'/' + day!r})\n"
        "print(json.dumps([file.uuid.tolist(), file.columns.tolist(), int(file.revenue.sum()), len(day), int(day.revenue.sum()),\n"
        "    sorted(day.uuid)[:5]]))",
        export,
    )
    found = table(chosen)
    of_day = [part for part in export.data("events") if part.key.startswith(day + "/")]
    assert answer[:3] == [found.column("uuid").to_pylist(), found.column_names, chosen.revenue]
    uuids = sorted(uuid for part in of_day for uuid in table(part).column("uuid").to_pylist())
    assert answer[3:] == [sum(part.rows for part in of_day), sum(part.revenue for part in of_day), uuids[:5]]
    assert chosen.revenue > 0


ARROW = """
import json, sys
import pyarrow.compute
import pyarrow.dataset
kind, level = {kind!r}, {level!r}
partitioning = pyarrow.dataset.HivePartitioning.discover(segment_encoding="none")
found = pyarrow.dataset.dataset(sys.argv[1] + "/type=" + kind, format="parquet", partitioning=partitioning)
rows = found.to_table(columns=["uuid", level] + (["revenue"] if kind == "events" else []))
rows = rows.set_column(1, level, rows.column(level).cast("string"))
revenue = rows.column("revenue") if kind == "events" else pyarrow.array([0] * len(rows))
rows = pyarrow.table({{"group": rows.column(level), "uuid": rows.column("uuid"), "revenue": revenue}})
answer = rows.group_by("group").aggregate([("uuid", "count"), ("revenue", "sum"), ("uuid", "min"), ("uuid", "max")])
names = ["group", "uuid_count", "revenue_sum", "uuid_min", "uuid_max"]
print(json.dumps({{row["group"]: [row[names[1]], row[names[2]] or 0, row[names[3]], row[names[4]]] for row in answer.to_pylist()}}))
"""


@pytest.mark.parametrize(("kind", "level"), [("decisions", "experiment"), ("decisions", "date"), ("events", "event"), ("events", "date")])
def test_pyarrow_finds_the_partitions_of_a_dataset(export: Export, kind: str, level: str) -> None:
    assert run(ARROW.format(kind=kind, level=level), export) == expected(export.data(kind), level)


def test_duckdb_reads_a_glob_with_hive_partitions(export: Export) -> None:
    answer = run(
        "import duckdb, json, sys\n"
        "answers = []\n"
        "with duckdb.connect() as connection:\n"
        "    for kind, group, revenue in (('decisions', 'experiment', '0'), ('decisions', 'date', '0'), ('events', 'date', 'sum(revenue)')):\n"
        "        files = sys.argv[1] + '/type=' + kind + '/*/*/*.parquet'\n"
        "        query = f'select {group}::varchar, count(*), {revenue}, min(uuid), max(uuid)'\n"
        "        query += ' from read_parquet(?, hive_partitioning = true) group by 1'\n"
        "        rows = connection.execute(query, [files]).fetchall()\n"
        "        answers.append({row[0]: [row[1], int(row[2]), row[3], row[4]] for row in rows})\n"
        "    query = 'select count(*) from read_parquet(?, hive_partitioning = true) where date = ?'\n"
        "    answers.append(connection.execute(query, [sys.argv[1] + '/type=events/*/*/*.parquet', '2026-06-29']).fetchone()[0])\n"
        "    query = 'select filename, count(*) from read_parquet(?, filename = true) group by 1'\n"
        "    rows = connection.execute(query, [sys.argv[1] + '/type=events/**/*.parquet']).fetchall()\n"
        "    answers.append({name[len(sys.argv[1]) + 1:]: count for name, count in rows})\n"
        "print(json.dumps(answers))",
        export,
    )
    events = export.data("events")
    assert answer[0] == expected(export.data("decisions"), "experiment")
    assert answer[1] == expected(export.data("decisions"), "date")
    assert answer[2] == expected(events, "date")
    assert answer[3] == sum(part.rows for part in events if "/date=2026-06-29/" in part.key)
    assert answer[4] == {part.key: part.rows for part in events}


def test_polars_scans_with_hive_partitions(export: Export) -> None:
    answer = run(
        "import json, sys, polars\n"
        "answers = []\n"
        "for kind, level in (('decisions', 'experiment'), ('decisions', 'date'), ('events', 'date')):\n"
        "    found = polars.scan_parquet(sys.argv[1] + '/type=' + kind + '/**/*.parquet', hive_partitioning=True)\n"
        "    revenue = polars.col('revenue').sum() if kind == 'events' else polars.lit(0)\n"
        "    columns = [polars.len(), revenue.alias('cents'), polars.col('uuid').min().alias('a'), polars.col('uuid').max().alias('b')]\n"
        "    rows = found.group_by(polars.col(level).cast(polars.String)).agg(*columns).collect().rows()\n"
        "    answers.append({row[0]: list(row[1:]) for row in rows})\n"
        "print(json.dumps(answers))",
        export,
    )
    decisions, events = export.data("decisions"), export.data("events")
    assert answer == [expected(decisions, "experiment"), expected(decisions, "date"), expected(events, "date")]


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed; it needs Java, too")
def test_spark_discovers_the_partitions(export: Export) -> None:
    answer = run(
        "import json, sys\n"
        "from pyspark.sql import SparkSession, functions\n"
        "spark = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false').getOrCreate()\n"
        "rows = spark.read.parquet(sys.argv[1] + '/type=decisions').groupBy('experiment')\n"
        "rows = rows.agg(functions.count('*'), functions.min('uuid'), functions.max('uuid')).collect()\n"
        "print(json.dumps({str(row[0]): [row[1], 0, row[2], row[3]] for row in rows}))",
        export,
    )
    assert answer == expected(export.data("decisions"), "experiment")
