"""Which FUSE bindings this machine has, and loading the chosen one. Only the chosen one is imported.

A binding is usable when its shared library loads, /dev/fuse can be opened, and its helper `fusermount` is there (root needs none).
"""

import ctypes
import ctypes.util
import importlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optfs.errors import MountError

Binding = Literal["fuse3", "fuse2"]

BINDINGS: tuple[Binding, ...] = ("fuse3", "fuse2")
"""In order of preference: libfuse 3 carries requests of 1 MiB and reads folders with their attributes."""

_LIBRARIES: dict[Binding, tuple[str, ...]] = {
    "fuse3": ("libfuse3.so.4", "libfuse3.so.3"),  # .4 since libfuse 3.17
    "fuse2": ("libfuse.so.2",),
}
_DARWIN = ("fuse4x", "osxfuse", "fuse", "fuse-t")
_HELPERS: dict[Binding, str] = {"fuse3": "fusermount3", "fuse2": "fusermount"}
"""What each library runs to mount: by this name alone. Debian's fuse3 brings both."""
_INSTALL: dict[Binding, str] = {
    "fuse3": "apt install fuse3 libfuse3-3",
    "fuse2": "apt install fuse3 libfuse2",
}


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a binding can be used.

    Attributes:
        library: what is loaded, or None.
        problem: what is missing and what to do; empty when usable.

    """

    library: str | None
    problem: str

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return not self.problem


def available() -> dict[Binding, Availability]:
    """Look at what this machine has; imports no binding."""
    return {binding: _look(binding) for binding in BINDINGS}


def choose(binding: str) -> Binding:
    """Return the binding to use for `--binding`.

    Raises:
        MountError: it, or with `auto` each of them, can't be used.

    """
    if binding != "auto":
        wanted: Binding = "fuse2" if binding == "fuse2" else "fuse3"
        found = _look(wanted)
        if found.problem:
            raise MountError(found.problem)
        return wanted
    problems = []
    for candidate in BINDINGS:
        found = _look(candidate)
        if found.usable:
            return candidate
        problems.append(found.problem)
    raise MountError(problems[0])


def load(binding: Binding) -> Any:
    """Import the bridge's module for a binding and return its `serve`.

    Raises:
        MountError: the binding or its library doesn't load.

    """
    library = _library(binding)
    before = os.environ.get("FUSE_LIBRARY_PATH")
    if library is not None:
        os.environ["FUSE_LIBRARY_PATH"] = library  # else mfusepy prefers libfuse 2 where both are there
    try:
        module = importlib.import_module(f"optfs.bridge.{binding}")
    except (OSError, ImportError, AttributeError, NotImplementedError) as error:  # what the bindings raise for a library they can't use
        raise MountError(f"the FUSE binding {binding} doesn't load: {error}; install it: {_INSTALL[binding]}") from error
    finally:
        if before is None:
            os.environ.pop("FUSE_LIBRARY_PATH", None)
        else:
            os.environ["FUSE_LIBRARY_PATH"] = before
    return module.serve


def _look(binding: Binding) -> Availability:
    library = _library(binding)
    if library is None:
        return Availability(None, f"libfuse {binding[-1]} isn't installed; install it: {_INSTALL[binding]}")
    if sys.platform.startswith("linux"):
        device = Path("/dev/fuse")
        if not device.exists():
            return Availability(
                library, "/dev/fuse is missing; load the kernel's module (modprobe fuse), in a container start it with --device /dev/fuse"
            )
        if not os.access(device, os.R_OK | os.W_OK):
            return Availability(library, "/dev/fuse can't be opened by this user; as root: chmod 666 /dev/fuse")
        if os.geteuid() != 0 and shutil.which(_HELPERS[binding]) is None:
            return Availability(library, f"{_HELPERS[binding]} isn't installed; install it: {_INSTALL[binding]}")
    return Availability(library, "")


def _library(binding: Binding) -> str | None:
    names: tuple[str, ...] = _LIBRARIES[binding]
    if sys.platform == "darwin":
        found = (ctypes.util.find_library(name) for name in (_DARWIN if binding == "fuse2" else ()))
        names = tuple(name for name in found if name)
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None
