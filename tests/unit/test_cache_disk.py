"""The block cache on disk, as the reading layer sees it."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from optfs.cache import disk, handover, writer
from optfs.cache.folder import BLOCKS, Folder
from optfs.cache.health import RETRY, Health
from optfs.cache.protocol import BlockKey
from optfs.units import FreeFloor
from optfs.values import KiB, MiB, ObjectInfo
from tests.support.caches import BLOCK, URI, WAIT, HandClock, block_key, content, disk_usage, file_of, fill, held, make_cache


def stick(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let no write of a block go on; return what lets them, and what tells that there is one."""
    free, reached = threading.Event(), threading.Event()
    write = Folder.write

    def wait_and_write(self: Folder, name: str, pieces: Iterable[tuple[int, bytes | memoryview]], now: float) -> bool:
        reached.set()
        free.wait(WAIT)
        return write(self, name, pieces, now)

    monkeypatch.setattr(Folder, "write", wait_and_write)
    return free, reached


def test_a_block_comes_back(tmp_path: Path) -> None:
    """What was put is read, as bytes."""
    cache = make_cache(tmp_path)
    assert cache.get(block_key(0)) is None
    fill(cache, block_key(0))
    data = cache.get(block_key(0))
    assert isinstance(data, bytes)
    assert data == content(block_key(0))
    cache.close()
    stats = cache.stats()
    assert (stats.state, stats.stored, stats.stored_bytes) == ("on", 1, BLOCK)


def test_a_block_is_read_to_where_it_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And checked there: one that is damaged is none."""
    cache, key = make_cache(tmp_path), block_key(0)
    fill(cache, key)
    buffer = bytearray(b"\xa5" * key.length)
    assert cache.get(key, buffer) is buffer
    assert buffer == content(key)
    path = file_of(tmp_path, key)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert cache.get(key, buffer) is None
    assert "was damaged" in caplog.text
    cache.close()


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    """Another process, later, finds them; `close` writes what was taken."""
    cache = make_cache(tmp_path)
    keys = [block_key(number) for number in range(100)]
    for key in keys:
        cache.put(key, memoryview(content(key)))
    cache.close()
    again = make_cache(tmp_path)
    assert all(held(again, *keys))
    again.close()


@pytest.mark.parametrize(
    "other",
    [
        block_key(0, version="newer"),
        block_key(0, uri="s3://bucket/other"),
        block_key(1),
        BlockKey(URI, "etag", 5 << 30, 0, BLOCK),
        block_key(0, BLOCK // 2),
    ],
)
def test_another_identity_is_a_miss(tmp_path: Path, other: BlockKey) -> None:
    """Version, object, size and range all belong to the identity."""
    cache = make_cache(tmp_path)
    fill(cache, block_key(0))
    assert cache.get(other) is None
    cache.close()


def test_the_least_recently_used_block_goes_first(tmp_path: Path) -> None:
    """A block that was stored first but read since stays; the next oldest goes."""
    wall, clock = HandClock(), HandClock()
    cache = make_cache(tmp_path, limit=5 * MiB - 100 * KiB, wall=wall, clock=clock)
    keys = [block_key(number, MiB) for number in range(5)]
    for key in keys[:4]:
        wall.now += 1
        fill(cache, key)
    wall.now += 1
    assert held(cache, keys[0]) == [True]
    assert cache.flush(WAIT)
    wall.now += 1
    fill(cache, keys[4])
    assert held(cache, *keys) == [True, False, True, True, True]
    assert cache.stats().evicted == 1
    cache.close()


def test_a_use_is_noted_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a block again and again doesn't write to the index each time."""
    clock = HandClock()
    cache = make_cache(tmp_path, clock=clock)
    fill(cache, block_key(0))
    touched: list[list[tuple[str, float]]] = []
    monkeypatch.setattr("optfs.cache.index.BlockIndex.touch", lambda _, uses: touched.append(list(uses)))
    for _ in range(3):
        assert held(cache, block_key(0)) == [True]
        assert cache.flush(WAIT)
    assert len(touched) == 1
    clock.now += 61
    assert held(cache, block_key(0)) == [True]
    assert cache.flush(WAIT)
    assert len(touched) == 2
    cache.close()


