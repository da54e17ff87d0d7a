# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH208, PTH211 - the tests make the system calls themselves
"""What a mount shows: paths, names, attributes, and that nothing can be changed."""

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optfs.bridge import mounts
from optfs.demo.services import Services
from tests.mount.conftest import CONTENT, ODD_EVENTS, Mounting
from tests.support.mounting import Mounted, fails_with

PART = "type=decisions/date=2026-11-01/experiment=42/part-0.parquet"


def test_the_root_lists_the_account_and_the_account_the_keys_below_its_prefix(mounted: Mounted) -> None:
    """`/<account>/<key>`, verbatim."""
    assert os.listdir(mounted.path) == ["123"]
    assert sorted(os.listdir(mounted.account)) == ["type=decisions", "type=events"]
    assert (mounted.account / PART).read_bytes() == CONTENT


def test_the_mount_shows_as_optfs_of_the_account_and_read_only(mounted: Mounted) -> None:
    """As `mount` and `df` print it."""
    found = mounts.find(mounted.path)
    assert found is not None
    assert (found.fstype, found.source) == ("fuse.optfs", "optfs#123")
    assert os.statvfs(mounted.path).f_flag & os.ST_RDONLY


def test_short_names_lead_to_the_partitions_as_links(mounted: Mounted) -> None:
    """`decisions/2026-11-01/42` without `type=` and the like."""
    assert os.readlink(mounted.account / "decisions") == "type=decisions"
    assert os.readlink(mounted.account / "type=decisions" / "2026-11-01") == "date=2026-11-01"
    assert (mounted.account / "decisions/2026-11-01/42/part-0.parquet").read_bytes() == CONTENT


def test_short_names_are_not_listed(mounted: Mounted) -> None:
    """Else a reader would count everything twice."""
    assert "decisions" not in os.listdir(mounted.account)
    assert sorted(os.listdir(mounted.account / "type=decisions")) == ["date=2026-11-01", "date=2026-11-02"]


def test_latest_is_the_newest_complete_date(mounted: Mounted) -> None:
    """The second day has no `_SUCCESS`."""
    assert os.readlink(mounted.account / "type=decisions" / "latest") == "date=2026-11-01"


@pytest.mark.parametrize("name", ODD_EVENTS, ids=ascii)
def test_odd_names_are_kept_byte_for_byte(mounted: Mounted, name: str) -> None:
    """Spaces, percent signs, newlines, both Unicode forms, and bytes that aren't UTF-8."""
    raw = name.encode("utf-8", "surrogateescape")
    folder = os.fsencode(mounted.account) + b"/type=events/date=2026-11-01"
    assert b"event=" + raw in os.listdir(folder)
    with open(folder + b"/event=" + raw + b"/part-0.parquet", "rb") as file:
        assert file.read() == raw


def test_a_name_that_no_file_system_holds_is_left_out(mounted: Mounted) -> None:
    """300 bytes in one component."""
    assert not [name for name in os.listdir(mounted.account / "type=events/date=2026-11-01") if "nnn" in name]


def test_markers_are_empty_folders_and_a_key_that_others_begin_with_is_a_folder(mounted: Mounted) -> None:
    """`empty/`, and `both` beside `both/inner`."""
    day = mounted.account / "type=events/date=2026-11-01"
    assert os.listdir(day / "empty") == []
    assert (day / "both/inner").read_bytes() == b"inner"


def test_attributes_come_from_the_listing(mounted: Mounted) -> None:
    """Size, time, permissions, owner, blocks, inode; the same by stat, fstat and scandir."""
    path = mounted.account / PART
    shown = path.stat()
    assert stat.S_IMODE(shown.st_mode) == 0o444
    assert stat.S_ISREG(shown.st_mode)
    assert (shown.st_size, shown.st_blocks, shown.st_nlink) == (len(CONTENT), 500, 1)
    assert abs(shown.st_mtime - 1_700_000_000.5) < 1  # S3 tells whole seconds
    assert (shown.st_uid, shown.st_gid) == (os.getuid(), os.getgid())
    assert shown.st_ino > 1
    with path.open("rb") as file:
        assert os.fstat(file.fileno()).st_ino == shown.st_ino
    with os.scandir(path.parent) as entries:
        assert [entry.inode() for entry in entries] == [shown.st_ino]
    folder = path.parent.stat()
    assert stat.S_ISDIR(folder.st_mode)
    assert stat.S_IMODE(folder.st_mode) == 0o555


