"""What the kernel holds of files: when an open is believed, whose its pages are, and what it does to a file that was replaced while open."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

from optfs.bridge import kernel_cache
from optfs.bridge.kernel_cache import TAKEN_SECONDS, KernelCache


class Clock:
    """Moved by hand, and by who waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses = 0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Let the time pass."""
        self.now += seconds
        self.pauses += 1


def _kernel(lifetime: float = 1.0, clock: Clock | None = None) -> KernelCache:
    clock = clock or Clock()
    return KernelCache(lifetime, clock, clock.pause)


def _read(kernel: KernelCache, handle: int) -> None:
    kernel.begin_read(handle, 1)
    kernel.end_read()


def _reader(number: int) -> Callable[[], int]:
    return lambda: number


ANN, BOB = _reader(11), _reader(12)


class _Lifetime(float):
    """Seconds that can be added to others once; the second time there is no memory."""

    added = 0

    def __radd__(self, other: float) -> float:
        self.added += 1
        if self.added == 2:
            raise MemoryError
        return float(self) + other


class _StarvedDict(OrderedDict[Any, Any]):
    def __setitem__(self, key: object, value: object) -> None:
        raise MemoryError


class _StarvedSet(set[int]):
    def add(self, _handle: int) -> None:
        raise MemoryError


@pytest.mark.parametrize("name", ["_handles", "_open", "_unread"])
def test_an_open_that_finds_no_memory_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file would count as open for ever, and each newer version would be read past the page cache."""
    kernel = _kernel()
    kernel.opened("/f", "0", 10, 0)
    kernel.closed(0)
    with monkeypatch.context() as starved:
        starved.setattr(kernel, name, _StarvedSet() if name == "_unread" else _StarvedDict())
        with pytest.raises(MemoryError):
            kernel.opened("/f", "1", 10, 1)
    assert kernel.opened("/f", "2", 10, 2) == (False, False)
    kernel.closed(1)
    _read(kernel, 2)
    kernel.closed(2)
    assert kernel.opened("/f", "2", 10, 3) == (True, False)


def test_a_close_that_finds_no_memory_costs_pages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed all the same, and the kernel may keep attributes again."""
    kernel = _kernel()
    calls: list[bool] = []
    kernel.on_torn = calls.append
    kernel.opened("/f", "1", 10, 1)
    _read(kernel, 1)
    kernel.told("/f", "2", 11, lambda: 11)
    with monkeypatch.context() as starved:
        starved.setattr(kernel, "_pages", _StarvedDict())
        with pytest.raises(MemoryError):
            kernel.closed(1)
    assert calls == [True, False]
    assert kernel.opened("/f", "2", 11, 2) == (False, False)


def test_a_turn_of_generations_that_finds_no_memory_forgets_nothing_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may still believe it, so an open of another version is outdated."""
    clock = Clock()
    kernel = _kernel(2.0, clock)
    kernel.told("/f", "1", 10, lambda: 11)
    clock.now += 2.5
    with monkeypatch.context() as starved:
        starved.setattr(kernel, "_lifetime", _Lifetime(2.0))
        with pytest.raises(MemoryError):
            kernel.outdated("/f", "2", lambda: 11)
    assert kernel.outdated("/f", "2", lambda: 11)


def test_an_open_is_outdated_while_the_kernel_may_hold_the_former_attributes() -> None:
    """Until it was told of the new version, or has forgotten."""
    clock = Clock()
    kernel = _kernel(2.0, clock)
    assert not kernel.outdated("/f", "1", ANN)
    kernel.told("/f", "1", 10, ANN)
    assert not kernel.outdated("/f", "1", ANN)
    assert kernel.outdated("/f", "2", ANN)
    assert kernel.outdated("/f", "2", ANN)
    kernel.told("/f", "2", 10, ANN)
    assert not kernel.outdated("/f", "2", ANN)
    clock.now = 101.99
    kernel.told("/f", "3", 10, ANN)
    clock.now = 103.98  # still within the lifetime
    assert kernel.outdated("/f", "4", ANN)
    clock.now = 108
    assert not kernel.outdated("/f", "4", ANN)


