"""What is mounted on this machine: the kernel's table of mounts, and what the processes behind it tell.

A mount's `state` is `mounted` (its process answered), `dead` (its process is gone), or `silent` (it doesn't answer, or is another user's).
"""

from pathlib import Path
from typing import Any

from optfs.bridge import mounts as table
from optfs.service import control

Document = dict[str, Any]


def mounts(mountpoint: Path | None = None, folder: Path | None = None) -> list[Document]:
    """Return the status document of each mount of optfs, or of the one at `mountpoint`; `folder` holds the control sockets."""
    wanted = None if mountpoint is None else table.resolve(mountpoint)
    points = sorted({found.mountpoint for found in table.mounts() if wanted in {None, found.mountpoint}})
    if wanted is None:
        _forget_dead(folder)
    return [_describe(point, folder) for point in points]


def _describe(point: str, folder: Path | None) -> Document:
    answer = control.ask_mount(Path(point), folder)
    if answer is not None:
        return {"state": "mounted", **answer}
    return {"state": "dead" if table.is_dead(point) else "silent", "mountpoint": point}


def _forget_dead(folder: Path | None) -> None:
    """Remove sockets on which nobody listens: asking does that."""
    for path in control.sockets(folder):
        control.ask(path)