@pytest.mark.parametrize("limit", [MiB, 3 * MiB])
def test_the_limit_is_never_passed(tmp_path: Path, limit: int) -> None:
    """After each put the folder, as du sees it, is within the limit, also for a block as large as the limit."""
    choose = random.Random(limit)
    cache = make_cache(tmp_path, limit=limit)
    assert cache.flush(WAIT)
    for number in range(80):
        fill(cache, block_key(number, choose.choice([1, 5000, 128 * KiB, 700 * KiB, MiB, 3 * MiB])))
        assert disk_usage(tmp_path / BLOCKS) <= limit
    stats = cache.stats()
    assert stats.evicted > 0
    assert stats.size > limit // 4
    cache.close()


def test_many_small_blocks_stay_within_the_limit(tmp_path: Path) -> None:
    """The index and the folders count too, where blocks are many and small."""
    cache = make_cache(tmp_path, limit=4 * MiB)
    for batch in range(12):
        fill(cache, *(block_key(batch * 200 + number, 100) for number in range(200)))
        assert disk_usage(tmp_path / BLOCKS) <= 4 * MiB
    assert cache.stats().evicted > 0
    cache.close()


def test_a_lowered_limit_is_reached_at_the_start(tmp_path: Path) -> None:
    """A cache that was larger shrinks when it is opened and used."""
    cache = make_cache(tmp_path, limit=8 * MiB)
    fill(cache, *(block_key(number, MiB) for number in range(6)))
    cache.close()
    smaller = make_cache(tmp_path, limit=3 * MiB)
    assert smaller.flush(WAIT)
    assert disk_usage(tmp_path / BLOCKS) <= 3 * MiB
    smaller.close()


def test_the_free_space_floor_is_kept(tmp_path: Path) -> None:
    """Old blocks go, or new ones are dropped, rather than fewer than the floor's bytes staying free."""
    total = 8 * MiB
    lowest = [total]

    def space(folder: Folder) -> tuple[int, int]:
        free = total - disk_usage(folder.path)
        lowest.append(free)
        return free, total

    cache = make_cache(tmp_path, min_free=FreeFloor(fraction=0.5), statvfs=space)
    for number in range(12):
        fill(cache, block_key(number, 512 * KiB))
        lowest.append(total - disk_usage(tmp_path / BLOCKS))
    assert min(lowest) >= total // 2
    assert held(cache, block_key(11, 512 * KiB)) == [True]
    cache.close()


def test_mounts_that_share_a_folder_keep_the_free_space_floor_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one was promised room for, and hasn't written yet, the other doesn't take for free."""

    def space(folder: Folder) -> tuple[int, int]:
        return 8 * MiB - disk_usage(folder.path), 8 * MiB

    keys = [block_key(number, 2 * MiB) for number in range(2)]
    one, two = (make_cache(tmp_path, min_free=FreeFloor(size=5 * MiB), statvfs=space) for _ in range(2))
    assert two.flush(WAIT)
    with monkeypatch.context() as patch:
        free, reached = stick(patch)
        one.put(keys[0], memoryview(content(keys[0])))
        assert reached.wait(WAIT)
        two.put(keys[1], memoryview(content(keys[1])))
        assert two.flush(WAIT / 6)  # it drops the block: had it taken it, it would be stuck, too
        free.set()
        assert one.flush(WAIT)
    assert 8 * MiB - disk_usage(tmp_path / BLOCKS) >= 5 * MiB
    assert held(one, *keys) == [True, False]
    fill(two, keys[1])
    assert held(one, *keys) == [False, True]
    one.close()
    two.close()


def test_nothing_is_stored_where_others_hold_the_disk(tmp_path: Path) -> None:
    """Below the floor with nothing left to evict, blocks are dropped, and nothing is reported as broken."""
    cache = make_cache(tmp_path, min_free=FreeFloor(size=1000), statvfs=lambda _: (999, 10_000_000))
    fill(cache, block_key(0))
    assert held(cache, block_key(0)) == [False]
    assert (cache.stats().dropped, cache.stats().state) == (1, "on")
    cache.close()


def test_put_waits_a_moment_for_a_stuck_disk_and_holds_no_more_than_the_backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is stuck, blocks beyond the backlog are dropped, and those within are written later."""
    free, _ = stick(monkeypatch)
    cache = make_cache(tmp_path, backlog=2 * BLOCK)
    keys = [block_key(number) for number in range(4)]
    for key in keys:
        cache.put(key, memoryview(content(key)))
    assert cache.stats().dropped == 2
    free.set()
    assert cache.flush(WAIT)
    assert held(cache, *keys) == [True, True, False, False]
    fill(cache, keys[3])
    assert held(cache, keys[3]) == [True]
    cache.close()


