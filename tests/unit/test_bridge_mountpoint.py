"""What is said of a mount point that can't be used: what is wrong, and a command that can be pasted."""

import os
from pathlib import Path

import pytest

from optfs.bridge import mounting, mounts
from optfs.errors import ConfigError, MountBusy, MountError


def refusal(path: Path) -> str:
    """Return what is said of a mount point that is wrong usage."""
    with pytest.raises(ConfigError) as failed:
        mounting.check_mountpoint(str(path))
    return failed.value.message.removeprefix(f"{path} ")


def test_a_mount_point_must_be_an_existing_folder(tmp_path: Path) -> None:
    mounting.check_mountpoint(str(tmp_path))
    assert refusal(tmp_path / "missing") == f"doesn't exist; make it: mkdir -p {tmp_path}/missing"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == "isn't a folder; mount at one"


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/self", "/sys", "/dev", "/usr", "/etc", "/bin", "/lib", "/usr/sbin"])
def test_what_the_machine_needs_is_not_hidden(path: str) -> None:
    """Root could; and upon /proc a mount was made that nobody could find, as the table of mounts is there."""
    resolved = mounts.resolve(path)
    with pytest.raises(ConfigError, match=f"at {resolved} would hide what the machine needs"):
        mounting.check_mountpoint(resolved)


def test_a_mount_point_that_cannot_be_looked_at_is_wrong_usage(tmp_path: Path) -> None:
    """As a missing one is; what can't be made is not to be made."""
    assert refusal(tmp_path / ("long" * 100)) == "can't be looked at: File name too long"
    (tmp_path / "round").symlink_to("round")
    assert refusal(tmp_path / "round") == "can't be looked at: Too many levels of symbolic links"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "below") == "can't be looked at: Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_mount_point_below_a_folder_that_one_may_not_enter_is_wrong_usage(tmp_path: Path) -> None:
    tmp_path.chmod(0o600)
    try:
        assert refusal(tmp_path / "mnt") == "can't be looked at: Permission denied"
    finally:
        tmp_path.chmod(0o700)


def test_names_in_commands_are_quoted_for_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "two words"
    assert refusal(path) == f"doesn't exist; make it: mkdir -p '{path}'"
    monkeypatch.setattr(mounts, "find", lambda _: mounts.Mount(str(path), mounts.FSTYPE, "optfs#1", "0:1"))
    with pytest.raises(MountError, match=f"optfs umount '{path}'$"):
        mounting.check_mountpoint(str(path))


@pytest.mark.parametrize(("ours", "command"), [(True, "optfs umount"), (False, "fusermount3 -u -z")])
def test_below_a_dead_mount_the_dead_mount_is_named(ours: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder below, where nothing is mounted; and the command unmounts it."""
    dead = tmp_path / "m"
    monkeypatch.setattr(mounts, "is_dead", lambda path: Path(path).is_relative_to(dead))
    monkeypatch.setattr(
        mounts, "find", lambda path: mounts.Mount(str(dead), mounts.FSTYPE, "", "0:1") if ours and Path(path) == dead else None
    )
    with pytest.raises(MountError) as failed:
        mounting.check_mountpoint(str(dead / "sub" / "deep"))
    assert failed.value.message == f"{dead} is left over from a mount whose process has ended; unmount it: {command} {dead}"


def test_a_dead_mount_that_goes_while_it_is_looked_at_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True])
    monkeypatch.setattr(mounts, "is_dead", lambda _path: next(answers, False))
    with pytest.raises(MountError, match="is left over"):
        mounting.check_mountpoint(str(tmp_path))
    mounting.check_mountpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("fusermount3: failed to unmount {}: Device or resource busy", MountBusy),
        ("umount: {}: target is busy.\n        (fuser(1) tells by whom.)", MountBusy),
        ("fusermount3: entry for {} not found in /etc/mtab", MountError),
        ("fusermount3: failed to unmount {}: Operation not permitted", MountError),
    ],
)
def test_a_mount_in_use_is_told_from_other_failures(
    said: str, kind: type[MountError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the helper's last words, not by a name among them."""
    path = tmp_path / "busy"
    for helper in ("fusermount3", "fusermount", "umount"):
        (tmp_path / helper).write_text(f"#!/bin/sh\necho '{said.format(path)}' >&2\nexit 1\n")
        (tmp_path / helper).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MountError, match="can't be unmounted: ") as failed:
        mounts.unmount(path)
    assert type(failed.value) is kind
