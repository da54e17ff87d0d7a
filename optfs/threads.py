"""Threads whose start can't hang.

`threading.Thread.start` waits without limit for the new thread to say that it runs. One that finds no memory for its first frames ends before
that; CPython only prints "Exception ignored in thread started by". Whoever started it waited for ever, with all who need what it holds. So
threads that fetch, look into the cache, list or ask the API are started by the call below `threading`, and waited for no longer than `BEGINS`.
All others aren't: they begin with the mount, or answer `--metrics`, or belong to another command, and no file operation waits for their start.

Lock: `_lock` is a leaf.
"""

import _thread
import contextlib
import threading
from collections.abc import Callable

BEGINS = 5.0
"""Seconds that a new thread may take to begin: an overloaded machine's worst."""


class StartedThread:
    """A daemon thread that runs a callable, which handles its own exceptions."""

    def __init__(self, run: Callable[[], object], name: str) -> None:
        """Start it, and wait until it begins.

        Raises:
            RuntimeError, MemoryError: there is no memory for it; it won't run later on.

        """
        self._run = run
        self._name = name
        self._lock = threading.Lock()
        # Guarded by _lock: both below.
        self._begun = False
        self._given_up = False
        self._begins, self._ends = threading.Lock(), threading.Lock()  # held until it begins, and until it ends
        self._begins.acquire()
        self._ends.acquire()
        _thread.start_new_thread(self._main, ())
        if not self._begins.acquire(timeout=BEGINS):
            with self._lock:
                self._given_up = not self._begun
            if self._given_up:
                raise MemoryError

    def join(self, timeout: float) -> bool:
        """Wait for its end; return whether it came within `timeout` seconds."""
        ended = self._ends.acquire(timeout=max(0.0, timeout))
        if ended:
            self._ends.release()
        return ended

    def _main(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._begun = True
        self._begins.release()
        try:
            with contextlib.suppress(MemoryError):
                threading.current_thread().name = self._name
            self._run()
        finally:
            self._ends.release()
