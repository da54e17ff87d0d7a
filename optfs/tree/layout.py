"""Paths and keys: which path shows which key, which names a file system can hold, and what needs a listing of its own. Pure.

A path is `/<account>/<key below the account's prefix, verbatim>`. The tree is listed in *units*. A unit is named by its key prefix
relative to the account's: `""` is the account, `type=decisions/` a type, `type=decisions/date=2026-11-01/` a date. A date is *flat*: one
listing without a delimiter gives everything below it. Every other unit is one *level*, listed with the delimiter `/`.

Short names are links that no folder lists: where a folder lacks the name `N` but holds a folder `<partition>=N`, `N` is a link to it.
Where several partitions have such a value, the first by `PARTITION_ORDER` wins, then by name. `latest` in a type is a link to its newest
complete date.

Names are `str` with surrogateescape (`optfs.values`).
"""

import datetime
from collections.abc import Iterable, Sequence

from optfs.errors import NameTooLong, NotFound
from optfs.values import decode_name, encode_name

SUCCESS = "_SUCCESS"
"""The object that is written last into a date: the date is complete."""

LATEST = "latest"

PARTITION_ORDER = ("type", "date", "experiment", "event")
"""The export's own partitions, in the order in which a short name looks for its value."""

MAX_NAME = 255
"""NAME_MAX of Linux and macOS, bytes."""

SETTLED_AFTER = datetime.timedelta(days=2)
"""A complete date older than this is seldom rewritten: a day's export arrives by 13:00 UTC of the next day."""


def valid_name(name: str) -> bool:
    """Return whether a file system can hold `name` as one component of a path, and get it back unchanged."""
    if not name or name in {".", ".."} or "\0" in name or "/" in name or len(name) > MAX_NAME:
        return False
    if name.isascii():
        return True
    try:
        raw = encode_name(name)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return False
    return len(raw) <= MAX_NAME and decode_name(raw) == name


def split_path(path: str) -> list[str]:
    """Return the components of an absolute path; none for `/`. A slash at the end is ignored.

    Raises:
        NotFound: the path isn't absolute, or a component is one that no name can be.

    """
    if path == "/":
        return []
    parts = path.split("/")
    if parts[-1] == "":
        parts.pop()
    if not parts or parts[0] != "" or "" in parts[1:]:
        raise NotFound(f"no such path: {path!a}")
    return parts[1:]


def missing(name: str, path: str) -> NotFound | NameTooLong:
    """Return what is to be raised of a path whose component `name` isn't there; that it is too long Linux leaves to us to say."""
    try:
        too_long = len(encode_name(name)) > MAX_NAME
    except UnicodeEncodeError:
        too_long = False
    return NameTooLong(f"a name is too long: {path!a}") if too_long else NotFound(f"no such path: {path!a}")


def child_unit(unit: str, name: str) -> str:
    """Return the unit of the folder `name` in the level `unit`."""
    return f"{unit}{name}/"


def is_type(unit: str) -> bool:
    """Return whether a unit is a type: `type=<value>/`."""
    return unit.startswith("type=") and unit.count("/") == 1


def is_flat(unit: str) -> bool:
    """Return whether one listing without a delimiter gives all of this unit: `type=<value>/date=<value>/`."""
    if unit.count("/") != 2:
        return False
    first, second, _ = unit.split("/")
    return first.startswith("type=") and second.startswith("date=")


def split_date(unit: str) -> tuple[str, str]:
    """Return a flat unit's type as a unit, and its date folder's name."""
    head, name, _ = unit.split("/")
    return head + "/", name


def unit_name(unit: str) -> str:
    """Return the name of a unit's folder; empty for the account."""
    return unit[:-1].rpartition("/")[2]


def date_of(name: str) -> datetime.date | None:
    """Return the day of a folder `date=YYYY-MM-DD`, or None."""
    value = name.removeprefix("date=")
    if len(value) != 10 or value == name:
        return None
    try:
        day = datetime.date.fromisoformat(value)
    except ValueError:
        return None
    return day if day.isoformat() == value else None  # fromisoformat also takes weeks: 2026-W44-7


def midnight(day: datetime.date) -> float:
    """Return when a day begins in UTC, seconds since the epoch."""
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()


def settled(day: datetime.date | None, *, complete: bool, wall: float) -> bool:
    """Return whether a date's objects are unlikely to change any more at the moment `wall`, seconds since the epoch."""
    if day is None or not complete:
        return False
    return wall - midnight(day) > (SETTLED_AFTER + datetime.timedelta(days=1)).total_seconds()  # a day ends 24 h after its midnight


def dates_among(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of date folders, in the order given."""
    return tuple(name for name in names if name.startswith("date="))


def partitions_among(names: Iterable[str]) -> tuple[str, ...]:
    """Return the partitions (`experiment` of `experiment=42`) of folder names, in the order in which a short name tries them."""
    found = {name.partition("=")[0] for name in names if "=" in name}
    return tuple(sorted(found, key=_rank))


def short_name_targets(name: str, partitions: Sequence[str]) -> list[str]:
    """Return the folder names that the short name may stand for, best first."""
    return [f"{partition}={name}" for partition in partitions]


def _rank(partition: str) -> tuple[int, str]:
    known = partition in PARTITION_ORDER
    return (PARTITION_ORDER.index(partition) if known else len(PARTITION_ORDER), partition)
