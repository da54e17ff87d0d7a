"""The bridge without a mount: what handlers answer, the table of mounts, and the checks before a mount."""

import ctypes
import errno
import os
import shutil
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optfs import errors
from optfs.bridge import bindings, callers, mounting, mounts
from optfs.bridge import handlers as bridge_handlers
from optfs.bridge.errnos import ErrorReporter
from optfs.bridge.handlers import REFUSED, Core, Handlers
from optfs.bridge.kernel_cache import TAKEN_SECONDS, KernelCache
from optfs.bridge.structs import UNLOCKED, StatLayout, join
from optfs.filesystem import Attributes


class _Time(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Info(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_int), ("keep_cache", ctypes.c_uint), ("direct_io", ctypes.c_uint), ("fh", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("st_mode", "st_size", "st_ino", "st_nlink", "st_blocks", "st_uid", "st_gid", "st_blksize")),
        *((name, _Time) for name in ("st_atimespec", "st_mtimespec", "st_ctimespec")),
    )


class Clock:
    """Moved by hand, and by who waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time that the test set."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Let the time pass."""
        self.now += seconds


STATUS = "Name:\tcat\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\tffffffffffffffff\n"


def test_only_a_fatal_signal_ends_a_wait() -> None:
    """Which shows as a pending SIGKILL, of the thread or of the program; blocked signals don't count."""
    kill, alarm, last = 1 << 8, 1 << 13, 1 << 63
    assert not callers.kill_pending(STATUS.format(0, 0))
    assert not callers.kill_pending(STATUS.format(alarm, last))
    assert callers.kill_pending(STATUS.format(kill, 0))
    assert callers.kill_pending(STATUS.format(alarm, kill | last))


def test_a_caller_that_lives_or_cannot_be_seen_is_not_being_killed() -> None:
    """The latter lies in another namespace of processes."""
    assert not callers.killed(threading.get_native_id)
    assert not callers.killed(lambda: 0)


def test_every_changing_handler_answers_erofs() -> None:
    """As the kernel does on a read-only mount."""
    functions = _handlers(SimpleNamespace()).functions()
    assert {functions[name](1, 2, 3) for name in REFUSED} == {-errno.EROFS}
    assert {"write", "utimens", "truncate", "unlink"} <= functions.keys()


@pytest.mark.log_errors
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (MemoryError(), errno.ENOMEM),
        (errors.VersionGone("old"), errno.ESTALE),
        (OSError(errno.ENOSPC, "a defect"), errno.EIO),
        (SystemExit(), errno.EIO),
        (errors.NotALink("no"), errno.EINVAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_handler_raises_is_a_negative_errno_to_c(error: BaseException, number: int) -> None:
    """Nothing gets past it."""

    def target(_path: str) -> str:
        raise error

    functions = _handlers(SimpleNamespace(target=target)).functions()
    path = ctypes.create_string_buffer(b"/link")
    assert functions["readlink"](ctypes.addressof(path), 0, 100) == -number


def test_an_entry_that_no_longer_fits_into_a_folders_answer_is_not_told() -> None:
    """The kernel may hold the former version's attributes still."""
    entries = [(name, _file("2")) for name in ("a", "b", "c")]
    handlers = _handlers(SimpleNamespace(entries=lambda _path: entries, attributes=lambda _path: _file(None), folder_number=len))
    kernel = handlers.core.kernel = KernelCache(2.0, Clock())
    for name, _ in entries:
        kernel.told(f"/day/{name}", "1", 10, lambda: 11)
    info, path = _Info(), ctypes.create_string_buffer(b"/day")
    assert handlers.opendir(ctypes.addressof(path), ctypes.addressof(info)) == 0
    for entry, _, _ in handlers.entries_from(0, ctypes.addressof(info)):
        if entry == b"b":
            break
    assert [kernel.outdated(f"/day/{name}", "2", handlers.caller) for name in "abc"] == [False, True, True]
    assert [entry for entry, _, _ in handlers.entries_from(3, ctypes.addressof(info))] == [b"b", b"c"]
    assert [kernel.outdated(f"/day/{name}", "2", handlers.caller) for name in "abc"] == [False, False, False]


def test_a_folder_waits_with_its_answer_until_the_kernel_may_hear_of_all_in_it() -> None:
    """Once for all of its files that are open in other versions, also where the answer is full before its end."""
    entries = [(name, _file("2")) for name in ("a", "b", "c")]
    clock = Clock()
    handlers = _handlers(
        SimpleNamespace(entries=lambda _path: entries, attributes=lambda _path: _file(None), folder_number=len), clock, lifetime=2.0
    )
    for handle, (name, _) in enumerate(entries):
        handlers.core.kernel.opened(f"/day/{name}", "1", 5, handle)
    info, path = _Info(), ctypes.create_string_buffer(b"/day")
    handlers.opendir(ctypes.addressof(path), ctypes.addressof(info))
    for entry, _, _ in handlers.entries_from(0, ctypes.addressof(info)):
        assert clock.now == 0
        if entry == b"b":
            break
    assert clock.now == pytest.approx(TAKEN_SECONDS)
    assert not handlers.core.kernel.misread(2, 5, short=True)


def test_the_folder_above_has_its_own_inode_number() -> None:
    """In what a folder lists, too; `..` had that of the folder itself."""
    names = SimpleNamespace(
        entries=lambda _path: [], attributes=lambda _path: _file(None)._replace(ino=7), folder_number={"/a": 5, "/": 3}.get
    )
    handlers = _handlers(names)
    for path, above in ((b"/a/b", 5), (b"/a", 3)):
        info, text = _Info(), ctypes.create_string_buffer(path)
        handlers.opendir(ctypes.addressof(text), ctypes.addressof(info))
        shown = {name: _Stat.from_buffer_copy(packed).st_ino for name, packed, _ in handlers.entries_from(0, ctypes.addressof(info))}
        assert shown == {b".": 7, b"..": above}


TABLE = (
    b"36 25 0:31 / /mnt/with\\040space\\134\\011 ro,nosuid shared:1 - fuse.optfs optfs\\043123 ro,user_id=0\n"
    b"37 25 0:32 / /other rw - ext4 /dev/sda1 rw\n"
    b"nonsense\n"
    b"38 25 0:33 / /bad\\377 ro - fuse.optfs optfs#1 ro\n"
)


def test_the_table_of_mounts_is_read_with_its_escapes() -> None:
    """Spaces, tabs, backslashes, bytes that aren't UTF-8; optional fields or none."""
    found = mounts.parse(TABLE)
    assert [(mount.mountpoint, mount.fstype, mount.source, mount.device) for mount in found] == [
        ("/mnt/with space\\\t", "fuse.optfs", "optfs#123", "0:31"),
        ("/other", "ext4", "/dev/sda1", "0:32"),
        ("/bad\udcff", "fuse.optfs", "optfs#1", "0:33"),
    ]


def test_a_mount_that_another_covers_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unmounted at its path would be the other."""
    monkeypatch.setattr(Path, "read_bytes", lambda _path: TABLE + b"39 38 0:34 / /bad\\377 rw - tmpfs x rw\n")
    assert mounts.find("/bad\udcff") is None


def test_a_mount_point_is_resolved_without_its_last_component(tmp_path: Path) -> None:
    """The last one may be a dead mount, which can't be asked."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounts.resolve(tmp_path / "link" / "mnt") == str((tmp_path / "real").resolve() / "mnt")
    assert mounts.resolve("/") == "/"


def test_unmounting_what_is_not_mounted_is_one_line(tmp_path: Path) -> None:
    """With the reason in it."""
    with pytest.raises(errors.MountError) as failed:
        mounts.unmount(tmp_path)
    assert str(tmp_path) in failed.value.message
    assert "\n" not in failed.value.message


def test_a_mount_point_given_by_a_link_is_the_folder_that_it_leads_to(tmp_path: Path) -> None:
    """As the table of mounts has it; a link that leads round in circles ends, too."""
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/../deep/folder")
    (tmp_path / "deep" / "again").symlink_to(tmp_path / "link")
    (tmp_path / "round").symlink_to("round")
    wanted = os.path.realpath(folder)
    assert {mounts.resolve(path) for path in (folder, tmp_path / "link", tmp_path / "deep" / "again")} == {wanted}
    assert mounts.resolve(tmp_path / "round") == os.path.join(os.path.realpath(tmp_path), "round")  # noqa: PTH118 - a string
    assert mounts.resolve("/") == "/"


def test_dots_in_a_links_target_count_from_where_links_lead(tmp_path: Path) -> None:
    """As the kernel has it: `sub/..` is the folder above the one that `sub` leads to."""
    (tmp_path / "other" / "dir").mkdir(parents=True)
    (tmp_path / "other" / "mnt").mkdir()
    (tmp_path / "sub").symlink_to("other/dir")
    (tmp_path / "m").symlink_to("sub/../mnt")
    (tmp_path / "u").symlink_to("sub/..")
    (tmp_path / "slash").symlink_to("other/mnt/")
    for name in ("m", "u", "slash"):
        assert mounts.resolve(tmp_path / name) == os.path.realpath(tmp_path / name), name


def test_a_mount_that_does_not_answer_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is stopped, say; whoever asks must not be, too."""
    released = threading.Event()
    monkeypatch.setattr(mounts, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(os, "statvfs", lambda _path: released.wait(30))
    assert not mounts.is_dead(tmp_path)
    released.set()


def test_a_folder_is_not_a_stale_mount(tmp_path: Path) -> None:
    """Nothing is unmounted that optfs didn't leave behind."""
    assert not mounts.recover_stale(tmp_path)


def test_an_unusable_binding_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto`, libfuse 3, the preferred one."""
    monkeypatch.setattr(bindings, "_library", lambda _binding: None)
    for choice in ("fuse3", "auto"):
        with pytest.raises(errors.MountError, match="libfuse3-3"):
            bindings.choose(choice)
    with pytest.raises(errors.MountError, match="libfuse2"):
        bindings.choose("fuse2")


@pytest.mark.parametrize(("helper", "usable"), [("fusermount", "fuse2"), ("fusermount3", "fuse3")])
def test_a_binding_needs_the_helper_that_its_library_runs(helper: str, usable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For libfuse 2 that is `fusermount` alone; root mounts without one."""
    monkeypatch.setattr(bindings, "_library", lambda binding: f"lib{binding}")
    monkeypatch.setattr(os, "access", lambda _path, _mode: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == helper else None)
    for user, found in ((1000, {usable}), (0, set(bindings.BINDINGS))):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert {binding for binding, each in bindings.available().items() if each.usable} == found


def test_allow_other_needs_leave_unless_root_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`user_allow_other` in /etc/fuse.conf, not in a comment."""
    config = tmp_path / "fuse.conf"
    config.write_text("#user_allow_other\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(errors.MountError, match="user_allow_other"):
        mounting.check_allow_other(config)
    config.write_text("# ours\nuser_allow_other\n")
    mounting.check_allow_other(config)
    config.write_text("")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mounting.check_allow_other(config)


@pytest.mark.parametrize(("text", "nanos"), [(".123", 123_000_000), (".001", 1_000_000), (".999999", 999_999_000), (".0", 0)])
def test_times_are_shown_to_the_microsecond_that_the_listing_tells(text: str, nanos: int) -> None:
    """A float's rounding showed .123 as .122999906, which is .122 to a program that cuts to milliseconds."""
    shown = _Stat.from_buffer_copy(StatLayout(_Stat).pack(_file("1")._replace(mtime=float(f"1763000000{text}"))))
    assert (shown.st_mtimespec.tv_sec, shown.st_mtimespec.tv_nsec) == (1_763_000_000, nanos)


@pytest.mark.parametrize("lengths", [[], [0], [1, 0, 5], [UNLOCKED - 1, UNLOCKED, 3], [UNLOCKED + 1, 2 * UNLOCKED]], ids=str)
def test_pieces_are_copied_one_behind_the_other(lengths: list[int]) -> None:
    """Long and short ones, and parts of one buffer; nothing is written behind them."""
    whole = os.urandom(sum(lengths) + 1)
    views, at = [], 0
    for length in lengths:
        views.append(memoryview(whole).toreadonly()[at : at + length])
        at += length
    target = ctypes.create_string_buffer(b"x" * (at + 2), at + 2)
    join(views, ctypes.addressof(target))
    assert target.raw == whole[:at] + b"xx"


def test_attributes_are_packed_where_c_expects_them() -> None:
    """Through each binding's own structure, times included."""
    attributes = Attributes(stat.S_IFREG | 0o444, 5_000_000_000, 1_700_000_000.25, 2**62, 1, 9_765_625, 7, 8, "v")
    for binding, found in bindings.available().items():
        if not found.usable:
            continue
        bindings.load(binding)
        structure = sys.modules["mfusepy" if binding == "fuse3" else "fuse"].c_stat
        shown = structure.from_buffer_copy(StatLayout(structure).pack(attributes))
        assert (shown.st_mode, shown.st_size, shown.st_ino, shown.st_nlink) == (attributes.mode, attributes.size, attributes.ino, 1)
        assert (shown.st_blocks, shown.st_uid, shown.st_gid) == (9_765_625, 7, 8)
        for time in (shown.st_mtimespec, shown.st_atimespec, shown.st_ctimespec):
            assert (time.tv_sec, time.tv_nsec) == (1_700_000_000, 250_000_000)


def _file(version: str | None) -> Attributes:
    return Attributes(stat.S_IFREG | 0o444, 10, 0.0, 1, 1, 1, 0, 0, version)


def _handlers(filesystem: Any, clock: Clock | None = None, lifetime: float = 0.0) -> Handlers:
    clock = clock or Clock()
    core = Core(filesystem, KernelCache(lifetime, clock, clock.pause), ErrorReporter(), lambda: None)
    structures = SimpleNamespace(c_stat=_Stat, fuse_file_info=_Info, c_statvfs=ctypes.Structure)
    return Handlers(core, structures, lambda: 0, listed=True)


@pytest.mark.parametrize("lacking", ["opened", "outdated"])
def test_an_open_that_finds_no_memory_is_closed_again(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel won't: it was given no handle."""
    closed: list[int] = []
    handlers = _handlers(SimpleNamespace(open=lambda _name: (7, "1", 10), close=closed.append))
    info, path = _Info(), ctypes.create_string_buffer(b"/f")

    def starve(*_arguments: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as starved:
        starved.setattr(KernelCache, lacking, starve)
        with pytest.raises(MemoryError):
            handlers.open(ctypes.addressof(path), ctypes.addressof(info))
    assert closed == [7]
    assert not handlers.core.kernel.opened("/f", "2", 10, 8).direct_io


def test_a_read_that_ends_where_the_kernel_knows_a_longer_version_fails() -> None:
    """The kernel would fill up with zeros to the newer version's size."""
    clock = Clock()
    handlers = _handlers(SimpleNamespace(read=lambda _handle, _offset, size: [memoryview(b"0123456789")[:size]]), clock)
    handlers.core.kernel.opened("/f", "1", 10, 7)
    info = _Info(fh=7)
    assert handlers.bytes_of(20, 0, ctypes.addressof(info))[1] == 10
    handlers.core.kernel.told("/f", "2", 15, lambda: 0)
    with pytest.raises(errors.VersionGone):  # too soon
        handlers.bytes_of(5, 0, ctypes.addressof(info))
    clock.now += 1
    assert handlers.bytes_of(10, 0, ctypes.addressof(info))[1] == 10
    with pytest.raises(errors.VersionGone):
        handlers.bytes_of(20, 0, ctypes.addressof(info))


def test_a_read_that_waits_for_what_a_shorter_version_lacks_gives_up() -> None:
    """Who asks for that version's attributes waits for it. Others don't ask the store for such bytes at all."""
    asked: list[int] = []

    def read(_handle: int, offset: int, _size: int) -> list[memoryview]:
        asked.append(offset)
        assert not filesystem.abandoned()
        threading.Thread(target=kernel.told, args=("/f", "2", 5, lambda: 0)).start()
        while not filesystem.abandoned():
            pass
        raise errors.Abandoned("as a wait for the store does")

    filesystem = SimpleNamespace(read=read)
    handlers = _handlers(filesystem)
    kernel = handlers.core.kernel
    kernel.opened("/f", "1", 10, 7)
    info = _Info(fh=7)
    for offset in (2, 3):
        with pytest.raises(errors.VersionGone):
            handlers.bytes_of(8, offset, ctypes.addressof(info))
    assert asked == [2]


def test_a_read_of_a_program_that_is_killed_gives_up_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its file is."""

    def read(_handle: int, _offset: int, _size: int) -> list[memoryview]:
        raise errors.Abandoned("as a wait for the store does")

    handlers = _handlers(SimpleNamespace(read=read))
    handlers.core.kernel.opened("/f", "1", 10, 7)
    monkeypatch.setattr(bridge_handlers, "killed", lambda _caller: True)
    with pytest.raises(errors.Abandoned):
        handlers.bytes_of(8, 0, ctypes.addressof(_Info(fh=7)))
