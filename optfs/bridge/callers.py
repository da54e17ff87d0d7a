"""The program that a request comes from: the number of its thread, and whether it is being killed while it waits for the answer.

Rule: only a signal that ends the program ends its wait. Programs get many that mean nothing to a file operation (timers, children that ended,
Go's own scheduling), and would see EINTR where no disk ever gives it. One that ends a program shows as a pending SIGKILL of each of its threads
(`complete_signal` in `kernel/signal.c`). libfuse's own word, `fuse_interrupted`, says less, and comes too late where all its threads wait: one
of them would have to read it from the kernel.

A `Caller` asks libfuse for what it keeps by thread: it works in a handler, in its own thread. No locks.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

Caller = Callable[[], int]
"""Tells the number of the thread whose request is being answered; 0 where it lies in another namespace. Asked seldom: it costs a call into C."""

_PENDING = ("SigPnd:", "ShdPnd:")  # of the thread, of the program; both hexadecimal, bit n - 1 for signal n
_KILL = 1 << (signal.SIGKILL - 1)


def killed(caller: Caller) -> bool:
    """Return whether the calling thread's program is being killed; False where that can't be seen."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        status = Path(f"/proc/{caller()}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # another namespace, or no descriptor left
        return False
    return kill_pending(status)


def kill_pending(status: str) -> bool:
    """Return whether a thread's `/proc/<number>/status` shows a pending SIGKILL."""
    return any(int(line.split()[1], 16) & _KILL for line in status.splitlines() if line.startswith(_PENDING))
