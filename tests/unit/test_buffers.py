"""Memory that blocks are read into."""

import mmap
from types import SimpleNamespace
from typing import NoReturn

import pytest

from optfs import buffers
from optfs.buffers import HUGE, LONG, allocate, is_viewed


@pytest.mark.parametrize("length", [1, LONG - 1, LONG, HUGE - 1, HUGE, 2 * HUGE + 1])
def test_a_buffer_has_its_length_and_can_be_written(length: int) -> None:
    """From its first byte to its last."""
    buffer = allocate(length)
    with memoryview(buffer) as view:
        view[0] = view[-1] = 7
        assert (len(view), view[0], view[-1], view.readonly) == (length, 7, 7, False)


@pytest.mark.parametrize("length", [1, LONG, HUGE])
def test_a_buffer_is_viewed_as_long_as_a_view_or_a_part_of_one_lives(length: int) -> None:
    """And keeps its bytes when it is asked."""
    buffer = allocate(length)
    assert not is_viewed(buffer)
    view = memoryview(buffer)
    view[-1] = 7
    part = view.toreadonly()[-1:]
    view.release()
    assert is_viewed(buffer)
    assert bytes(part) == b"\7"
    del part, view
    assert not is_viewed(buffer)
    assert (len(buffer), buffer[-1]) == (length, 7)


@pytest.mark.parametrize(("length", "asks"), [(LONG, False), (HUGE - 1, False), (HUGE, True)])
def test_a_buffer_that_has_room_for_huge_pages_asks_for_them(length: int, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter one has no use for them."""
    advice: list[int] = []

    class Mapping(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            advice.extend(arguments)

    monkeypatch.setattr(mmap, "mmap", Mapping)
    allocate(length)
    assert advice == ([mmap.MADV_HUGEPAGE] if asks else [])


def test_where_the_system_has_no_memory_that_is_what_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as for a short buffer."""

    def refused(*_arguments: object, **_options: object) -> NoReturn:
        raise OSError

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(MemoryError):
        allocate(LONG)


def test_without_huge_pages_buffers_are_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has none refuses the advice; another system than Linux has no word for it."""

    class Mapping(mmap.mmap):
        def madvise(self, *_arguments: int) -> NoReturn:
            raise OSError

    constants = {name: getattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE")}
    monkeypatch.setattr(buffers, "mmap", SimpleNamespace(mmap=Mapping, **constants))
    assert isinstance(allocate(HUGE), Mapping)
    del constants["MADV_HUGEPAGE"]
    monkeypatch.setattr(buffers, "mmap", SimpleNamespace(mmap=Mapping, **constants))
    assert isinstance(allocate(HUGE), bytearray)
