"""What is mounted on this machine: the kernel's table of mounts, and what the processes behind it tell.

A mount's `state` is `mounted` (its process answered), `dead` (its process is gone), or `silent` (it doesn't answer, or is another user's).

Mounts are looked at all at once, each in a thread. Threads that haven't ended after `PATIENCE` seconds, for all of them, are left behind: looking
at a mount whose service hangs, hangs for that mount's timeout, and must not keep the others from being shown.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optfs.bridge import mounts as table
from optfs.service import control

Document = dict[str, Any]
T = TypeVar("T")

PATIENCE = 5.0
"""Seconds: more than `control.PATIENCE`."""


def mounts(mountpoint: Path | None = None, folder: Path | None = None) -> list[Document]:
    """Return the status document of each mount of optfs, or of the one at `mountpoint`; `folder` holds the control sockets."""
    wanted = None if mountpoint is None else table.resolve(mountpoint)
    points = sorted({found.mountpoint for found in table.mounts() if wanted in {None, found.mountpoint}})
    if wanted is None:
        _forget_dead(folder)
    silent: list[Document] = [{"state": "silent", "mountpoint": point} for point in points]
    return _each(lambda point: _describe(point, folder), points, silent)


def _describe(point: str, folder: Path | None) -> Document:
    answer = control.ask_mount(Path(point), folder)
    if answer is not None:
        return {"state": "mounted", **answer}
    return {"state": "dead" if table.is_dead(point) else "silent", "mountpoint": point}


def _forget_dead(folder: Path | None) -> None:
    """Remove sockets on which nobody listens: asking does that."""
    paths = control.sockets(folder)
    _each(control.ask, paths, [None] * len(paths))


def _each(look: Callable[[Any], T], subjects: Sequence[Any], otherwise: Sequence[T]) -> list[T]:
    """Return what `look` says of each subject, or the value at its place in `otherwise` where that takes too long or fails."""
    found = list(otherwise)

    def store(place: int) -> None:
        with contextlib.suppress(Exception):
            found[place] = look(subjects[place])

    threads = [threading.Thread(target=store, args=(place,), daemon=True) for place in range(len(subjects))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return list(found)
