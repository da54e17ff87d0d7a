"""What the kernel holds of files: attributes it was told and pages it has read, and how an open must treat them.

The kernel keeps one set of attributes and one page cache a file, whatever version they come from; four rules keep versions apart:

- Attributes. A program that opens a changed file within `attr_timeout` of the last `stat` would see the former size, and the kernel
  would end its reads there. So the open is refused with ESTALE once: Linux then walks the path again, asks for each attribute anew
  (`LOOKUP_REVAL` in `fs/namei.c: do_filp_open`) and opens again, without the program noticing. The kernel takes an answer in the thread
  that asked, which may be late: while a change is new, an open is believed only of a thread that was itself told of the version, and
  nobody of another one since. (What remains: the kernel ignores an answer when it took a former one while the request was on its way.)
- Pages across opens. They are kept (`keep_cache`) only if they come from the version that is opened. They do if no other version of the file
  ever was. Otherwise whose they are is noted when a file is closed, not when it is opened: the kernel drops former pages when
  it takes the answer to an open, and another open may overtake that. A handle that was never read says nothing: that answer may have been a
  refusal, or may not have been taken at all. One that was read and is still open says the same as one that was closed.
  Pages aren't dropped without need also because that waits for those that are being read: at a second open of a file whose bytes don't come,
  a program that not even `kill -9` ends would wait for the timeout.
- Pages of two versions at once. While an older version is still open, a newer one is opened past the page cache (`direct_io`), so that
  neither file's reads find the other's pages.
- The end of an older version. Once the kernel was told a newer version's size it ends all reads there, and fills with zeros what an older
  one lacks up to there. So while an older version is open ("torn") the kernel is told to keep no attributes (`on_torn`) and asks before it
  reads on: it hears ESTALE where the newer version is shorter (`fits`), else the attributes of the handle's own version. A read hears ESTALE
  where the kernel would cut what it is given, or fill it up (`misread`).
  The kernel takes a new size at once, but waits for reads under way before it drops the pages that lie at an end. So when a version of another
  size is noted, reads under way are in vain, and those that begin soon after: they hear ESTALE at their next look. The answer with the new
  size is held back until they have ended, and until earlier answers have reached their programs (`TAKEN_SECONDS`). Answers with
  two sizes may be on their way at once, and either may be taken last: until they have arrived, both count.
  libfuse 2 has no means for `on_torn`: there the kernel keeps no attributes at all, and asks at each read that reaches the end it knows.

Algorithm: versions told, and changes among them, are kept in two generations of `lifetime` seconds each, so that each is remembered for at
least one lifetime and forgotten after two; memory is bounded by what is told meanwhile. An open is noted before it is checked, and what is
told is noted before it is looked whether the file is open: whichever comes second sees the other. Versions in the page cache are an LRU
of `MAX_PAGES`; forgetting one costs its pages, and from then on a file that isn't remembered may have been opened before.

Locks: `_lock` is a leaf. It guards each change of the fields below it, and looks that need two of them to agree; others go without. What was told,
`_reads` and `_unread` have none, as their single operations are atomic: a lost race between telling and turning loses one record's second
lifetime, never its first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import get_ident
from typing import NamedTuple

from optfs.bridge.callers import Caller
from optfs.values import Clock

MAX_PAGES = 65_536
"""Files whose version in the page cache is remembered; about 300 bytes each."""

_LOOK_SECONDS = 0.005
"""Between two looks whether reads have ended."""

TAKEN_SECONDS = 0.05
"""How long what was answered to the kernel may be on its way to a program: some 50 µs, but on a loaded machine any thread may have to wait.

With reads held up by 30 ms and no pause, 4 readers of an object of which a version of another size came every 80 ms saw wrong bytes in
4 s: a tail of zeros, or an end too early.
"""


class OpenMode(NamedTuple):
    """How the kernel must treat one open.

    Attributes:
        keep_cache: its pages are of this version.
        direct_io: reads must not use its pages.

    """

    keep_cache: bool
    direct_io: bool


class _Handle(NamedTuple):
    path: str
    version: str
    size: int
    direct: bool
    kept: bool


class _Newest(NamedTuple):
    version: str
    size: int
    quiet_since: float  # when it was noted, or a read in vain was last seen
    low: int  # the least and the greatest size that the kernel may take
    high: int

    def arriving(self, now: float) -> bool:
        """Return whether the kernel may not have taken it yet, or not have dropped pages for it."""
        return now < self.quiet_since + 2 * TAKEN_SECONDS

    def settled(self, now: float) -> "_Newest":
        """Return it without the sizes that don't count any more."""
        return self if self.low == self.high or self.arriving(now) else self._replace(low=self.size, high=self.size)


