"""`optfs cache info|clear|verify`, and the sweep at the start, while mounts use the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optfs.cache.folder import BLOCKS, Folder
from optfs.cache.maintenance import VerifyReport, clear_cache, inspect_cache, verify_cache
from optfs.errors import ConfigError
from tests.support.caches import BLOCK, WAIT, HandClock, block_key, file_of, fill, held, index_of, make_cache

KEYS = [block_key(number) for number in range(6)]


def test_info_tells_what_is_there(tmp_path: Path) -> None:
    """Blocks, bytes and ages come from the folder; an empty one has none."""
    empty = inspect_cache(tmp_path)
    assert (empty.path, empty.blocks, empty.size, empty.data, empty.oldest, empty.newest) == (tmp_path / BLOCKS, 0, 0, 0, None, None)
    cache = make_cache(tmp_path)
    fill(cache, *KEYS)
    info = inspect_cache(tmp_path)
    assert (info.blocks, info.data) == (len(KEYS), len(KEYS) * BLOCK)
    assert info.size >= info.data
    assert info.oldest is not None
    assert info.newest is not None
    assert info.oldest <= info.newest
    cache.close()


def test_clear_empties_the_cache_of_a_running_mount(tmp_path: Path) -> None:
    """After it the mount misses, counts nothing as damage, and stores again."""
    cache = make_cache(tmp_path)
    fill(cache, *KEYS)
    assert clear_cache(tmp_path).blocks == len(KEYS)
    assert inspect_cache(tmp_path).blocks == 0
    assert verify_cache(tmp_path, wall=lambda: 9e9) == VerifyReport(checked=0, damaged=0, orphans=0, rows=0)
    assert held(cache, *KEYS) == [False] * len(KEYS)
    fill(cache, KEYS[0])
    assert held(cache, KEYS[0]) == [True]
    assert (cache.stats().damaged, cache.stats().state) == (0, "on")
    cache.close()


def test_verify_drops_what_is_damaged_and_only_that(tmp_path: Path) -> None:
    """A block with a changed byte, one cut short and one under another's name go; sound ones stay, also for a running mount."""
    cache = make_cache(tmp_path)
    fill(cache, *KEYS)
    changed, cut, swapped = (file_of(tmp_path, key) for key in KEYS[:3])
    raw = bytearray(changed.read_bytes())
    raw[-1] ^= 1
    changed.write_bytes(raw)
    cut.write_bytes(cut.read_bytes()[:1000])
    swapped.write_bytes(file_of(tmp_path, KEYS[3]).read_bytes())
    assert verify_cache(tmp_path) == VerifyReport(checked=6, damaged=3, orphans=0, rows=0)
    assert verify_cache(tmp_path) == VerifyReport(checked=3, damaged=0, orphans=0, rows=0)
    assert held(cache, *KEYS) == [False] * 3 + [True] * 3
    assert cache.stats().damaged == 0
    cache.close()


def test_verify_and_clear_put_a_directory_in_place_of_a_block_aside(tmp_path: Path) -> None:
    """It is damage once, and what it holds stays."""
    cache = make_cache(tmp_path)
    fill(cache, *KEYS)
    commands: list[Callable[[Path], object]] = [verify_cache, clear_cache]
    for number, command in enumerate(commands):
        path = file_of(tmp_path, KEYS[number])
        path.unlink()
        path.mkdir()
        (path / "inside").write_text("precious")
        command(tmp_path)
        assert not path.exists()
        assert len(list((tmp_path / BLOCKS).glob("aside-*/inside"))) == number + 1
        assert verify_cache(tmp_path).damaged == 0
    fill(cache, *KEYS)
    assert held(cache, *KEYS) == [True] * len(KEYS)
    cache.close()


def test_verify_forgets_no_block_that_a_mount_writes_anew_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a row would count for no limit."""
    cache = make_cache(tmp_path)
    fill(cache, *KEYS)
    damaged = file_of(tmp_path, KEYS[0])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    unlink_in = Folder.unlink_in

    def unlink_and_fill(folder: Folder, shard: int, name: str) -> bool:
        done = unlink_in(folder, shard, name)
        fill(cache, KEYS[0])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "unlink_in", unlink_and_fill)
        assert verify_cache(tmp_path).damaged == 1
    assert verify_cache(tmp_path) == VerifyReport(checked=6, damaged=0, orphans=0, rows=0)
    assert held(cache, *KEYS) == [True] * len(KEYS)
    cache.close()


def test_verify_brings_files_and_rows_together(tmp_path: Path) -> None:
    """Files that the index doesn't know go, and rows whose file is missing; what another process may be writing stays."""
    wall = HandClock()
    cache = make_cache(tmp_path, wall=wall)
    fill(cache, *KEYS)
    cache.close()
    path = file_of(tmp_path, KEYS[0])
    path.rename(path.with_name(path.name + "0"))
    path.with_name("stranger").write_text("x")
    path.with_name("link").symlink_to(index_of(tmp_path))
    in_flight = file_of(tmp_path, KEYS[1])
    in_flight.rename(in_flight.with_name(in_flight.name + ".tmp"))
    assert verify_cache(tmp_path, wall=lambda: wall.now + 1) == VerifyReport(checked=4, damaged=0, orphans=3, rows=0)
    assert in_flight.with_name(in_flight.name + ".tmp").exists()
    assert verify_cache(tmp_path, wall=lambda: wall.now + 100) == VerifyReport(checked=4, damaged=0, orphans=1, rows=2)
    assert verify_cache(tmp_path, wall=lambda: wall.now + 100) == VerifyReport(checked=4, damaged=0, orphans=0, rows=0)
    assert index_of(tmp_path).exists()


def test_leftovers_are_swept_at_the_start(tmp_path: Path) -> None:
    """What a process that was killed over a minute ago left is removed by the next mount, by itself."""
    wall = HandClock()
    cache = make_cache(tmp_path, wall=wall)
    fill(cache, *KEYS)
    cache.close()
    path = file_of(tmp_path, KEYS[0])
    path.rename(path.with_name(path.name + ".tmp"))
    path.with_name(path.name + "0").write_text("an orphan")
    wall.now += 100
    again = make_cache(tmp_path, wall=wall)
    assert again.flush(WAIT)
    assert {name.name for name in path.parent.iterdir()} == {
        file_of(tmp_path, key).name for key in KEYS[1:] if file_of(tmp_path, key).parent == path.parent
    }
    assert held(again, *KEYS) == [False] + [True] * 5
    again.close()
    assert verify_cache(tmp_path, wall=wall) == VerifyReport(checked=5, damaged=0, orphans=0, rows=0)


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    """A folder that isn't one, or can't be made, gives one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--cache-dir"):
        inspect_cache(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"--cache-dir: .* can't be used: Not a directory"):
        verify_cache(tmp_path / "file" / "below")