def test_what_one_thread_was_told_of_a_change_says_nothing_for_another() -> None:
    """The kernel may not have taken that answer yet when the other opens: `fstat` showed the former size, and reads would end there."""
    clock = Clock()
    kernel = _kernel(2.0, clock)
    kernel.told("/f", "1", 10, ANN)
    kernel.told("/f", "2", 20, ANN)
    assert not kernel.outdated("/f", "2", ANN)
    assert kernel.outdated("/f", "2", BOB)
    clock.now = 102.5  # the change is remembered in its second lifetime, and what is told of it then doesn't make it new
    kernel.told("/f", "2", 20, BOB)
    assert not kernel.outdated("/f", "2", BOB)
    assert kernel.outdated("/f", "2", _reader(13))
    kernel.told("/f", "1", 10, _reader(14))  # an answer that was late: the kernel may believe it
    assert kernel.outdated("/f", "2", BOB)
    kernel.told("/f", "2", 20, BOB)
    assert not kernel.outdated("/f", "2", BOB)
    clock.now = 109
    assert not kernel.outdated("/f", "2", _reader(13))


def test_a_thread_is_not_believed_after_another_was_told_otherwise() -> None:
    """The kernel may believe that one: a folder that is read on as it was before the change shows the former size again."""
    kernel = _kernel(2.0)
    kernel.told("/f", "1", 10, ANN)
    kernel.told("/f", "2", 20, ANN)
    kernel.told("/f", "1", 10, BOB)
    assert kernel.outdated("/f", "2", ANN)
    kernel.told("/f", "2", 20, ANN)
    assert not kernel.outdated("/f", "2", ANN)


def test_a_kernel_that_keeps_no_attributes_is_never_outdated() -> None:
    """A lifetime of 0."""
    kernel = _kernel(0.0)
    kernel.told("/f", "1", 10, ANN)
    assert not kernel.outdated("/f", "2", ANN)


def test_pages_are_kept_only_for_the_version_they_come_from() -> None:
    """The same version again keeps them, another drops them; until an open of that is read, the kernel may not have dropped the former ones."""
    kernel = _kernel()
    assert kernel.opened("/f", "1", 10, 1) == (True, False)
    assert kernel.opened("/f", "1", 10, 2) == (True, False)
    kernel.closed(1)
    kernel.closed(2)
    assert kernel.opened("/f", "1", 10, 3) == (True, False)
    kernel.closed(3)  # read from the page cache alone
    assert kernel.opened("/f", "2", 10, 4) == (False, False)
    assert kernel.opened("/f", "2", 10, 5) == (False, False)
    _read(kernel, 4)
    assert kernel.opened("/f", "2", 10, 6) == (True, False)
    for handle in (4, 5, 6):
        kernel.closed(handle)
    assert kernel.opened("/f", "2", 10, 7) == (True, False)
    kernel.closed(7)
    assert kernel.opened("/f", "1", 10, 8) == (False, False)


def test_a_file_that_was_forgotten_may_have_pages_of_any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was never opened there are none."""
    monkeypatch.setattr(kernel_cache, "MAX_PAGES", 2)
    kernel = _kernel()
    for handle, path in enumerate(("/f", "/g", "/h")):
        assert kernel.opened(path, "1", 10, handle) == (True, False)
        kernel.closed(handle)
    assert kernel.opened("/f", "2", 10, 4) == (False, False)
    assert kernel.opened("/new", "1", 10, 5) == (False, False)


def test_an_open_that_was_never_read_says_nothing_of_the_pages() -> None:
    """It was refused, or the kernel gave it up: the former version's pages may still be there."""
    kernel = _kernel()
    kernel.opened("/f", "1", 10, 1)
    _read(kernel, 1)
    kernel.closed(1)
    kernel.opened("/f", "2", 10, 2)
    kernel.closed(2)
    assert kernel.opened("/f", "2", 10, 3) == (False, False)


def test_a_newer_version_bypasses_the_pages_while_an_older_is_open() -> None:
    """And the first open after that starts with no pages."""
    kernel = _kernel()
    kernel.opened("/f", "1", 10, 1)
    assert kernel.opened("/f", "2", 10, 2) == (False, True)
    kernel.closed(1)
    assert kernel.opened("/f", "2", 10, 3) == (False, False)
    _read(kernel, 3)
    kernel.closed(3)
    assert kernel.opened("/f", "2", 10, 4) == (True, False)