def test_extended_attributes_tell_where_a_file_comes_from(mounted: Mounted) -> None:
    """URI, version, cached bytes; none other."""
    path = mounted.account / PART
    names = set(os.listxattr(path))
    assert "user.optfs.uri" in names
    version = names & {"user.optfs.etag", "user.optfs.generation"}
    assert len(version) == 1
    assert os.getxattr(path, version.pop())
    assert os.getxattr(path, "user.optfs.uri").endswith(b"/v1/account_id=123/" + PART.encode())
    assert int(os.getxattr(path, "user.optfs.cached")) >= 0
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.other")


def test_attributes_of_other_namespaces_are_not_supported(mounted: Mounted) -> None:
    """ENOTSUP, which coreutils' `ls` remembers; ENODATA would make it ask twice for each file."""
    with fails_with(errno.ENOTSUP):
        os.getxattr(mounted.account / PART, "security.selinux")


@pytest.mark.parametrize("name", ["n" * 256, "\u00e9" * 128], ids=["letters", "bytes"])
def test_a_name_that_is_too_long_is_told_as_that(mounted: Mounted, name: str) -> None:
    """Linux itself lets longer ones through. One of 255 bytes is a name that isn't there."""
    for path in (mounted.account / name, mounted.account / name / "below"):
        with fails_with(errno.ENAMETOOLONG):
            path.stat()
    with fails_with(errno.ENAMETOOLONG):
        os.open(mounted.account / name, os.O_RDONLY)
    with fails_with(errno.ENOENT):
        (mounted.account / name.encode()[:254].decode()).stat()


def test_statfs_is_sensible(mounted: Mounted) -> None:
    """Nothing is free, and names may be 255 bytes long."""
    shown = os.statvfs(mounted.path)
    assert shown.f_bsize > 0
    assert shown.f_blocks > 0
    assert (shown.f_bfree, shown.f_bavail, shown.f_namemax) == (0, 0, 255)


