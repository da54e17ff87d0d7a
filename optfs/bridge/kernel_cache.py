"""What the kernel holds of files: attributes it was told and pages it has read, and how an open must treat them.

The kernel keeps one set of attributes and one page cache a file, whatever version they come from; three rules keep versions apart:

- Attributes. A program that opens a changed file within `attr_timeout` of the last `stat` would see the former size, and the kernel
  would end its reads there. So the open is refused with ESTALE once: Linux then walks the path again, asks for each attribute anew
  (`LOOKUP_REVAL` in `fs/namei.c: do_filp_open`) and opens again, without the program noticing.
- Pages across opens. They are kept (`keep_cache`) only when they come from the version that is opened.
- Pages of two versions at once. While an older version is still open, a newer one is opened past the page cache (`direct_io`), so that
  neither file's reads find the other's pages.

Algorithm: versions told are kept in two generations of `lifetime` seconds each, so that a version is remembered for at least one lifetime
and forgotten after two; memory is bounded by what is told meanwhile. Versions in the page cache are an LRU of `MAX_PAGES`; forgetting one
costs its pages.

Locks: `_lock` is a leaf and guards all but `_told` and `_told_before`, whose single dict operations are atomic: a lost race between telling
and turning loses one record's second lifetime, never its first.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

from optfs.values import Clock

MAX_PAGES = 65_536
"""Files whose version in the page cache is remembered; about 300 bytes each."""


class OpenMode(NamedTuple):
    """How the kernel must treat one open.

    Attributes:
        keep_cache: its pages are of this version.
        direct_io: reads must not use its pages.

    """

    keep_cache: bool
    direct_io: bool


class KernelCache:
    """Remembers versions. Any thread may call any method."""

    def __init__(self, lifetime: float, clock: Clock) -> None:
        """Remember for `lifetime` seconds at least: no less than the kernel keeps attributes; 0: it keeps none."""
        self._lifetime = lifetime
        self._clock = clock
        self._told: dict[str, str] = {}
        self._told_before: dict[str, str] = {}
        self._turn_at = clock() + lifetime
        self._lock = threading.Lock()
        # Guarded by _lock: all below. Invariant: each list of _open is non-empty and holds the versions of the path's open handles.
        self._pages: OrderedDict[str, str] = OrderedDict()
        self._open: dict[str, list[str]] = {}
        self._handles: dict[int, tuple[str, str]] = {}

    def told(self, path: str, version: str) -> None:
        """Note that the kernel was told attributes of this version."""
        if self._clock() >= self._turn_at:
            self._turn()
        self._told[path] = version

    def outdated(self, path: str, version: str) -> bool:
        """Return whether the kernel may hold attributes of another version. The kernel's asking anew (`told`) ends that."""
        if not self._lifetime:
            return False
        if self._clock() >= self._turn_at:
            self._turn()
        told = self._told.get(path) or self._told_before.get(path)
        return told is not None and told != version

    def opened(self, path: str, version: str, handle: int) -> OpenMode:
        """Note an open, and return how the kernel must treat it."""
        with self._lock:
            self._handles[handle] = (path, version)
            versions = self._open.setdefault(path, [])
            direct = any(other != version for other in versions)
            versions.append(version)
            kept = self._pages.pop(path, None) == version and not direct
            if not direct:
                self._pages[path] = version
                if len(self._pages) > MAX_PAGES:
                    self._pages.popitem(last=False)
            return OpenMode(kept, direct)

    def closed(self, handle: int) -> None:
        """Note the end of an open."""
        with self._lock:
            entry = self._handles.pop(handle, None)
            if entry is None:
                return
            path, version = entry
            versions = self._open[path]
            versions.remove(version)
            if not versions:
                del self._open[path]

    def path(self, handle: int) -> str:
        """Return the path of an open handle."""
        return self._handles[handle][0]

    def _turn(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._turn_at:
                return
            # After a long pause the younger generation is out of date too.
            self._told_before = self._told if now < self._turn_at + self._lifetime else {}
            self._told = {}
            self._turn_at = now + self._lifetime
