"""The file system on fakes of tree and reading: attributes, handles, extended attributes."""

import stat
from collections.abc import Callable, Sequence

import pytest

from optfs.errors import IsAFolder, NoAttribute, NotALink, NotFound, NotSupported
from optfs.filesystem import FileSystem, Owner
from optfs.tree.folders import File, Folder, Link, Node
from optfs.values import AccountRoot, Deadline, ObjectInfo, Provider

INFO = ObjectInfo("v1/account_id=1/d/f", 1025, 1.5, "etag", "aws")
GCS = ObjectInfo("v1/account_id=1/d/g", 0, 1.5, "77", "gcp")


class FakeTree:
    """One folder with two files and a link."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {
            "/d": Folder("/d", 3.0, None),
            "/d/f": File(INFO),
            "/d/g": File(GCS),
            "/d/l": Link("/d/l", "f\u00e9", 4.0),
        }
        self.deadlines: list[float] = []

    def lookup(self, path: str, deadline: Deadline) -> Node:
        """Find a node."""
        self.deadlines.append(deadline.at)
        if path not in self.nodes:
            raise NotFound(path)
        return self.nodes[path]

    def children(self, path: str, deadline: Deadline) -> Sequence[tuple[str, Node]]:
        """List the files."""
        return [("f", self.nodes["/d/f"]), ("g", self.nodes["/d/g"])]

    def following(self, after: ObjectInfo, count: int) -> Sequence[ObjectInfo]:
        """Return the second file after the first."""
        return [GCS][:count] if after is INFO else []


class FakeFile:
    """An open file that notes what is done to it."""

    def __init__(self, info: ObjectInfo, following: Callable[[int], Sequence[ObjectInfo]]) -> None:
        self.info = info
        self.following = following
        self.closed = 0

    def read(self, offset: int, length: int, abandoned: Callable[[], bool]) -> list[memoryview]:
        """Return the version, so that a test sees whose bytes they are."""
        assert not abandoned()
        return [memoryview(self.info.version.encode())[offset : offset + length]]

    def close(self) -> None:
        """Count."""
        self.closed += 1


class FakeFiles:
    """Opens fakes and remembers them."""

    def __init__(self) -> None:
        self.opened: list[FakeFile] = []

    def open(self, info: ObjectInfo, following: Callable[[int], Sequence[ObjectInfo]]) -> FakeFile:
        """Open one."""
        self.opened.append(FakeFile(info, following))
        return self.opened[-1]


ROOTS: dict[Provider, AccountRoot] = {
    "aws": AccountRoot("1", "aws", "bucket", "v1/account_id=1/"),
    "gcp": AccountRoot("1", "gcp", "other", "v1/account_id=1/"),
}


def build(umask: int = 0o222) -> tuple[FileSystem, FakeTree, FakeFiles]:
    """Return a file system on fakes."""
    tree, files = FakeTree(), FakeFiles()
    filesystem = FileSystem(
        tree,
        files,
        roots=ROOTS,
        owner=Owner(7, 8, umask),
        cache=None,
        timeout=30.0,
        clock=lambda: 100.0,
    )
    return filesystem, tree, files


def test_a_file_shows_size_time_blocks_owner_and_version() -> None:
    """1025 bytes are three blocks of 512."""
    shown = build()[0].attributes("/d/f")
    assert (shown.mode, shown.size, shown.mtime, shown.blocks) == (stat.S_IFREG | 0o444, 1025, 1.5, 3)
    assert (shown.uid, shown.gid, shown.nlink, shown.version) == (7, 8, 1, "etag")


def test_a_folder_and_a_link_show_their_kind() -> None:
    """A link's size is its target's length in bytes."""
    filesystem = build()[0]
    assert filesystem.attributes("/d").mode == stat.S_IFDIR | 0o555
    link = filesystem.attributes("/d/l")
    assert (link.mode, link.size) == (stat.S_IFLNK | 0o777, 3)


def test_the_umask_takes_permissions_away() -> None:
    """0077 leaves the owner's."""
    filesystem = build(0o077)[0]
    assert stat.S_IMODE(filesystem.attributes("/d/f").mode) == 0o400
    assert stat.S_IMODE(filesystem.attributes("/d").mode) == 0o500


def test_each_operation_has_its_own_deadline() -> None:
    """`timeout` seconds from its start."""
    filesystem, tree, _ = build()
    filesystem.attributes("/d")
    assert tree.deadlines == [130.0]


def test_entries_have_the_attributes_that_stat_shows() -> None:
    """READDIRPLUS and stat agree."""
    filesystem = build()[0]
    assert filesystem.entries("/d") == [("f", filesystem.attributes("/d/f")), ("g", filesystem.attributes("/d/g"))]


def test_a_handle_reads_the_version_that_open_saw() -> None:
    """Whatever the tree shows later."""
    filesystem, tree, files = build()
    opened = filesystem.open("/d/f")
    tree.nodes["/d/f"] = File(ObjectInfo(INFO.key, 1, 2.0, "later", "aws"))
    assert opened.version == "etag"
    assert b"".join(filesystem.read(opened.handle, 1, 2)) == b"ta"
    assert filesystem.open("/d/f").version == "later"
    assert files.opened[0].following(5) == [GCS]


def test_a_closed_handle_is_let_go_of_once() -> None:
    """The kernel closes once; a second time changes nothing."""
    filesystem, _, files = build()
    handle = filesystem.open("/d/f").handle
    assert filesystem.open_files() == 1
    filesystem.close(handle)
    filesystem.close(handle)
    assert (files.opened[0].closed, filesystem.open_files()) == (1, 0)


def test_only_files_open_and_only_links_have_a_target() -> None:
    """EISDIR, ENOENT, EINVAL."""
    filesystem = build()[0]
    with pytest.raises(IsAFolder):
        filesystem.open("/d")
    with pytest.raises(NotFound):
        filesystem.open("/nothing")
    with pytest.raises(NotALink):
        filesystem.target("/d/f")
    assert filesystem.target("/d/l") == "f\u00e9"


def test_extended_attributes_name_uri_and_version_as_the_provider_does() -> None:
    """An ETag on S3, a generation on GCS."""
    filesystem = build()[0]
    assert filesystem.xattrs("/d/f") == ["user.optfs.uri", "user.optfs.etag", "user.optfs.cached"]
    assert filesystem.xattr("/d/f", "user.optfs.uri") == b"s3://bucket/v1/account_id=1/d/f"
    assert filesystem.xattr("/d/f", "user.optfs.etag") == b"etag"
    assert filesystem.xattr("/d/g", "user.optfs.generation") == b"77"
    assert filesystem.xattr("/d/g", "user.optfs.uri") == b"gs://other/v1/account_id=1/d/g"
    assert filesystem.xattr("/d/f", "user.optfs.cached") == b"0"
    assert filesystem.xattrs("/d") == []


def test_other_extended_attributes_are_missing_or_not_supported() -> None:
    """Within `user.` missing, outside of it not supported, which is told without a look-up."""
    filesystem, tree, _ = build()
    with pytest.raises(NoAttribute):
        filesystem.xattr("/d/f", "user.optfs.generation")
    with pytest.raises(NoAttribute):
        filesystem.xattr("/d", "user.optfs.uri")
    tree.deadlines.clear()
    with pytest.raises(NotSupported):
        filesystem.xattr("/d/f", "security.selinux")
    assert tree.deadlines == []
