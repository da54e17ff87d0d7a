"""One process of a user at a time looks whether it can mount, and mounts.

The kernel lets root mount upon a mount, so two that start at once, as by `mount -a` and a unit at boot, would lie one upon the other, both well,
and `optfs umount` would take away the upper one. So each looks once more and mounts while it has the turn: a lock (flock(2)) on the folder of the
control sockets, which ends with its process and leaves no file. It isn't on the folder to be mounted at: to open that would ask automount.

Rules: a turn is short, as network and credentials come before it. Who can't get it in `PATIENCE` seconds goes on without: what keeps it may be
a helper that hangs at another mount point.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optfs.service.control import own_folder, runtime_folder

PATIENCE = 35.0
"""Seconds: some more than a mount gets to begin, see `bridge.mounting`."""

REST = 0.02
"""Seconds between tries."""


@contextlib.contextmanager
def turn(given_up: threading.Event, folder: Path | None = None, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Wait for the turn, until `given_up` is set at most, and give what ends it early; it ends with the block."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            _take(folder or runtime_folder(), stack, given_up, patience)
        yield stack.close


def _take(folder: Path, stack: contextlib.ExitStack, given_up: threading.Event, patience: float) -> None:
    own_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until or given_up.wait(REST):
                return
        else:
            return