def _told(kernel: KernelCache, clock: Clock, version: str, size: int) -> None:
    """Tell the kernel of a version of /f, and wait until it has taken that."""
    kernel.told("/f", version, size, ANN)
    clock.now += 2 * TAKEN_SECONDS


def test_an_open_file_of_which_the_kernel_knows_another_version_is_torn() -> None:
    """Until it is closed; the kernel is to keep no attributes meanwhile. Opens past the page cache don't depend on what it believes."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    calls: list[bool] = []
    kernel.on_torn = calls.append
    _told(kernel, clock, "1", 10)
    kernel.opened("/f", "1", 10, 1)
    _told(kernel, clock, "1", 10)
    assert not kernel.misread(1, 10, short=True)
    assert calls == []
    _told(kernel, clock, "2", 10)
    assert not kernel.misread(1, 10, short=True)  # ends where the kernel believes
    _told(kernel, clock, "3", 11)
    kernel.opened("/f", "3", 11, 2)
    assert kernel.misread(1, 10, short=True)
    assert not kernel.misread(1, 10, short=False)  # is asked for no more than it has
    assert not kernel.misread(2, 11, short=True)
    assert kernel.fits(1)
    _told(kernel, clock, "4", 5)
    assert not kernel.fits(1)  # ends before its own end
    assert [kernel.misread(1, end, short=False) for end in (5, 6)] == [False, True]
    assert kernel.fits(2)
    assert not kernel.misread(2, 11, short=True)
    kernel.told_of(1, ANN)  # nothing that the kernel keeps
    assert not kernel.fits(1)
    _told(kernel, clock, "3", 11)
    assert calls == [True]
    kernel.closed(1)
    assert calls == [True, False]
    _told(kernel, clock, "4", 10)
    assert calls == [True, False, True]
    kernel.closed(2)
    assert calls == [True, False, True, False]


@pytest.mark.parametrize("size", [5, 15])
def test_the_kernel_is_told_of_another_version_when_what_was_answered_has_arrived(size: int) -> None:
    """Of a tail that is on its way it would make one with zeros, or none at all. That is once a version, for who asks meanwhile as well."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    kernel.opened("/f", "1", 10, 1)
    kernel.told("/f", "2", size, ANN)
    assert clock.now == 100 + TAKEN_SECONDS
    kernel.told("/f", "2", size, BOB)
    assert clock.now == 100 + TAKEN_SECONDS
    kernel.told("/f", "3", size, ANN)
    assert clock.now == 100 + 2 * TAKEN_SECONDS


