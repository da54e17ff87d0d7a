"""Signals of a mount process, as the numbers that arrive on a pipe.

The main thread only waits here; libfuse runs in another thread. Python's handlers do nothing but exist, so that libfuse, which takes over
only signals that have the default action, leaves them alone; the interpreter writes each signal's number to the pipe (`set_wakeup_fd`).
Children get the default actions back when they are started.

SIGINT and SIGTERM ask for the end, and so do others that end a program and that people send: unhandled, they would leave a dead mount point.
SIGHUP asks for it where it tells that the terminal is gone (`Signals.hung_up`): who sends it else means log files that were moved away, which
are noticed without it. (One that comes after the terminal went without any isn't told apart.)
"""

import contextlib
import errno
import os
import select
import signal
from types import FrameType, TracebackType
from typing import Self

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU})
WAKE = 0
"""No signal's number: somebody called `wake`."""


def _exist(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def has_terminal() -> bool:
    """Tell whether this process has a terminal that controls it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE, errno.EACCES}  # which say nothing about it
    return True


class Signals:
    """Waits for signals, and for `wake` from other threads. Main thread only, but for `wake`."""

    def __init__(self) -> None:
        """Take over the signals."""
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()  # SIG_IGN: nohup(1)
        self._before = {number: signal.signal(number, _exist) for number in (*ENDING, signal.SIGHUP)}
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def wait(self, timeout: float | None = None) -> list[int]:
        """Return what arrived, in order; empty when `timeout` seconds have passed."""
        ready, _, _ = select.select([self._reading], [], [], timeout)
        if not ready:
            return []
        with contextlib.suppress(BlockingIOError):
            return list(os.read(self._reading, 256))
        return []

    def hung_up(self) -> bool:
        """Tell whether there was a terminal at first, and is none any more. Any thread."""
        return self._terminal and not has_terminal()

    def wake(self) -> None:
        """Let `wait` return with WAKE. Any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, bytes([WAKE]))

    def close(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
