"""Rows and files of the block cache's index, where several mounts use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from optfs.cache.blockfile import block_name
from optfs.cache.folder import IN_FLIGHT, Folder, open_folder
from optfs.cache.index import BlockIndex, open_index
from tests.support.caches import block_key

NAMES = [block_name(block_key(number)) for number in range(4)]
NOW = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder of blocks."""
    return open_folder(tmp_path)


@pytest.fixture
def index(folder: Folder) -> Iterator[BlockIndex]:
    """Its index."""
    made = open_index(folder)
    yield made
    made.close()


def add(folder: Folder, index: BlockIndex, name: str, at: float, *, file: bool) -> None:
    """Add a row stored at that time, and its file."""
    index.run(lambda: index.add(name, 1000, at))
    if file:
        assert folder.write(name, [(0, b"x")], NOW)


def test_room_that_is_promised_to_a_block_under_way_is_not_given_away(folder: Folder, index: BlockIndex) -> None:
    """Its file would come all the same, and the limit be passed. A row that stays without one is somebody's who was killed."""
    for number, name in enumerate(NAMES[:3]):
        add(folder, index, name, NOW - 3 + number, file=number == 1)
    assert index.run(lambda: index.evict(3000, NOW)) == (1000, 1)
    assert [index.has(name) for name in NAMES[:3]] == [True, False, True]
    assert index.run(lambda: index.evict(3000, NOW + IN_FLIGHT)) == (2000, 2)
    assert (index.rows(), index.used()) == (0, 0)


def test_what_is_promised_is_what_has_no_file_yet(folder: Folder, index: BlockIndex) -> None:
    """Whether or not its writer has told that it came; what is older than a minute was promised to somebody who was killed."""
    for number, name in enumerate(NAMES):
        index.run(lambda name=name, number=number: index.promise(name, 1 << number, NOW + 9 * (number == 3)))  # type: ignore[misc]  # a lambda with defaults
    assert index.run(lambda: index.promised(NOW)) == 15
    for name in NAMES[:2]:
        assert folder.write(name, [(0, b"x")], NOW)
    index.run(lambda: index.drop_unknown(NAMES[:1]))
    assert index.run(lambda: index.promised(NOW)) == 12
    assert index.run(lambda: index.promised(NOW + IN_FLIGHT + 1)) == 8
    assert index.run(lambda: index.promised(NOW - IN_FLIGHT - 1)) == 0
    folder.unlink(NAMES[0])
    assert index.run(lambda: index.promised(NOW)) == 12  # lost since, not promised


def test_a_loss_is_forgotten_where_another_mount_has_written_the_block_anew(folder: Folder, index: BlockIndex) -> None:
    """A file without a row would count for nobody's limit."""
    add(folder, index, NAMES[0], NOW, file=True)
    add(folder, index, NAMES[1], NOW, file=False)
    index.run(lambda: index.forget_missing(NAMES, NOW))
    assert [index.has(name) for name in NAMES] == [True, False, False, False]


def test_files_that_no_row_knows_go(folder: Folder, index: BlockIndex) -> None:
    """Those that one has just written, and whose row another one has removed meanwhile."""
    add(folder, index, NAMES[0], NOW, file=True)
    assert folder.write(NAMES[1], [(0, b"x")], NOW)
    index.run(lambda: index.drop_unknown(NAMES))
    assert [folder.stat(name) is not None for name in NAMES] == [True, False, False, False]


def test_a_write_that_ends_for_want_of_memory_leaves_nothing(folder: Folder) -> None:
    """A temporary file would keep the block from being written for a minute."""

    def pieces() -> Iterator[tuple[int, bytes]]:
        yield 1, b"data"
        raise MemoryError

    with pytest.raises(MemoryError):
        folder.write(NAMES[0], pieces(), NOW)
    assert [path.name for path in folder.path.rglob(NAMES[0] + "*")] == []
    assert folder.write(NAMES[0], [(0, b"x")], NOW)


def test_a_loss_is_not_forgotten_while_another_mount_writes_the_block(folder: Folder, index: BlockIndex, tmp_path: Path) -> None:
    """Its row is that one's promise of room."""
    add(folder, index, NAMES[0], NOW, file=False)
    path = tmp_path / "blocks-v1" / NAMES[0][0] / (NAMES[0] + ".tmp")
    path.touch()
    begun = path.stat().st_mtime
    index.run(lambda: index.forget_missing(NAMES, begun))
    assert index.has(NAMES[0])
    index.run(lambda: index.forget_missing(NAMES, begun + IN_FLIGHT + 1))
    assert not index.has(NAMES[0])


def test_who_was_taken_for_dead_leaves_another_ones_half_alone(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer that slept for a minute in the middle of a write."""
    path = tmp_path / "blocks-v1" / NAMES[0][0] / (NAMES[0] + ".tmp")

    def sleep(_fd: int, _parts: object) -> None:
        path.unlink()
        path.write_bytes(b"another one's half")

    monkeypatch.setattr("optfs.cache.folder._write_all", sleep)
    assert not folder.write(NAMES[0], [(0, b"whole")], NOW)
    assert path.read_bytes() == b"another one's half"
    assert folder.stat(NAMES[0]) is None


def test_a_block_that_somebody_is_writing_is_left_to_him(folder: Folder, tmp_path: Path) -> None:
    """Two would rename one another's halves. What a killed process left is overwritten."""
    path = tmp_path / "blocks-v1" / NAMES[0][0] / (NAMES[0] + ".tmp")
    path.write_bytes(b"half")
    begun = path.stat().st_mtime
    assert not folder.write(NAMES[0], [(0, b"whole")], begun + IN_FLIGHT)
    assert path.read_bytes() == b"half"
    assert folder.write(NAMES[0], [(0, b"whole")], begun + IN_FLIGHT + 1)
    assert path.with_suffix("").read_bytes() == b"whole"
    assert not path.exists()
