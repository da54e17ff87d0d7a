"""Harm to blocks and index of the block cache: killed processes, damaged, cut, planted and locked files.

Whatever happens, a block is right or missing, nothing is raised, and all recovers.
"""

import contextlib
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from optfs.cache.folder import BLOCKS, Folder
from optfs.cache.maintenance import verify_cache
from optfs.values import KiB, MiB
from tests.support.caches import (
    ALL,
    BLOCK,
    KEYS,
    WAIT,
    HandClock,
    block_key,
    content,
    disk_usage,
    file_of,
    fill,
    held,
    index_of,
    keys_in,
    make_cache,
    warnings,
)


@contextlib.contextmanager
def child(folder: Path, limit: int, first: int, length: int, stored: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that writes blocks; entered when it has stored some."""
    command = [sys.executable, "-m", "tests.support.cache_child", str(folder), str(limit), str(first), str(length)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= stored:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def test_after_kill_9_every_block_is_right_or_missing(tmp_path: Path) -> None:
    """A process killed while it writes leaves no wrong block, and what it left half-done is removed later."""
    for round_ in range(3):
        with child(tmp_path, 64 * MiB, round_ * 1000, 256 * KiB, 20) as process:
            process.kill()
            process.wait()
    cache = make_cache(tmp_path, wall=HandClock(time.time() + 1000))
    assert cache.flush(WAIT)
    found = held(cache, *keys_in(tmp_path, 256 * KiB))
    assert len(found) >= 20
    assert all(found)
    assert cache.stats().damaged == 0
    assert not list((tmp_path / BLOCKS).rglob("*.tmp"))
    fill(cache, block_key(5000))
    assert held(cache, block_key(5000)) == [True]
    cache.close()
    report = verify_cache(tmp_path, wall=lambda: time.time() + 2000)
    assert (report.damaged, report.orphans, report.rows) == (0, 0, 0)


def test_two_processes_stay_within_one_limit(tmp_path: Path) -> None:
    """Whenever both are stopped, the folder as du sees it is within the limit."""
    limit = 6 * MiB
    with child(tmp_path, limit, 0, 200 * KiB, 20) as one, child(tmp_path, limit, 100_000, 300 * KiB, 20) as two:
        for _ in range(15):
            for process in (one, two):
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
            assert MiB < disk_usage(tmp_path / BLOCKS) <= limit
            for process in (one, two):
                process.send_signal(signal.SIGCONT)
            time.sleep(random.uniform(0.005, 0.05))  # where it stops is arbitrary: the invariant holds everywhere
        assert (one.poll(), two.poll()) == (None, None)


def test_every_changed_byte_makes_a_miss(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever byte of a file changes, the block is missing, its file goes, and the next put brings it back. One warning for all."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)  # the first sweep would take the file that is put back for an orphan
    path = file_of(filled, KEYS[0])
    good = path.read_bytes()
    places = [*range(0, 220, 7), len(good) // 2, len(good) - 1]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 0x40
        path.write_bytes(bad)
        assert held(cache, KEYS[0]) == [False], place
        assert not path.exists()
        path.write_bytes(good)
    assert cache.flush(WAIT)
    assert cache.stats().damaged == len(places)
    assert len(warnings(caplog)) == 1
    path.unlink(missing_ok=True)
    fill(cache, KEYS[0])
    assert held(cache, *KEYS) == ALL
    cache.close()


@pytest.mark.parametrize("length", [0, 1, 50, 190, 1000, BLOCK])
def test_a_cut_file_makes_a_miss(filled: Path, length: int) -> None:
    """A file cut while the mount runs, anywhere, is dropped."""
    cache = make_cache(filled)
    os.truncate(file_of(filled, KEYS[0]), length)
    assert held(cache, *KEYS) == [False, *ALL[1:]]
    fill(cache, KEYS[0])
    assert held(cache, *KEYS) == ALL
    cache.close()


def test_a_longer_file_makes_a_miss(filled: Path) -> None:
    """Bytes behind the block are damage too; what is dropped no longer counts."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    size = cache.stats().size
    with file_of(filled, KEYS[0]).open("ab") as file:
        file.write(b"x")
    assert held(cache, KEYS[0]) == [False]
    assert cache.flush(WAIT)
    assert size - cache.stats().size >= BLOCK
    cache.close()


def test_nothing_is_mapped(filled: Path) -> None:
    """No file of the cache is mapped into memory: cutting a mapped one kills the process."""
    cache = make_cache(filled)
    assert held(cache, *KEYS) == ALL
    assert cache.flush(WAIT)
    assert str(filled) not in Path("/proc/self/maps").read_text()
    cache.close()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_an_index_cut_while_running_costs_no_read(filled: Path, fraction: float, caplog: pytest.LogCaptureFixture) -> None:
    """Blocks stay readable; after a while the index is made anew, with all files in it, and blocks are stored again."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    index = index_of(filled)
    os.truncate(index, int(index.stat().st_size * fraction))
    new = [block_key(number) for number in range(100, 104)]
    fill(cache, *new)
    assert held(cache, *KEYS) == ALL
    for _ in range(2):
        clock.now += 31
        fill(cache, *new)
    assert held(cache, *KEYS, *new) == ALL + [True] * 4
    assert cache.stats().state == "on"
    assert len(warnings(caplog)) <= 1
    cache.close()
    assert verify_cache(filled).checked == len(KEYS) + 4


def rubbish(index: Path) -> None:
    """Overwrite all."""
    index.write_bytes(random.Random(1).randbytes(index.stat().st_size))


def rubbish_inside(index: Path) -> None:
    """Overwrite what comes after the first page."""
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(2).randbytes(index.stat().st_size - 4096))


def without_tables(index: Path) -> None:
    """Leave a sound database that isn't an index."""
    index.unlink()
    with contextlib.closing(sqlite3.connect(index)) as connection:
        connection.execute("CREATE TABLE Settings (a)")
        connection.commit()


def rows_lost(index: Path) -> None:
    """Remove all rows, and tell wrong totals."""
    with contextlib.closing(sqlite3.connect(index)) as connection:
        connection.execute("DELETE FROM Cache")
        connection.execute("UPDATE Settings SET value = -5 WHERE key = 'size'")
        connection.commit()


@pytest.mark.parametrize("harm", [Path.unlink, rubbish, rubbish_inside, without_tables, rows_lost])
def test_a_broken_index_is_made_anew_with_all_blocks_in_it(filled: Path, harm: Callable[[Path], object]) -> None:
    """Whatever became of the index between two mounts, no block is lost, and the limit holds with those blocks counted."""
    harm(index_of(filled))
    cache = make_cache(filled, limit=2 * MiB)
    assert cache.flush(WAIT)
    assert cache.stats().size >= len(KEYS) * BLOCK
    assert held(cache, *KEYS) == ALL
    for number in range(100, 140):
        fill(cache, block_key(number))
        assert disk_usage(filled / BLOCKS) <= 2 * MiB
    assert held(cache, block_key(139)) == [True]
    assert cache.stats().state == "on"
    cache.close()


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE Settings SET value = 'x' WHERE key = 'size'",
        "UPDATE Settings SET value = NULL WHERE key = 'size'",
        "DELETE FROM Settings WHERE key = 'size'",
        "UPDATE Cache SET store_time = NULL WHERE rowid = 1",
        "UPDATE Cache SET key = CAST(x'ff' || substr(key, 2) AS TEXT) WHERE rowid = 1",
    ],
)
def test_values_of_a_wrong_kind_in_the_index_are_damage(filled: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """While the mount runs, too: one warning at most, no block is lost, and after a while blocks are stored again."""
    clock = HandClock()
    cache = make_cache(filled, clock=clock, limit=MiB)
    assert cache.flush(WAIT)
    with contextlib.closing(sqlite3.connect(index_of(filled))) as connection:
        connection.execute(harm)
        connection.commit()
    fill(cache, block_key(100))
    assert held(cache, *KEYS) == ALL
    for number in range(101, 121):
        clock.now += 31
        fill(cache, block_key(number))
        assert disk_usage(filled / BLOCKS) <= MiB
    assert held(cache, block_key(120)) == [True]
    assert cache.stats().state == "on"
    assert len(warnings(caplog)) <= 1
    cache.close()
    assert verify_cache(filled).orphans == 0


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("suffix", ["", "-journal"])
def test_a_directory_in_place_of_the_index_is_put_aside(filled: Path, suffix: str, running: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Before the start or while the mount runs: the index is made anew with all blocks in it, and the directory stays. One warning at most."""
    clock = HandClock()
    if running:
        cache = make_cache(filled, clock=clock)
        assert cache.flush(WAIT)
    path = index_of(filled).with_name("cache.db" + suffix)
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("precious")
    if not running:
        cache = make_cache(filled, clock=clock)
    fill(cache, block_key(100))
    clock.now += 31
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*ALL, True]
    assert [path.read_text() for path in (filled / BLOCKS).glob("aside-*/inside")] == ["precious"]
    assert cache.stats().state == "on"
    assert len(warnings(caplog)) <= 1
    cache.close()


def test_an_index_removed_while_running_is_made_anew(filled: Path) -> None:
    """The next block that is stored goes into a new index, with the older ones."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    index_of(filled).unlink()
    fill(cache, block_key(100))
    assert held(cache, *KEYS, block_key(100)) == [*ALL, True]
    cache.close()
    assert verify_cache(filled).checked == len(KEYS) + 1


def test_a_locked_index_costs_no_read_and_recovers(filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While another process holds the index for good: blocks are read, new ones dropped, with one warning; later all works again."""
    monkeypatch.setattr("optfs.cache.index.BUSY_LIMIT", 0.1)
    clock = HandClock()
    cache = make_cache(filled, clock=clock)
    assert cache.flush(WAIT)
    with contextlib.closing(sqlite3.connect(index_of(filled), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            clock.now += 31
            fill(cache, block_key(100))
            assert held(cache, *KEYS, block_key(100)) == [*ALL, False]
        assert "locked" in cache.stats().state
        assert len(warnings(caplog)) == 1
        other.execute("ROLLBACK")
    clock.now += 31
    fill(cache, block_key(100))
    assert held(cache, block_key(100)) == [True]
    assert cache.stats().state == "on"
    cache.close()


def test_a_mount_starts_while_the_index_is_locked(filled: Path) -> None:
    """Opening waits for nobody: reads work at once."""
    with contextlib.closing(sqlite3.connect(index_of(filled), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        cache = make_cache(filled)
        assert held(cache, *KEYS) == ALL
        assert cache.flush(WAIT)
        assert "locked" in cache.stats().state
        cache.close()
        other.execute("ROLLBACK")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_ever_unpickled(filled: Path, tmp_path: Path) -> None:
    """Planted rows with pickled keys and values, and with file names that lead outside, are dropped without effect."""
    bomb, victim = tmp_path / "exploded", tmp_path / "victim"
    victim.write_text("precious")
    pickled = pickle.dumps(Bomb(bomb))
    name = file_of(filled, KEYS[0]).name
    file_of(filled, KEYS[1]).write_bytes(pickled)
    insert = "INSERT INTO Cache(key, raw, store_time, access_time, size, mode, filename, value) VALUES (?, ?, 1.0, 1.0, 100, ?, ?, ?)"
    with contextlib.closing(sqlite3.connect(index_of(filled))) as connection:
        connection.execute("UPDATE Cache SET mode = 4, value = ?, filename = NULL WHERE key = ?", (pickled, name))
        connection.execute("UPDATE Cache SET mode = 4 WHERE key = ?", (file_of(filled, KEYS[1]).name,))
        connection.execute(insert, (pickled, 0, 2, None, None))
        connection.execute(insert, ("text", 1, 4, None, pickled))
        connection.execute(insert, ("../../victim", 1, 2, "../../victim", None))
        connection.commit()
    cache = make_cache(filled, limit=MiB)
    held(cache, *KEYS)
    fill(cache, *(block_key(number, 200 * KiB) for number in range(100, 110)))
    assert cache.stats().evicted > 0
    held(cache, *KEYS)
    cache.close()
    verify_cache(filled)
    with contextlib.closing(sqlite3.connect(index_of(filled))) as connection:
        assert connection.execute("SELECT COUNT(*) FROM Cache WHERE raw = 0 OR mode != 2 OR key NOT LIKE '%-%-%'").fetchone() == (0,)
    assert not bomb.exists()
    assert victim.read_text() == "precious"


def test_planted_rows_and_totals_are_not_believed(filled: Path) -> None:
    """Rows that aren't blocks go when the index is opened, and sizes are counted anew."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    size = cache.stats().size
    cache.close()
    insert = "INSERT INTO Cache(key, raw, store_time, access_time, size, mode) VALUES (?, ?, ?, 1.0, ?, ?)"
    name = file_of(filled, block_key(100)).name
    with contextlib.closing(sqlite3.connect(index_of(filled))) as connection:
        for row in [
            ("../../victim", 1, 1.0, 100, 2),
            (b"\x80", 1, 1.0, 100, 2),
            (name, 0, 1.0, 100, 2),
            (name, 1, 1.0, -100, 2),
            (name[:-1], 1, None, 1, 2),
        ]:
            connection.execute(insert, row)
        connection.execute("UPDATE Settings SET value = -1000000 WHERE key = 'size'")
        connection.commit()
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    assert cache.stats().size == size
    cache.close()
    with contextlib.closing(sqlite3.connect(index_of(filled))) as connection:
        assert {key for (key,) in connection.execute("SELECT key FROM Cache")} == {file_of(filled, key).name for key in KEYS}


def test_a_block_that_another_mount_evicts_while_it_is_written_leaves_no_file(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a row would count for nobody's limit."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    write = Folder.write

    def evict_first(self: Folder, name: str, pieces: Iterable[tuple[int, bytes | memoryview]], now: float) -> bool:
        with contextlib.closing(sqlite3.connect(index_of(filled))) as other:
            other.execute("DELETE FROM Cache WHERE key = ?", (name,))
            other.commit()
        return write(self, name, pieces, now)

    monkeypatch.setattr(Folder, "write", evict_first)
    fill(cache, block_key(100))
    assert not file_of(filled, block_key(100)).exists()
    assert held(cache, *KEYS, block_key(100)) == [*ALL, False]
    cache.close()


def test_a_commit_that_meets_a_reader_is_tried_again(
    filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who looks into the index for a while delays a write, no more."""
    cache = make_cache(filled)
    assert cache.flush(WAIT)
    with contextlib.closing(sqlite3.connect(index_of(filled), isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM Cache").fetchone() == (len(KEYS),)
        waits = []

        def wait(low: float, high: float) -> float:
            waits.append(low)
            if reader.in_transaction:
                reader.execute("COMMIT")
            return low

        monkeypatch.setattr("optfs.cache.index.random.uniform", wait)
        fill(cache, block_key(100))
    assert waits
    assert held(cache, block_key(100)) == [True]
    assert not warnings(caplog)
    cache.close()


def test_no_secret_or_name_lies_in_the_clear_outside_of_blocks(filled: Path) -> None:
    """The index and the names of files don't tell which experiments were read."""
    names = " ".join(str(path) for path in filled.rglob("*"))
    assert "experiment" not in names
    assert b"experiment" not in index_of(filled).read_bytes()
    assert content(KEYS[0]) in file_of(filled, KEYS[0]).read_bytes()
