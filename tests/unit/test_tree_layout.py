"""Paths, names, units and short names."""

import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optfs.errors import NotFound
from optfs.tree import layout
from optfs.values import decode_name, encode_name


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "event=NULL",
        "Main_Nav_javascript%3Avoid(0);",
        "a\nb",
        "...",
        "..a",
        " ",
        "é",
        "e\u0301",
        "x" * 255,
        "é" * 127 + "x",
        "\udcff",
        "a\\b",
    ],
)
def test_a_name_that_a_file_system_holds_is_valid(name: str) -> None:
    """Anything up to 255 bytes but a slash and a NUL."""
    assert layout.valid_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0", "a/b", "x" * 256, "é" * 128, "\ud800", "\udcc3\udca9"])
def test_a_name_that_a_file_system_cannot_give_back_is_not_valid(name: str) -> None:
    """Too long in bytes, reserved, or a string that no bytes decode to."""
    assert not layout.valid_name(name)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_without_slash_and_nul_are_a_valid_name_up_to_their_limit(raw: bytes) -> None:
    """Validity depends on bytes, and a valid name comes back as those bytes."""
    name = decode_name(raw)
    expected = len(raw) <= 255 and not set(raw) & {0, ord("/")} and raw not in {b".", b".."}
    assert layout.valid_name(name) == expected
    assert encode_name(name) == raw


@pytest.mark.parametrize(("path", "parts"), [("/", []), ("/a", ["a"]), ("/a/", ["a"]), ("/a/b c/d", ["a", "b c", "d"])])
def test_a_path_is_split_at_slashes(path: str, parts: list[str]) -> None:
    """One at the end doesn't count."""
    assert layout.split_path(path) == parts


@pytest.mark.parametrize("path", ["", "a", "a/b", "//", "/a//b", "//a"])
def test_a_path_that_no_key_has_is_not_found(path: str) -> None:
    """Relative paths and empty components."""
    with pytest.raises(NotFound):
        layout.split_path(path)


@pytest.mark.parametrize(
    ("unit", "is_type", "is_flat"),
    [
        ("", False, False),
        ("type=a/", True, False),
        ("other/", False, False),
        ("type=a/date=2026-11-01/", False, True),
        ("type=a/date=x/", False, True),
        ("type=a/other/", False, False),
        ("other/date=2026-11-01/", False, False),
        ("type=a/date=x/b/", False, False),
    ],
)
def test_only_a_date_of_a_type_is_listed_flat(unit: str, is_type: bool, is_flat: bool) -> None:
    """Everything else is listed level by level."""
    assert (layout.is_type(unit), layout.is_flat(unit)) == (is_type, is_flat)


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("date=2026-11-01", datetime.date(2026, 11, 1)),
        ("date=2026-02-30", None),
        ("date=20261101", None),
        ("2026-11-01", None),
        ("date=", None),
        ("date=2026-W44-7", None),
    ],
)
def test_a_date_folder_names_a_day(name: str, day: datetime.date | None) -> None:
    """In the one form that the export has."""
    assert layout.date_of(name) == day


def test_a_day_settles_two_days_after_it_has_ended_if_it_is_complete() -> None:
    """2026-11-01 ends at midnight UTC of the 2nd, and settles at that of the 4th."""
    day = datetime.date(2026, 11, 1)
    settles = datetime.datetime(2026, 11, 4, tzinfo=datetime.UTC).timestamp()
    assert layout.settled(day, complete=True, wall=settles + 1)
    assert not layout.settled(day, complete=True, wall=settles - 1)
    assert not layout.settled(day, complete=False, wall=settles + 1)
    assert not layout.settled(None, complete=True, wall=settles + 1)


def test_a_short_name_tries_the_exports_own_partitions_first() -> None:
    """Experiment before event before any other, and those by name."""
    names = ["event=1", "zone=1", "experiment=1", "area=1", "experiment=2", "plain"]
    partitions = layout.partitions_among(names)
    assert partitions == ("experiment", "event", "area", "zone")
    assert layout.short_name_targets("1", partitions) == ["experiment=1", "event=1", "area=1", "zone=1"]
