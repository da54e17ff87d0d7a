"""What exists, in memory: folders, files and links, made from pages of listings. Pure; compact, because an account has up to a million objects.

Algorithm: a unit's objects are grouped by the folder that holds them (a mapping from the folder's path to its names), then folders are
made from the deepest up, so that depth costs no recursion. Children are one tuple, sorted by the bytes of their names, and found by
bisection: less than half of what a dict takes, and the tuple is the answer of `readdir`.

Rules: a folder beats a file of the same name. Nodes never change once made, so any thread may read them without a lock; the one
exception is `Folder._partitions`, which any thread may compute and which comes out the same each time. A name isn't stored where the key
or the path ends in it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from optfs.tree import layout
from optfs.values import ListPage, ObjectInfo, encode_name


def inode_number(name: str) -> int:
    """Return a stable inode number for a key or a path: never 0 or 1, and below 2**63, since some programs read it as signed."""
    number = xxhash.xxh64_intdigest(encode_name(name)) & 0x7FFF_FFFF_FFFF_FFFF
    return number if number > 1 else number + 2


class File:
    """One object."""

    __slots__ = ("info",)

    def __init__(self, info: ObjectInfo) -> None:
        self.info = info

    def __repr__(self) -> str:
        return f"File({self.info.key!a})"

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return self.info.key.rpartition("/")[2]

    @property
    def ino(self) -> int:
        """Its inode number."""
        return inode_number(self.info.key)

    @property
    def mtime(self) -> float:
        """Last modification, seconds since the epoch."""
        return self.info.mtime


class Link:
    """A short name: a symbolic link that no folder lists.

    Attributes:
        path: its own path in the mount.
        target: a name in the same folder.
        mtime: seconds since the epoch.

    """

    __slots__ = ("mtime", "path", "target")

    def __init__(self, path: str, target: str, mtime: float) -> None:
        self.path = path
        self.target = target
        self.mtime = mtime

    def __repr__(self) -> str:
        return f"Link({self.path!a}, {self.target!a})"

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return self.path.rpartition("/")[2]

    @property
    def ino(self) -> int:
        """Its inode number."""
        return inode_number(self.path)


class Folder:
    """One folder.

    Attributes:
        path: its path in the mount.
        mtime: seconds since the epoch: the newest object below it, a date folder's day, or the mount's start. It doesn't change when the
            folder's own listing arrives: tar calls a folder whose time moves while it is read a changed one.
        nodes: the children, sorted by the bytes of their names; None where a listing of its own gives them (`Catalog.children`).

    """

    __slots__ = ("_partitions", "mtime", "nodes", "path")

    def __init__(self, path: str, mtime: float, nodes: "tuple[Node, ...] | None") -> None:
        self.path = path
        self.mtime = mtime
        self.nodes = nodes
        self._partitions: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"Folder({self.path!a})"

    @property
    def name(self) -> str:
        """Its name in its folder; empty for the root."""
        return self.path.rpartition("/")[2]

    @property
    def ino(self) -> int:
        """Its inode number."""
        return inode_number(self.path)

    @property
    def partitions(self) -> tuple[str, ...]:
        """The partitions of the folders in it, in the order in which a short name tries them."""
        if self._partitions is None:
            self._partitions = layout.partitions_among(node.name for node in self.nodes or () if isinstance(node, Folder))
        return self._partitions

    def find(self, name: str) -> "Node | None":
        """Return the child of that name, or None."""
        nodes = self.nodes
        if not nodes:
            return None
        try:
            raw = encode_name(name)
        except UnicodeEncodeError:  # no key that is shown has such a name
            return None
        position = bisect_left(nodes, raw, key=sort_key)
        if position < len(nodes):
            node = nodes[position]
            if node.name == name:
                return node
        return None

    def short_name(self, name: str) -> "Folder | None":
        """Return the folder that the short name stands for, or None."""
        for target in layout.short_name_targets(name, self.partitions):
            node = self.find(target)
            if isinstance(node, Folder):
                return node
        return None


Node = Folder | File | Link


def sort_key(node: Node) -> bytes:
    """Return what children are sorted by."""
    return encode_name(node.name)


def files_from(folder: Folder, parts: Sequence[str]) -> Iterator[File]:
    """Yield the files below `folder` that come after the path `parts` (which needn't exist) in the order of a walk; all with no parts."""
    pending: list[Iterator[Node]] = []
    here: Node | None = folder
    for part in parts:
        if not isinstance(here, Folder):
            break
        nodes = here.nodes or ()
        position = bisect_left(nodes, encode_name(part), key=sort_key)
        matches = position < len(nodes) and nodes[position].name == part
        pending.append(iter(nodes[position + matches :]))
        here = nodes[position] if matches else None
    if isinstance(here, Folder):
        pending.append(iter(here.nodes or ()))
    while pending:
        node = next(pending[-1], None)
        if node is None:
            pending.pop()
        elif isinstance(node, File):
            yield node
        elif isinstance(node, Folder):
            pending.append(iter(node.nodes or ()))


@dataclass(slots=True)
class Built:
    """What pages of one unit amount to.

    Attributes:
        folder: the unit's folder.
        exists: whether the store showed anything at all below the unit's prefix.
        objects: how many files.
        left_out: keys (or common prefixes) that no file system can show.

    """

    folder: Folder
    exists: bool
    objects: int
    left_out: list[str] = field(default_factory=list)


def build_subtree(path: str, mtime: float, prefix: str, objects: Iterable[ObjectInfo], old: Mapping[str, File]) -> Built:
    """Make the whole subtree of a flat unit.

    Args:
        path: of the unit's folder.
        mtime: of the unit's folder.
        prefix: the whole key prefix that was listed.
        objects: what the listing gave, in any order.
        old: files of an earlier listing by key; unchanged ones are kept, which saves memory.

    """
    built = Built(Folder(path, mtime, ()), exists=False, objects=0)
    below: dict[str, dict[str, Node]] = {"": {}}
    bad_heads: set[str] = set()
    for info in objects:
        built.exists = True
        rest = info.key[len(prefix) :]
        if not rest:  # the marker of the unit itself
            continue
        head, _, name = rest.rpartition("/")
        if name and not layout.valid_name(name):  # before its folder is made: a key that isn't shown makes none
            built.left_out.append(info.key)
            continue
        names = below.get(head)
        if names is None:
            if head in bad_heads or not all(map(layout.valid_name, head.split("/"))):
                bad_heads.add(head)
                built.left_out.append(info.key)
                continue
            names = _open_folder(below, head)
        elif not head and rest.startswith("/"):  # "/name": an empty component that looks like the unit's own folder
            built.left_out.append(info.key)
            continue
        if not name:  # a folder's marker
            continue
        names[name] = _file(info, old)
    built.folder.nodes = _close_folders(path, mtime, below)
    built.objects = sum(1 for names in below.values() for node in names.values() if isinstance(node, File))
    return built


def build_level(path: str, mtime: float, prefix: str, page: ListPage, old: Mapping[str, File]) -> Built:
    """Make one level of folders whose own children aren't known yet, and of files.

    Args:
        path: of the unit's folder.
        mtime: of the unit's folder, and of the folders in it that aren't dates.
        prefix: the whole key prefix that was listed.
        page: all pages in one.
        old: files of an earlier listing by key.

    """
    built = Built(Folder(path, mtime, ()), exists=False, objects=0)
    names: dict[str, Node] = {}
    for info in page.objects:
        built.exists = True
        name = info.key[len(prefix) :]
        if not name:
            continue
        if layout.valid_name(name):
            names[name] = _file(info, old)
        else:
            built.left_out.append(info.key)
    for common in page.prefixes:
        built.exists = True
        name = common[len(prefix) : -1]
        if layout.valid_name(name):
            names[name] = Folder(f"{path}/{name}", folder_mtime(name, mtime), None)
        else:
            built.left_out.append(common)
    built.folder.nodes = tuple(sorted(names.values(), key=sort_key))
    built.objects = sum(1 for node in names.values() if isinstance(node, File))
    return built


def unite_levels(levels: Sequence[Built]) -> Built:
    """Return the union of one level in several stores: a folder beats a file, and of two files the former store's stays."""
    names: dict[str, Node] = {}
    for built in levels:
        for node in built.folder.nodes or ():
            name = node.name
            if name not in names or (isinstance(node, Folder) and isinstance(names[name], File)):
                names[name] = node
    folder = Folder(levels[0].folder.path, levels[0].folder.mtime, tuple(sorted(names.values(), key=sort_key)))
    return Built(
        folder,
        exists=any(built.exists for built in levels),
        objects=sum(1 for node in names.values() if isinstance(node, File)),
        left_out=[key for built in levels for key in built.left_out],
    )


def folder_mtime(name: str, default: float) -> float:
    """Return a date folder's day, or `default`; seconds since the epoch."""
    day = layout.date_of(name)
    return default if day is None else layout.midnight(day)


def _file(info: ObjectInfo, old: Mapping[str, File]) -> File:
    known = old.get(info.key)
    return known if known is not None and known.info == info else File(info)


def _open_folder(below: dict[str, dict[str, Node]], head: str) -> dict[str, Node]:
    """Make the folder `head` and those above it."""
    names: dict[str, Node] = {}
    below[head] = names
    while (head := head.rpartition("/")[0]) not in below:
        below[head] = {}
    return names


def _close_folders(path: str, empty_mtime: float, below: dict[str, dict[str, Node]]) -> tuple[Node, ...]:
    """Make folders of names, from the deepest up, and return the children of the unit's own folder."""
    for head in sorted(below, key=lambda head: head.count("/"), reverse=True):
        if not head:
            continue
        nodes = tuple(sorted(below[head].values(), key=sort_key))
        mtime = max((node.mtime for node in nodes), default=empty_mtime)
        parent, _, name = head.rpartition("/")
        below[parent][name] = Folder(f"{path}/{head}", mtime, nodes)
    return tuple(sorted(below[""].values(), key=sort_key))