class KernelCache:
    """Remembers versions. Any thread may call any method."""

    def __init__(self, lifetime: float, clock: Clock, pause: Callable[[float], object] = time.sleep) -> None:
        """Join the parts.

        Args:
            lifetime: what was told is remembered for these seconds at least: no less than the kernel keeps attributes, and than there are
                between a program's two calls that end in one open; 0: opens are always believed.
            clock: monotonic.
            pause: waits for so many seconds.

        """
        self._lifetime = lifetime
        self._clock = clock
        self._pause = pause
        self._told: dict[str, str] = {}
        self._told_before: dict[str, str] = {}
        # Paths told with another version than before: the threads, by number, that were told that one since. No value is empty.
        self._changes: dict[str, dict[int, str]] = {}
        self._changes_before: dict[str, dict[int, str]] = {}
        self._reads: dict[int, tuple[int, int]] = {}  # under way, by thread: the handle, and the end of what is asked for
        self._unread: set[int] = set()  # handles that ask for the former pages to be dropped, and of which no read has shown that they are
        self._turn_at = clock() + lifetime
        # Called under _lock when the first file is torn (True) and when none is any more (False); must not call back.
        self.on_torn: Callable[[bool], None] = lambda _torn: None
        self._lock = threading.Lock()
        # Guarded by _lock: all below. Invariants: each list of _open is non-empty and holds the path's open handles; _torn
        # has the version told last, and since when, of each path that was told in another version than one in _open, until that is closed;
        # _pages has the version that a path's pages are of, "" where that isn't known; unless something was forgotten, all that were opened.
        self._pages: OrderedDict[str, str] = OrderedDict()
        self._forgot = False
        self._open: dict[str, list[int]] = {}
        self._handles: dict[int, _Handle] = {}
        self._torn: dict[str, _Newest] = {}

    def told(self, path: str, version: str, size: int, caller: Caller) -> None:
        """Note that the kernel is told attributes of this version, which is `size` bytes long; wait until it may be."""
        if self.note(path, version, size, caller):
            self.settle(path)

    def note(self, path: str, version: str, size: int, caller: Caller) -> bool:
        """Do as `told`, but return whether the answer must wait (`settle`)."""
        if self._lifetime:
            self._remember(path, version, caller)
        return path in self._open and self._tear(path, version, size) > 0  # without the lock: seldom true

    def settle(self, path: str) -> None:
        """Wait until the kernel may be told what was noted: as long as a read takes to end in vain."""
        while (wait := self._unsettled(path)) > 0:
            self._pause(wait)

    def heard(self, path: str, version: str, caller: Caller) -> None:
        """Note that the caller is told what was noted for nobody."""
        if self._changes or self._changes_before:  # seldom
            change = self._changes.get(path) or self._changes_before.get(path)
            if change:
                change[caller()] = version

    def outdated(self, path: str, version: str, caller: Caller) -> bool:
        """Return whether the kernel may hold attributes of another version. The caller's asking anew (`told`) ends that."""
        if not self._lifetime:
            return False
        if self._clock() >= self._turn_at:
            self._turn()
        change = self._changes.get(path) or self._changes_before.get(path)
        if change:
            return change.get(caller()) != version
        told = self._told.get(path) or self._told_before.get(path)
        return told is not None and told != version

    def opened(self, path: str, version: str, size: int, handle: int) -> OpenMode:
        """Note an open of a version of `size` bytes, and return how the kernel must treat it."""
        with self._lock:
            others = self._open.get(path)
            versions = {self._handles[other].version for other in others or ()}
            direct = not versions <= {version}
            pages = self._pages.get(path, "" if self._forgot else version)
            kept = not direct and (pages == version or any(map(self._has_pages, others or ())))
            mode = OpenMode(kept, direct)
            try:
                self._handles[handle] = _Handle(path, version, size, direct, kept)
                if not kept:
                    self._unread.add(handle)
                if others is None:
                    self._open[path] = [handle]
                else:
                    others.append(handle)
            except BaseException:  # for want of memory: an open that nobody will close
                self._handles.pop(handle, None)
                self._unread.discard(handle)
                raise
            self._note_pages(path, version if kept else "")
            return mode

    def begin_read(self, handle: int, end: int) -> bool:
        """Note that this thread reads up to `end`, until `end_read`; return whether that isn't in vain. The kernel has taken the answer to the open."""
        if handle in self._unread:
            self._unread.discard(handle)
        if self._torn and self._vain(handle, end):  # asked before it is noted: whoever waits for reads to end isn't to see it
            return False
        self._reads[get_ident()] = (handle, end)
        return not self.in_vain()

    def end_read(self) -> None:
        """Note that this thread's read, if it makes one, is answered."""
        self._reads.pop(get_ident(), None)

    def in_vain(self) -> bool:
        """Return whether this thread's read will be refused, since a version of another size came."""
        if not self._torn:
            return False
        read = self._reads.get(get_ident())
        return read is not None and self._vain(*read)

    def closed(self, handle: int) -> None:
        """Note the end of an open, or that it was refused."""
        unread = handle in self._unread
        self._unread.discard(handle)
        with self._lock:
            entry = self._handles.pop(handle, None)
            if entry is None:
                return
            others = self._open[entry.path]
            others.remove(handle)
            if not others:
                del self._open[entry.path]
            newest = self._torn.get(entry.path)
            if newest is not None and (not others or self._whole(newest.settled(self._clock()), others)):
                del self._torn[entry.path]
                if not self._torn:
                    self.on_torn(False)
            if not entry.direct and (entry.kept or not unread):
                self._note_pages(entry.path, entry.version)  # last: where there is no memory for it, that costs the pages alone

    def told_of(self, handle: int, caller: Caller) -> None:
        """Note that the kernel is told the attributes of an open file's own version; of a torn one it keeps none."""
        held = self._handles[handle]
        if self._lifetime and held.path not in self._torn:
            self._remember(held.path, held.version, caller)

    def fits(self, handle: int) -> bool:
        """Return whether a handle's file can be read to its end: the kernel wasn't told of a shorter version, whose size it takes for that."""
        held = self._handles[handle]
        newest = self._newer(held)
        return newest is None or newest.low >= held.size

    def misread(self, handle: int, end: int, *, short: bool) -> bool:
        """Return whether the kernel would make something else of bytes up to `end`, which are fewer than it asked for if `short`.

        It was told of a version that ends before, or of a longer one than the handle's, and fills what is missing with zeros.
        """
        if not self._torn:
            return False
        held = self._handles[handle]
        newest = self._newer(held)
        return newest is not None and (newest.low < end or (short and newest.high > held.size))

    def _newer(self, held: _Handle) -> _Newest | None:
        """Return the other version that the kernel was told of, where that matters to reads of the handle."""
        newest = self._torn.get(held.path)
        if newest is None or held.direct:
            return None
        newest = newest.settled(self._clock())
        one = newest.low == newest.high
        return None if one and (newest.size == held.size or newest.version == held.version) else newest

    def _vain(self, handle: int, end: int) -> bool:
        """Return whether a read is one that the kernel may cut, or that keeps it from dropping pages. Of a handle that is closed none is."""
        held = self._handles.get(handle)
        if held is None:
            return False
        newest = self._newer(held)
        return newest is not None and (newest.arriving(self._clock()) or newest.low < min(end, held.size))

    def _whole(self, newest: _Newest, handles: list[int]) -> bool:
        """Return whether the kernel can't but take the size of what is open."""
        return newest.low == newest.high and all(self._handles[handle].version == newest.version for handle in handles)

    def _note_pages(self, path: str, version: str) -> None:
        try:
            self._pages[path] = version
        except MemoryError:
            self._forgot = True
            raise
        self._pages.move_to_end(path)
        if len(self._pages) > MAX_PAGES:
            self._pages.popitem(last=False)
            self._forgot = True

    def _has_pages(self, handle: int) -> bool:
        """Return whether the pages that the kernel has of an open file are of the handle's version."""
        held = self._handles[handle]
        return not held.direct and (held.kept or handle not in self._unread)

    def _remember(self, path: str, version: str, caller: Caller) -> None:
        if self._clock() >= self._turn_at:
            self._turn()
        before = self._told.get(path) or self._told_before.get(path) or version
        if before != version:
            self._changes[path] = {caller(): version}
        elif self._changes or self._changes_before:  # seldom
            change = self._changes.get(path) or self._changes_before.get(path)
            if change:
                change[caller()] = version
        self._told[path] = version

    def _tear(self, path: str, version: str, size: int) -> float:
        """Note a version that isn't the one that is open; return what `_unsettled` does."""
        with self._lock:
            newest = self._torn.get(path)
            # Once torn, a path's record follows what is told, also to the version that is open: an older one may have been told in between.
            if newest is None and all(self._handles[other].version == version for other in self._open.get(path, ())):
                return 0.0
            if not self._torn:
                self.on_torn(True)  # before it is noted: it may find no memory
            now = self._clock()
            if newest is None:
                self._torn[path] = _Newest(version, size, now, size, size)
            elif (newest.version, newest.size) != (version, size):
                before = newest.settled(now)  # also of one that was noted long ago an answer may be on its way
                self._torn[path] = _Newest(version, size, now, min(size, before.low), max(size, before.high))
        return self._unsettled(path)

    def _unsettled(self, path: str) -> float:
        """Return the seconds after which to look again whether the kernel may be told of the newer version; 0 or less: now."""
        with self._lock:
            newest = self._torn.get(path)
            handles = self._open.get(path, ())
            if newest is None or all(self._newer(self._handles[handle]) is None for handle in handles):
                return 0.0
            now = self._clock()
            if any(handle in handles and self._vain(handle, end) for handle, end in self._reads.copy().values()):
                self._torn[path] = newest._replace(quiet_since=now)
                return _LOOK_SECONDS
            return newest.quiet_since + TAKEN_SECONDS - now

    def _turn(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._turn_at:
                return
            # After a long pause the younger generation is out of date too.
            late = now >= self._turn_at + self._lifetime
            told_before = {} if late else self._told
            changes_before = {} if late else self._changes
            told: dict[str, str] = {}
            changes: dict[str, dict[int, str]] = {}
            turn_at = now + self._lifetime
            # All or nothing: half a turn would be made again, and forget what is young.
            self._told_before = told_before
            self._told = told
            self._changes_before = changes_before
            self._changes = changes
            self._turn_at = turn_at
