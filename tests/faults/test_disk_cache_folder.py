"""Harm to the block cache's folder and disk: links and pipes in the way, wrong owners, removed folders, full and broken disks.

Whatever happens, a block is right or missing, nothing is raised, nothing outside of the folder is touched, and all recovers.
"""

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optfs.cache.folder import BLOCKS
from optfs.cache.maintenance import verify_cache
from optfs.values import KiB, MiB
from tests.support.caches import ALL, KEYS, NONE, WAIT, HandClock, block_key, file_of, fill, held, index_of, make_cache, warnings


def test_a_link_in_place_of_a_block_is_not_followed(filled: Path, tmp_path: Path) -> None:
    """Not even to a sound copy of the block; the link goes, what it led to stays."""
    cache = make_cache(filled)
    path, outside = file_of(filled, KEYS[0]), tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    before = outside.read_bytes()
    assert held(cache, KEYS[0]) == [False]
    assert not path.is_symlink()
    fill(cache, KEYS[0])
    assert held(cache, KEYS[0]) == [True]
    assert outside.read_bytes() == before
    cache.close()


def test_a_link_in_the_way_of_a_write_is_not_followed(filled: Path, tmp_path: Path) -> None:
    """A planted temporary name leads a write nowhere."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    path = file_of(filled, block_key(100))
    path.with_name(path.name + ".tmp").symlink_to(outside)
    path.symlink_to(outside)
    fill(cache, block_key(100))
    assert held(cache, block_key(100)) == [True]
    assert outside.read_text() == "precious"
    cache.close()


def test_a_link_that_appears_just_before_a_write_is_not_followed(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The temporary file is always a new one: where something has its name, nothing is written."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    path = file_of(filled, block_key(100))
    path.with_name(path.name + ".tmp").symlink_to(outside)
    real = os.unlink
    monkeypatch.setattr(os, "unlink", lambda name, **kwargs: None if str(name).endswith(".tmp") else real(name, **kwargs))
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*ALL, False]
    assert outside.read_text() == "precious"
    assert len(warnings(caplog)) == 1
    cache.close()


def test_links_in_place_of_shards_and_index_are_not_followed(filled: Path, tmp_path: Path) -> None:
    """They are replaced by what belongs there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cache.db").write_text("precious")
    shutil.rmtree(file_of(filled, KEYS[0]).parent)
    file_of(filled, KEYS[0]).parent.symlink_to(outside)
    index_of(filled).unlink()
    index_of(filled).symlink_to(outside / "cache.db")
    cache = make_cache(filled)
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == ALL
    cache.close()
    assert not index_of(filled).is_symlink()
    assert [path.name for path in outside.iterdir()] == ["cache.db"]
    assert (outside / "cache.db").read_text() == "precious"


def test_a_fifo_in_place_of_a_block_does_not_hang(filled: Path) -> None:
    """What isn't a regular file is dropped."""
    cache = make_cache(filled)
    path = file_of(filled, KEYS[0])
    path.unlink()
    os.mkfifo(path)
    assert held(cache, KEYS[0]) == [False]
    assert not path.exists()
    cache.close()


def plant_directory(path: Path) -> None:
    """Put a directory with something in it where a file is or would be."""
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("precious")


def kept_aside(folder: Path) -> list[str]:
    """Return what lies in the directories that were put aside."""
    return [path.read_text() for path in (folder / BLOCKS).glob("aside-*/inside")]


