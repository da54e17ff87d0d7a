"""What the kernel holds of files, where there is no memory to note it; the rules are in `test_filesystem_bridge`."""

from collections import OrderedDict
from typing import Any

import pytest

from optfs.bridge.kernel_cache import KernelCache


def _clock() -> float:
    return 100.0


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
    kernel = KernelCache(1.0, _clock)
    kernel.opened("/f", "0", 10, 0)
    kernel.closed(0)
    with monkeypatch.context() as starved:
        starved.setattr(kernel, name, _StarvedSet() if name == "_unread" else _StarvedDict())
        with pytest.raises(MemoryError):
            kernel.opened("/f", "1", 10, 1)
    assert kernel.opened("/f", "2", 10, 2) == (False, False)
    kernel.closed(1)
    kernel.read(2)
    kernel.closed(2)
    assert kernel.opened("/f", "2", 10, 3) == (True, False)


def test_a_close_that_finds_no_memory_costs_pages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed all the same, and the kernel may keep attributes again."""
    kernel = KernelCache(1.0, _clock)
    calls: list[bool] = []
    kernel.on_torn = calls.append
    kernel.opened("/f", "1", 10, 1)
    kernel.read(1)
    kernel.told("/f", "2", 11, lambda: 11)
    with monkeypatch.context() as starved:
        starved.setattr(kernel, "_pages", _StarvedDict())
        with pytest.raises(MemoryError):
            kernel.closed(1)
    assert calls == [True, False]
    assert kernel.opened("/f", "2", 11, 2) == (False, False)


def test_a_turn_of_generations_that_finds_no_memory_forgets_nothing_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may still believe it, so an open of another version is outdated."""
    now = 100.0
    kernel = KernelCache(2.0, lambda: now)
    kernel.told("/f", "1", 10, lambda: 11)
    now += 2.5
    with monkeypatch.context() as starved:
        starved.setattr(kernel, "_lifetime", _Lifetime(2.0))
        with pytest.raises(MemoryError):
            kernel.outdated("/f", "2", lambda: 11)
    assert kernel.outdated("/f", "2", lambda: 11)
