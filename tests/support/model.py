"""The reference model: what a mount must show of a set of keys, written as plainly as the documented semantics allow.

Everything is looked up by going through all keys each time; nothing is remembered, so there is nothing to go stale. A path is a tuple of
names below the account's folder, `()` is that folder. Keys lie below the account's prefix.
"""

import datetime
import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Path = tuple[str, ...]

PARTITIONS = ("type", "date", "experiment", "event")


@dataclass(frozen=True)
class Stored:
    """One version of an object. Two versions are the same only if they are one object in memory or have the same tag.

    Attributes:
        tag: names the version; no two puts share one.

    """

    content: bytes
    mtime: float
    tag: str


@dataclass(frozen=True)
class AFolder:
    """A folder."""


@dataclass(frozen=True)
class AFile:
    """A file, which shows one version."""

    stored: Stored


@dataclass(frozen=True)
class ALink:
    """A short name."""

    target: str


@dataclass(frozen=True)
class Failure:
    """Nothing, and the errno that tells."""

    number: int


Shown = AFolder | AFile | ALink
Outcome = Shown | Failure
Keys = Mapping[str, Stored]


def raw(name: str) -> bytes:
    """Return a name's bytes."""
    return name.encode("utf-8", "surrogateescape")


def holdable(name: str) -> bool:
    """Return whether a file system can hold the name."""
    return name not in {"", ".", ".."} and "\0" not in name and "/" not in name and len(raw(name)) <= 255


def in_a_date(path: Path) -> bool:
    """Return whether a path lies below a date folder, whose keys are seen whole."""
    return len(path) > 2 and path[0].startswith("type=") and path[1].startswith("date=")


def shown(keys: Keys, path: Path) -> AFolder | AFile | None:
    """Return what a listing shows at a path, links not counted, parents not looked at."""
    if not all(map(holdable, path)):
        return None
    head = "".join(name + "/" for name in path)
    below = [key for key in keys if key.startswith(head)]
    if in_a_date(path):
        # a key that can't be shown makes no folder; outside of dates folders are listed before what is in them is known
        below = [key for key in below if all(map(holdable, key.removesuffix("/").split("/")))]
    if below or not path:
        return AFolder()
    stored = keys.get("/".join(path))
    return None if stored is None else AFile(stored)


def children(keys: Keys, path: Path) -> dict[str, AFolder | AFile]:
    """Return what the folder at a path lists, in the order of the names' bytes."""
    head = "".join(name + "/" for name in path)
    names = {key[len(head) :].partition("/")[0] for key in keys if key.startswith(head)}
    found = {name: shown(keys, (*path, name)) for name in sorted(names, key=raw)}
    return {name: node for name, node in found.items() if node is not None}


def child(keys: Keys, path: Path, name: str) -> Shown | None:
    """Return what a folder holds under a name, short names included."""
    node = shown(keys, (*path, name))
    if node is not None:
        return node
    folders = [other for other, kind in children(keys, path).items() if isinstance(kind, AFolder)]
    partitions = {other.partition("=")[0] for other in folders if "=" in other}
    for partition in sorted(partitions, key=lambda part: (PARTITIONS.index(part) if part in PARTITIONS else 9, part)):
        if f"{partition}={name}" in folders:
            return ALink(f"{partition}={name}")
    if name == "latest" and len(path) == 1 and path[0].startswith("type="):
        for date in sorted(folders, reverse=True):
            if a_day(date) and isinstance(shown(keys, (*path, date, "_SUCCESS")), AFile):
                return ALink(date)
    return None


def a_day(name: str) -> bool:
    """Return whether a folder is `date=YYYY-MM-DD`, of a day that there is."""
    found = re.fullmatch("date=([0-9]{4})-([0-9]{2})-([0-9]{2})", name)
    try:
        return found is not None and bool(datetime.date(*map(int, found.groups())))
    except ValueError:
        return False


def walk(keys: Keys, path: Path) -> tuple[Path, Outcome]:
    """Walk down a path as a kernel does: links on the way are followed, one at the end is not. Return where that led, and what is there."""
    here: Path = ()
    node: Shown = AFolder()
    for place, name in enumerate(path):
        if not isinstance(node, AFolder):
            return here, Failure(errno.ENOTDIR)
        found = child(keys, here, name)
        if found is None:
            return here, Failure(errno.ENOENT if len(raw(name)) <= 255 else errno.ENAMETOOLONG)
        if isinstance(found, ALink) and place < len(path) - 1:
            here, node = (*here, found.target), AFolder()
        else:
            here, node = (*here, name), found
    return here, node


def followed(keys: Keys, path: Path) -> tuple[Path, Outcome]:
    """Walk down a path, a link at the end included."""
    here, node = walk(keys, path)
    return ((*here[:-1], node.target), AFolder()) if isinstance(node, ALink) else (here, node)


def every_path(keys: Keys) -> Iterator[tuple[Path, Shown]]:
    """Yield all that a walk over the tree meets."""
    pending: list[Path] = [()]
    while pending:
        here = pending.pop()
        for name, node in children(keys, here).items():
            yield (*here, name), node
            if isinstance(node, AFolder):
                pending.append((*here, name))


def on_disk(path: Path) -> bytes:
    """Return a path relative to the account's folder, as bytes for the operating system."""
    return os.sep.encode().join(map(raw, path))