def test_a_directory_in_place_of_a_block_costs_that_block_alone(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is put aside with what it holds; all other blocks stay readable, and the block is stored again. One warning."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    size = cache.stats().size
    plant_directory(file_of(filled, KEYS[0]))
    assert held(cache, *KEYS) == [False, *ALL[1:]]
    assert cache.flush(WAIT)
    fill(cache, KEYS[0])
    assert held(cache, *KEYS) == ALL
    assert (cache.stats().state, cache.stats().size) == ("on", size)
    assert kept_aside(filled) == ["precious"]
    assert len(warnings(caplog)) == 1
    cache.close()


def test_directories_in_the_way_of_a_write_are_put_aside(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those with the name of the block, and of its temporary file."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    path = file_of(filled, block_key(100))
    plant_directory(path)
    plant_directory(path.with_name(path.name + ".tmp"))
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*ALL, True]
    assert kept_aside(filled) == ["precious"] * 2
    assert not warnings(caplog)
    cache.close()


def test_a_directory_in_place_of_a_block_does_not_hinder_eviction(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes as the block would."""
    plant_directory(file_of(filled, KEYS[0]))
    cache = make_cache(filled, limit=2 * MiB, wall=HandClock(2_000_000.0))
    new = [block_key(number) for number in range(100, 130)]
    for key in new:
        fill(cache, key)
    assert held(cache, *KEYS[:2], new[-1]) == [False, False, True]
    assert kept_aside(filled) == ["precious"]
    assert not warnings(caplog)
    cache.close()


def test_an_immutable_damaged_block_costs_that_block_alone(
    filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be removed stays, as a miss and counted; all others stay readable, and eviction passes it over. One warning."""
    wall = HandClock(2_000_000.0)
    cache = make_cache(filled, limit=2 * MiB, wall=wall)
    assert cache.flush(WAIT)
    path = file_of(filled, KEYS[0])
    os.truncate(path, 1000)
    real = os.unlink

    def unlink(name: str, **where: int) -> None:
        if name == path.name:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(name, **where)

    monkeypatch.setattr(os, "unlink", unlink)
    for _ in range(2):
        assert held(cache, *KEYS) == [False, *ALL[1:]]
        fill(cache, KEYS[0])
    wall.now += 1000
    new = [block_key(number) for number in range(100, 130)]
    for key in new:
        fill(cache, key)
    assert held(cache, *KEYS[:2], new[-1]) == [False, False, True]
    assert (cache.stats().state, path.exists()) == ("on", True)
    assert len(warnings(caplog)) == 1
    cache.close()


def test_damaged_blocks_of_a_read_only_disk_cost_no_others(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a changed block nor a link in place of one: the disk can be read."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    os.truncate(file_of(filled, KEYS[0]), 1000)
    file_of(filled, KEYS[1]).unlink()
    file_of(filled, KEYS[1]).symlink_to(file_of(filled, KEYS[2]))

    def unlink(_name: str, **_where: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        for _ in range(2):
            assert held(cache, *KEYS) == [False, False, *ALL[2:]]
    cache.close()


def works_not(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Assert that a cache in this folder is off with one warning and raises nothing."""
    cache = make_cache(folder)
    fill(cache, *KEYS[:3])
    assert held(cache, *KEYS) == NONE
    assert reason in cache.stats().state
    cache.close()
    assert len(warnings(caplog)) == 1
    assert reason in warnings(caplog)[0]


def test_a_folder_that_others_may_write_to_is_not_used(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others could plant blocks."""
    (filled / BLOCKS).chmod(0o777)
    works_not(filled, caplog, "others may write")


def test_a_parent_that_others_may_write_to_is_not_used(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others could swap the folder."""
    filled.chmod(0o777)
    works_not(filled, caplog, "others may write")


@pytest.mark.parametrize("which", ["", BLOCKS, f"{BLOCKS}/a"])
def test_a_folder_that_others_may_write_to_while_running_is_not_used(filled: Path, which: str, caplog: pytest.LogCaptureFixture) -> None:
    """From the next write on nothing is written or read, with one warning; once it is mended all works again."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    (filled / which).chmod(0o777)
    for _ in range(2):
        fill(cache, block_key(100))
        assert not file_of(filled, block_key(100)).exists()
        assert held(cache, *KEYS) == NONE
        assert "others may write" in cache.stats().state
        clock.now += 31
    assert len(warnings(caplog)) == 1
    (filled / which).chmod(0o700)
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*ALL, True]
    assert cache.stats().state == "on"
    assert len(warnings(caplog)) == 1
    cache.close()


def test_a_folder_that_becomes_another_users_while_running_is_not_used(
    filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner could plant blocks."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*NONE, False]
    assert ["another user" in each for each in warnings(caplog)] == [True]
    cache.close()


def test_a_folder_that_others_may_only_read_is_closed_to_them(filled: Path) -> None:
    """0755 becomes 0700."""
    (filled / BLOCKS).chmod(0o755)
    cache = make_cache(filled)
    assert held(cache, *KEYS) == ALL
    assert (filled / BLOCKS).stat().st_mode & 0o777 == 0o700
    cache.close()


def test_another_users_folder_is_not_used(filled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could plant blocks."""
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    works_not(filled, caplog, "another user")


def test_a_link_is_not_used_as_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the cache folder nor the one of blocks may be a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / BLOCKS).symlink_to(tmp_path / "real")
    works_not(tmp_path / "cache", caplog, "not a folder")
    caplog.clear()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    works_not(tmp_path / "link", caplog, "not a folder")
    assert not list((tmp_path / "real").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the way turns the cache off."""
    (tmp_path / "file").write_text("")
    works_not(tmp_path / "file" / "cache", caplog, "Not a directory")


def test_a_folder_removed_while_running_is_made_anew(filled: Path) -> None:
    """Misses, then a new folder with the next block."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    shutil.rmtree(filled)
    assert held(cache, *KEYS) == NONE
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == ALL
    assert file_of(filled, KEYS[0]).exists()
    cache.close()


def test_a_folder_moved_away_while_running_is_made_anew(filled: Path) -> None:
    """Blocks go where the configuration says, not into a folder that somebody put aside."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    aside = filled.rename(filled.with_name("aside"))
    fill(cache, block_key(100))
    assert file_of(filled, block_key(100)).exists()
    assert not file_of(aside, block_key(100)).exists()
    assert held(cache, KEYS[0], block_key(100)) == [False, True]
    cache.close()


def test_a_shard_removed_while_running_is_made_anew(filled: Path) -> None:
    """One subfolder gone costs its blocks only, and they can be stored again."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    shutil.rmtree(file_of(filled, KEYS[0]).parent)
    assert held(cache, KEYS[0]) == [False]
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == ALL
    cache.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_a_failing_disk_turns_writing_off_for_a_while(
    filled: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there stays readable; one warning; no attempts in between; all works once the disk does."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    real, attempts = os.pwrite, []

    def fail(fd: int, _piece: object, _offset: int) -> int:
        attempts.append(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    for _ in range(5):
        fill(cache, block_key(100), block_key(101))
    assert len(attempts) == 1
    clock.now += 31
    fill(cache, block_key(100))
    assert len(attempts) == 2
    assert held(cache, *KEYS, block_key(100)) == [*ALL, False]
    assert os.strerror(number) in cache.stats().state
    assert len(warnings(caplog)) == 1
    monkeypatch.setattr(os, "pwrite", real)
    clock.now += 31
    fill(cache, block_key(101), block_key(102))
    assert held(cache, *(block_key(number) for number in (100, 101, 102))) == [False, True, True]
    assert cache.stats().state == "on"
    cache.close()
    report = verify_cache(filled)
    assert (report.checked, report.orphans, report.rows) == (len(KEYS) + 2, 0, 0)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the system cuts is continued where it stopped, in the header or in the data."""
    real, cuts = os.pwrite, itertools.cycle([3, 500, 70_000, 1, 7])
    monkeypatch.setattr(os, "pwrite", lambda fd, piece, offset: real(fd, piece[: next(cuts)], offset))
    cache = make_cache(tmp_path)
    fill(cache, *KEYS[:3])
    assert held(cache, *KEYS[:3]) == [True] * 3
    cache.close()


def test_a_limit_of_the_system_on_file_sizes(tmp_path: Path) -> None:
    """A write cut by the kernel itself (EFBIG) leaves no file, and small blocks are still read."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.support.caches import *\n"
        "cache = make_cache(Path(sys.argv[1]))\n"
        "fill(cache, block_key(0), block_key(1, 1024 * 1024))\n"
        "assert held(cache, block_key(0), block_key(1, 1024 * 1024)) == [True, False]\n"
        "assert 'File too large' in cache.stats().state, cache.stats()\n"
        "cache.close()\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 * KiB, 512 * KiB))

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        preexec_fn=limit,
        timeout=60,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len([path for path in (tmp_path / BLOCKS).rglob("*") if path.is_file()]) == 3  # the tag, the index, one block


def test_a_disk_that_cannot_be_read(filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """EIO is a miss and one warning; with a disk that works again, blocks come back."""
    cache = make_cache(filled)
    real = os.pread

    def fail(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    assert held(cache, *KEYS) == NONE
    monkeypatch.setattr(os, "pread", real)
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == ALL
    assert len(warnings(caplog)) == 1
    cache.close()


def test_a_disk_that_can_be_neither_read_nor_changed(
    filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading is given up for a while, so that a dead disk doesn't slow every read; then it is tried again."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    real_open, real_unlink, attempts = os.open, os.unlink, []

    def fail(path: object, *args: object, **kwargs: object) -> int:
        attempts.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        patch.setattr(os, "unlink", fail)
        assert held(cache, *KEYS) == NONE
        assert cache.flush(WAIT)
        tried = len(attempts)
        assert held(cache, *KEYS) == NONE
        assert len(attempts) == tried
    assert (os.open, os.unlink) == (real_open, real_unlink)
    assert "Input/output error" in cache.stats().state
    clock.now += 31
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == ALL
    assert cache.stats().state == "on"
    assert len(warnings(caplog)) == 2  # the block's, and the disk's
    cache.close()


@pytest.mark.log_errors
def test_a_bug_in_the_writer_costs_no_read(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an exception that nobody foresaw ends neither the thread nor a reader."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    with monkeypatch.context() as patch:
        patch.setattr("optfs.cache.room.to_evict", lambda **_: 1 / 0)
        fill(cache, block_key(100))
        assert held(cache, *KEYS) == ALL
    clock.now += 31
    fill(cache, block_key(100))
    assert held(cache, block_key(100)) == [True]
    cache.close()