def test_a_block_offered_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same block from two readers is written once, and gives back the backlog it took."""
    free, reached = stick(monkeypatch)
    cache = make_cache(tmp_path, backlog=3 * BLOCK)
    cache.put(block_key(0), memoryview(content(block_key(0))))
    assert reached.wait(WAIT)
    for _ in range(2):
        cache.put(block_key(1), memoryview(content(block_key(1))))
    free.set()
    assert cache.flush(WAIT)
    assert (cache.stats().stored, cache.stats().dropped) == (2, 1)
    free.clear()
    for number in range(2, 5):
        cache.put(block_key(number), memoryview(content(block_key(number))))
    free.set()
    assert cache.flush(WAIT)
    assert held(cache, *(block_key(number) for number in range(5))) == [True] * 5
    cache.close()


def test_what_another_mount_is_writing_is_left_to_it(tmp_path: Path) -> None:
    """A fresh temporary file beside a row means that the block is on its way; an old one that its writer was killed."""
    wall = HandClock()
    cache = make_cache(tmp_path, wall=wall)
    fill(cache, block_key(0))
    path = file_of(tmp_path, block_key(0))
    temporary = path.rename(path.with_name(path.name + ".tmp"))
    os.utime(temporary, (wall.now, wall.now))
    fill(cache, block_key(0))
    assert (path.exists(), temporary.exists()) == (False, True)
    wall.now += 61
    fill(cache, block_key(0))
    assert (path.exists(), temporary.exists()) == (True, False)
    assert held(cache, block_key(0)) == [True]
    cache.close()


def test_buffers_are_let_go(tmp_path: Path) -> None:
    """Once a block is written nothing refers to its buffer: an exported one couldn't be resized."""
    cache = make_cache(tmp_path)
    buffers = [bytearray(content(block_key(number))) for number in range(3)]
    for number, buffer in enumerate(buffers):
        cache.put(block_key(number), memoryview(buffer))
    assert cache.flush(WAIT)
    for buffer in buffers:
        buffer.append(0)
    cache.close()


def test_cached_bytes_counts_each_byte_of_a_version_once(tmp_path: Path) -> None:
    """Pieces and blocks may overlap; other versions don't count."""
    cache = make_cache(tmp_path)
    keys = [BlockKey(URI, "etag", 1000, *piece) for piece in ((0, 100), (50, 100), (500, 10))]
    fill(cache, *keys, BlockKey(URI, "older", 1000, 0, 1000))
    assert cache.cached_bytes(URI, ObjectInfo("key", 1000, 0.0, "etag", "aws")) == 160
    assert cache.cached_bytes(URI, ObjectInfo("key", 1000, 0.0, "none", "aws")) == 0
    cache.close()


def test_two_mounts_share_a_folder(tmp_path: Path) -> None:
    """A block stored by one is read by the other, and one's eviction is the other's miss, not damage."""
    one, two = make_cache(tmp_path), make_cache(tmp_path)
    fill(one, block_key(0))
    assert held(two, block_key(0)) == [True]
    small = make_cache(tmp_path, limit=MiB)
    fill(small, *(block_key(number, 256 * KiB) for number in range(1, 6)))
    assert held(two, block_key(0)) == [False]
    assert two.stats().damaged == 0
    for cache in (one, two, small):
        cache.close()


def test_a_block_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A second put of the same block leaves the file alone."""
    cache = make_cache(tmp_path)
    fill(cache, block_key(0))
    before = file_of(tmp_path, block_key(0)).stat().st_ino
    fill(cache, block_key(0))
    assert file_of(tmp_path, block_key(0)).stat().st_ino == before
    cache.close()


def test_a_file_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    """A missing file is a miss, and the next put stores it."""
    cache = make_cache(tmp_path)
    fill(cache, block_key(0))
    file_of(tmp_path, block_key(0)).unlink()
    assert held(cache, block_key(0)) == [False]
    fill(cache, block_key(0))
    assert held(cache, block_key(0)) == [True]
    cache.close()


def test_files_are_private_and_marked_as_a_cache(tmp_path: Path) -> None:
    """Folder 0700, files 0600, whatever the umask; the tag keeps backups away."""
    before = os.umask(0)
    try:
        cache = make_cache(tmp_path / "new" / "cache")
        fill(cache, block_key(0))
        cache.close()
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "cache" / BLOCKS
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    modes = {path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")] if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}


def test_a_use_after_close_is_harmless(tmp_path: Path) -> None:
    """Late calls are misses."""
    cache = make_cache(tmp_path)
    fill(cache, block_key(0))
    cache.close()
    cache.close()
    cache.put(block_key(1), memoryview(content(block_key(1))))
    assert cache.get(block_key(0)) is None


def test_close_does_not_wait_for_a_stuck_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that hangs doesn't hang the end of the mount."""
    free, reached = stick(monkeypatch)
    monkeypatch.setattr(disk, "_CLOSE_LIMIT", 0.1)
    cache = make_cache(tmp_path)
    cache.put(block_key(0), memoryview(content(block_key(0))))
    assert reached.wait(WAIT)
    cache.close()
    assert not free.is_set()
    free.set()
    assert cache.flush(WAIT)


