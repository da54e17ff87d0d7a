"""The generated export has the layout and the columns of real ones, and is the same each time."""

import builtins
import dataclasses
import datetime
import io
from typing import Any

import pyarrow.parquet
import pytest

from optfs.demo.export import Plan, parts
from optfs.errors import ConfigError

SMALL = Plan(days=3, experiments=2, events=4, rows=10, end_date=datetime.date(2026, 3, 6))


def test_keys_follow_the_layout() -> None:
    """Types, dates and partitions as documented; complete days end with `_SUCCESS`, the last has none."""
    keys = [part.key for part in parts(SMALL)]
    assert sum(key.startswith("type=decisions/date=2026-03-04/experiment=") for key in keys) == 2
    success = [key for key in keys if key.endswith("_SUCCESS")]
    assert success == [f"type={kind}/date=2026-03-0{day}/_SUCCESS" for day in (4, 5) for kind in ("decisions", "events")]
    names = {key.split("/")[2].removeprefix("event=") for key in keys if key.startswith("type=events/") and key not in success}
    assert names == {"purchase", "NULL", "Main_Nav_javascript%3Avoid(0);", "Add to cart"}
    assert sum("date=2026-03-05/event=purchase/part-" in key for key in keys) == 2, "some partitions have two parts"
    assert all(key.endswith(".c000.snappy.parquet") for key in keys if key not in success)
    assert len(set(keys)) == len(keys)


def test_files_have_the_columns_of_real_ones() -> None:
    """Nested columns, milliseconds in UTC, Snappy, one row group; the generator's own numbers are right."""
    seen: dict[str, Any] = {}
    for part in parts(SMALL):
        if part.data:
            file = pyarrow.parquet.ParquetFile(io.BytesIO(part.data))
            table = file.read()
            assert (file.num_row_groups, table.num_rows) == (1, part.rows)
            assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
            if "revenue" in table.column_names:
                assert sum(cents or 0 for cents in table["revenue"].to_pylist()) == part.revenue
            seen[part.key.split("/")[0]] = table
    assert str(seen["type=decisions"].schema.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert seen["type=decisions"].column_names[-4:] == ["is_holdback", "revision", "client_engine", "client_version"]
    attributes = "list<element: struct<id: string, name: string, type: string, value: string>>"
    assert str(seen["type=events"].schema.field("attributes").type) == attributes
    assert str(seen["type=events"].schema.field("tags").type).startswith("map<string, string")
    assert "event" not in seen["type=events"].column_names


def test_times_lie_within_the_day_of_the_path() -> None:
    """`date` is the day of `process_timestamp` in UTC."""
    for part in parts(SMALL):
        if part.data:
            moments = pyarrow.parquet.read_table(io.BytesIO(part.data))["process_timestamp"].to_pylist()
            assert {f"date={moment.date()}" for moment in moments} == {part.key.split("/")[1]}


def test_the_same_seed_gives_the_same_bytes() -> None:
    """And another seed gives others."""
    plan = Plan(days=2, experiments=1, events=1, rows=5)
    assert list(parts(plan)) == list(parts(plan))
    assert list(parts(plan)) != list(parts(dataclasses.replace(plan, seed=2)))


def test_without_pyarrow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's packages are optional."""
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"optfs\[demo\]"):
        next(parts(SMALL))
