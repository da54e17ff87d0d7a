"""Ranges of blocks: what is read of a block of the cache, and checked, where only some of it is wanted."""

import os
from pathlib import Path

import pytest

from optfs.cache.blockfile import GRAIN
from optfs.values import KiB
from tests.support.caches import block_key, content, file_of, fill, make_cache


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (GRAIN - 1, 2), (GRAIN, GRAIN), (GRAIN + 1, 2 * GRAIN), (3 * GRAIN + 4, 1), (3 * GRAIN, 5), (0, 3 * GRAIN + 5)],
)
def test_a_range_of_a_block_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, length: int) -> None:
    """Only the grains that it lies in are read."""
    cache, key = make_cache(tmp_path), block_key(7, 3 * GRAIN + 5)
    fill(cache, key)
    read: list[int] = []
    pread = os.pread

    def watch(fd: int, count: int, offset: int) -> bytes:
        data = pread(fd, count, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", watch)
    assert cache.get_range(key, key.start + start, length) == content(key)[start : start + length]
    monkeypatch.undo()
    grains = (start + length - 1) // GRAIN - start // GRAIN + 1
    assert sum(read) <= grains * GRAIN + KiB
    cache.close()


def test_a_range_is_checked_where_it_lies(tmp_path: Path) -> None:
    """Damage in it makes the block a miss; what damage elsewhere there is, other ranges meet."""
    cache, key = make_cache(tmp_path), block_key(7, 3 * GRAIN + 5)
    fill(cache, key)
    path = file_of(tmp_path, key)
    damaged = bytearray(path.read_bytes())
    damaged[-5 - GRAIN // 2] ^= 1
    path.write_bytes(damaged)
    assert cache.get_range(key, key.start + GRAIN, GRAIN) == content(key)[GRAIN : 2 * GRAIN]
    assert cache.get_range(key, key.start + 3 * GRAIN, 5) == content(key)[3 * GRAIN :]
    assert cache.get_range(key, key.start + 2 * GRAIN, 1) is None
    assert not path.exists()
    assert cache.get_range(key, key.start, 1) is None
    assert cache.stats().damaged == 1
    cache.close()