def test_who_cannot_be_harmed_delays_nothing() -> None:
    """A file that isn't open, or is in this version, or in one of its size, or past the page cache."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    kernel.told("/f", "1", 10, ANN)
    kernel.told("/f", "2", 5, ANN)
    kernel.opened("/f", "2", 5, 1)
    kernel.told("/f", "2", 5, ANN)
    kernel.told("/f", "3", 5, ANN)
    assert kernel.begin_read(1, 5)
    kernel.end_read()
    assert clock.pauses == 0
    kernel.opened("/f", "4", 10, 2)
    kernel.closed(1)
    kernel.told("/f", "5", 7, ANN)
    assert clock.pauses == 0


@pytest.mark.parametrize(("size", "end"), [(5, 4096), (5, 3), (20, 3)])
def test_reads_end_before_the_kernel_is_told_of_another_size(size: int, end: int) -> None:
    """It takes that at once, but drops pages at either end when reads have ended: until then it would show them, filled up with zeros."""
    clock = Clock()
    looks: list[bool] = []

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        looks.append(kernel.in_vain())
        if len(looks) == 5:
            kernel.end_read()

    kernel = KernelCache(1.0, clock, pause)
    kernel.opened("/f", "1", 10, 1)
    assert kernel.begin_read(1, end)
    kernel.told("/f", "2", size, BOB)
    assert looks == [True] * 5 + [False]
    assert clock.now == pytest.approx(100 + 5 * 0.005 + TAKEN_SECONDS, abs=0.006)
    assert not kernel.begin_read(1, 3)  # too soon: the kernel may be about to drop them
    clock.now += TAKEN_SECONDS
    assert kernel.begin_read(1, 3)
    kernel.end_read()


def test_reads_that_are_refused_hold_up_nobody() -> None:
    """A program that tries again and again would keep the kernel from being told."""
    clock = Clock()

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        assert not kernel.begin_read(1, 10)

    kernel = KernelCache(1.0, clock, pause)
    kernel.opened("/f", "1", 10, 1)
    kernel.told("/f", "2", 5, ANN)
    assert clock.now == 100 + TAKEN_SECONDS


def test_a_read_is_in_vain_for_the_thread_that_makes_it() -> None:
    """Whatever others do."""
    kernel = _kernel()
    kernel.opened("/f", "1", 10, 1)
    assert kernel.begin_read(1, 10)
    assert not kernel.in_vain()
    assert kernel.note("/f", "2", 5, ANN)
    assert kernel.in_vain()
    seen: list[bool] = []
    other = threading.Thread(target=lambda: seen.append(kernel.in_vain()))
    other.start()
    other.join()
    assert seen == [False]
    kernel.end_read()
    assert not kernel.in_vain()


@pytest.mark.parametrize(("second", "size"), [("3", 300), ("1", 100)])
def test_of_two_versions_on_their_way_the_kernel_may_take_either(second: str, size: int) -> None:
    """The shorter one may be taken last: also where the other is the one that is open, told late."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    kernel.opened("/f", "1", 100, 1)
    kernel.opened("/f", "1", 100, 2)
    assert kernel.note("/f", "2", 50, ANN)
    clock.now += TAKEN_SECONDS / 2
    assert kernel.note("/f", second, size, BOB)
    kernel.closed(2)
    assert not kernel.fits(1)
    assert kernel.misread(1, 60, short=False)
    clock.now += 2 * TAKEN_SECONDS
    assert kernel.fits(1)
    assert not kernel.misread(1, 60, short=False)


def test_an_answer_with_a_version_that_is_known_for_long_may_be_on_its_way() -> None:
    """The kernel may take it after the newest one's, which has the size of what is open."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    kernel.opened("/f", "1", 10, 1)
    _told(kernel, clock, "2", 20)
    clock.now += 10
    assert kernel.begin_read(1, 10)
    assert kernel.note("/f", "3", 10, BOB)
    assert kernel.in_vain()
    assert kernel.misread(1, 10, short=True)
    kernel.end_read()


def test_a_file_whose_former_sizes_have_arrived_is_whole_again() -> None:
    """Of two versions that were told at once the one that is open remains."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    calls: list[bool] = []
    kernel.on_torn = calls.append
    kernel.opened("/f", "1", 10, 1)
    kernel.told("/f", "2", 20, ANN)
    kernel.told("/f", "3", 30, ANN)
    kernel.opened("/f", "3", 30, 2)
    clock.now += 1
    kernel.closed(1)
    assert calls == [True, False]


def test_an_older_version_told_late_does_not_stay_in_the_way_of_the_newer_one() -> None:
    """A folder may be read on as it was before the change, while the file is open in its newer version already."""
    clock = Clock()
    kernel = _kernel(clock=clock)
    calls: list[bool] = []
    kernel.on_torn = calls.append
    _told(kernel, clock, "2", 60)
    kernel.opened("/f", "2", 60, 1)
    _told(kernel, clock, "1", 50)
    assert not kernel.fits(1)
    _told(kernel, clock, "2", 60)
    assert kernel.fits(1)
    assert not kernel.misread(1, 60, short=True)
    assert kernel.opened("/f", "2", 60, 2) == (True, False)
    assert kernel.fits(2)
    kernel.closed(1)
    kernel.closed(2)
    assert calls == [True, False]


def test_where_the_kernel_cannot_be_kept_from_believing_nothing_is_noted() -> None:
    """For want of memory; the next who is told tries again."""
    kernel = _kernel()
    kernel.opened("/f", "1", 10, 1)

    def starve(_torn: bool) -> None:
        raise MemoryError

    kernel.on_torn = starve
    with pytest.raises(MemoryError):
        kernel.told("/f", "2", 20, ANN)
    calls: list[bool] = []
    kernel.on_torn = calls.append
    kernel.told("/f", "2", 20, ANN)
    assert calls == [True]