def _changes() -> dict[str, Callable[[Path], object]]:
    return {
        "create": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
        "open to write": lambda root: os.open(root / PART, os.O_WRONLY),
        "open to read and write": lambda root: os.open(root / PART, os.O_RDWR),
        "open to append": lambda root: os.open(root / PART, os.O_WRONLY | os.O_APPEND),
        "open and truncate": lambda root: os.open(root / PART, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda root: os.truncate(root / PART, 0),
        "mkdir": lambda root: os.mkdir(root / "new"),
        "rmdir": lambda root: os.rmdir(root / "type=decisions"),
        "unlink": lambda root: os.unlink(root / PART),
        "rename": lambda root: os.rename(root / PART, root / "new"),
        "link": lambda root: os.link(root / PART, root / "new"),
        "symlink": lambda root: os.symlink("x", root / "new"),
        "mknod": lambda root: os.mkfifo(root / "new"),
        "chmod": lambda root: os.chmod(root / PART, 0o777),
        "chown": lambda root: os.chown(root / PART, os.getuid(), os.getgid()),
        "utimens": lambda root: os.utime(root / PART),
        "setxattr": lambda root: os.setxattr(root / PART, "user.new", b"x"),
        "removexattr": lambda root: os.removexattr(root / PART, "user.optfs.uri"),
    }


@pytest.mark.parametrize("change", _changes())
def test_every_change_fails_with_erofs(mounted: Mounted, change: str) -> None:
    """Read-only, whoever asks."""
    with fails_with(errno.EROFS):
        _changes()[change](mounted.account)


def test_what_a_fresh_listing_lacks_costs_no_request(mounted: Mounted) -> None:
    """Spark asks for `.crc` files, pyarrow for `_metadata`; nobody sends HEAD."""
    folder = (mounted.account / PART).parent
    os.listdir(folder)
    mounted.services.requests.clear()
    for name in (".part-0.parquet.crc", "_metadata", "_common_metadata", "_delta_log"):
        assert not (folder / name).exists()
    assert mounted.services.requests.count() == 0


def test_stat_of_listed_files_costs_no_request(mounted: Mounted) -> None:
    """Listings feed stat."""
    os.listdir((mounted.account / PART).parent)
    mounted.services.requests.clear()
    (mounted.account / PART).stat()
    (mounted.account / "type=decisions/date=2026-11-01/experiment=43/part-0.parquet").stat()
    assert mounted.services.requests.count() == 0


def test_a_file_can_be_mapped_into_memory(mounted: Mounted) -> None:
    """As pyarrow does with `memory_map`."""
    with (mounted.account / PART).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[1000:2000] == CONTENT[1000:2000]
        assert mapped[:] == CONTENT


def test_reads_anywhere_return_what_is_there(mounted: Mounted) -> None:
    """Before, across and behind the end."""
    fd = os.open(mounted.account / PART, os.O_RDONLY)
    try:
        for offset, length in ((0, 1), (255_990, 100), (256_000, 10), (300_000, 1), (131_071, 2), (5, 0)):
            assert os.pread(fd, length, offset) == CONTENT[offset : offset + length]
    finally:
        os.close(fd)


def test_a_folder_opened_as_a_file_and_a_file_as_a_folder(mounted: Mounted) -> None:
    """The errors of any file system."""
    with pytest.raises(IsADirectoryError):
        (mounted.account / "type=decisions").read_bytes()
    with pytest.raises(NotADirectoryError):
        os.listdir(mounted.account / PART)
    with pytest.raises(FileNotFoundError):
        (mounted.account / "type=decisions/date=1999-01-01").stat()


def test_ten_thousand_files_in_one_folder_are_listed_whole_and_once(mounting: Mounting, services: Services) -> None:
    """Across pages of listings and of readdir."""
    names = {f"part-{number:05}.parquet" for number in range(10_000)}
    for name in names:
        services.put(f"type=decisions/date=2026-11-01/experiment=1/{name}", b"x")
    mount = mounting(services)
    with os.scandir(mount.account / "type=decisions/date=2026-11-01/experiment=1") as entries:
        listed = [(entry.name, entry.stat().st_size) for entry in entries]
    assert len(listed) == 10_000
    assert {name for name, _ in listed} == names
    assert {size for _, size in listed} == {1}


def test_two_hundred_readers_at_once_all_get_their_bytes(mounting: Mounting, services: Services) -> None:
    """More than libfuse has threads."""
    for number in range(200):
        services.put(f"type=decisions/date=2026-11-01/experiment=1/part-{number:05}", bytes([number]) * 10_000)
    services.pace.latency = 0.05
    mount = mounting(services)
    folder = mount.account / "type=decisions/date=2026-11-01/experiment=1"
    with ThreadPoolExecutor(200) as pool:
        contents = list(pool.map(lambda number: (folder / f"part-{number:05}").read_bytes(), range(200)))
    assert contents == [bytes([number]) * 10_000 for number in range(200)]


def test_a_rewound_folder_shows_what_is_there_now(mounting: Mounting, services: Services) -> None:
    """A new listing after `--listing-ttl`."""
    services.put("type=decisions/date=2026-11-01/experiment=1/a", b"a")
    mount = mounting(services, "--listing-ttl", "100ms")
    folder = mount.account / "type=decisions/date=2026-11-01/experiment=1"
    assert os.listdir(folder) == ["a"]
    services.put("type=decisions/date=2026-11-01/experiment=1/b", b"b")
    end = time.monotonic() + 30
    while sorted(os.listdir(folder)) != ["a", "b"]:
        assert time.monotonic() < end
        time.sleep(0.05)