def test_a_block_of_the_wrong_length_is_dropped(tmp_path: Path) -> None:
    """Data that can't be the key's isn't stored."""
    cache = make_cache(tmp_path)
    cache.put(block_key(0), memoryview(b"short"))
    assert cache.flush(WAIT)
    assert (cache.get(block_key(0)), cache.stats().dropped) == (None, 1)
    cache.close()


def test_size_zero_turns_the_cache_off(tmp_path: Path) -> None:
    """`--cache-size 0`: there is none, and no folder is made."""
    assert disk.open_cache(tmp_path / "cache", limit=0, min_free=FreeFloor()) is None
    assert not (tmp_path / "cache").exists()


def test_a_size_that_the_empty_cache_would_pass_turns_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit that folders and index alone would pass is refused with a warning."""
    assert disk.open_cache(tmp_path / "cache", limit=1000, min_free=FreeFloor()) is None
    assert "--cache-size" in caplog.text


def test_open_cache_returns_a_working_one(tmp_path: Path) -> None:
    """With real clocks and the file system's own figures."""
    cache = disk.open_cache(tmp_path, limit=8 * MiB, min_free=FreeFloor())
    assert isinstance(cache, disk.DiskCache)
    fill(cache, block_key(0))
    assert held(cache, block_key(0)) == [True]
    cache.close()


class _Starved:
    """Stands for something that finds no memory, or fails otherwise, at its first use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: type[Exception] = MemoryError) -> None:
        self.failed = False
        real: Callable[..., object] = getattr(owner, name)

        def starve(*arguments: object, **keywords: object) -> object:
            if not self.failed:
                self.failed = True
                raise error
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, starve)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(handover, "Batch"), (writer, "block_name"), (Health, "works"), (Folder, "write")],
    ids=["take", "begin", "end", "write"],
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_want_of_memory_turns_writing_off_for_a_while(
    tmp_path: Path, owner: object, name: str, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the writer finds none, also to say so: nobody waits for it, the status tells, and later all works again."""
    monkeypatch.setattr(writer, "_PAUSE", 0.01)
    monkeypatch.setattr(handover, "PATIENCE", WAIT)
    clock = HandClock()
    cache = make_cache(tmp_path, backlog=2 * BLOCK, clock=clock)
    assert cache.flush(WAIT)
    with monkeypatch.context() as patch:
        starved = [_Starved(patch, owner, name)]
        if twice:
            starved.append(_Starved(patch, Health, "failed"))
        start = time.monotonic()
        cache.put(block_key(0), memoryview(content(block_key(0))))
        while cache.stats().state == "on" and time.monotonic() < start + WAIT / 2:
            time.sleep(0.001)
        assert all(each.failed for each in starved)
        assert "no memory" in cache.stats().state
        for number in range(1, 6):
            cache.put(block_key(number), memoryview(content(block_key(number))))
        assert time.monotonic() < start + WAIT
    clock.now += RETRY
    fill(cache, block_key(6), block_key(7))
    assert held(cache, block_key(6), block_key(7)) == [True, True]
    assert cache.stats().state == "on"
    cache.close()


@pytest.mark.log_errors
def test_a_bug_outside_of_writing_is_logged_once_and_ends_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one within."""
    monkeypatch.setattr(writer, "_PAUSE", 0.01)
    clock = HandClock()
    cache = make_cache(tmp_path, clock=clock)
    assert cache.flush(WAIT)
    _Starved(monkeypatch, handover, "Batch", KeyError)
    fill(cache, block_key(0))
    assert cache.stats().state == "unexpected KeyError, see the log"
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    clock.now += RETRY
    fill(cache, block_key(1))
    assert held(cache, block_key(1)) == [True]
    cache.close()
