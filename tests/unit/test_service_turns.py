"""Turns: one at a time, given back in time, and nobody waits for ever."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optfs.service.turns import turn

PATIENCE = 30.0


def test_the_second_waits_until_the_first_ends_its_turn(tmp_path: Path) -> None:
    """Early, or with the block."""
    order: list[str] = []
    began = threading.Event()

    def second() -> None:
        began.set()
        with turn(threading.Event(), tmp_path):
            order.append("second")

    for early in (True, False):
        order.clear()
        began.clear()
        with ThreadPoolExecutor(1) as other:
            with turn(threading.Event(), tmp_path) as end:
                done = other.submit(second)
                assert began.wait(PATIENCE)
                order.append("first")
                if early:
                    end()
                    done.result(PATIENCE)
            done.result(PATIENCE)
        assert order == ["first", "second"]


def test_who_is_asked_to_give_up_waits_no_longer(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    began = time.monotonic()
    with turn(threading.Event(), tmp_path), turn(given_up, tmp_path, patience=10 * PATIENCE):
        assert time.monotonic() - began < PATIENCE


def test_a_turn_that_never_ends_is_not_waited_for_long(tmp_path: Path) -> None:
    """As that of a helper that hangs at another mount point."""
    with turn(threading.Event(), tmp_path), turn(threading.Event(), tmp_path, patience=0.0):
        pass


def test_without_a_folder_of_ones_own_there_is_no_turn_to_wait_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with turn(threading.Event(), file / "run"), turn(threading.Event(), file / "run"):
        pass


def test_a_turn_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    """`optfs status` looks for sockets there."""
    with turn(threading.Event(), tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []
