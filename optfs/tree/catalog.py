"""The tree that a mount shows: looks paths up in listings, and keeps listings as long as they are to be believed.

Algorithm: a path is walked from the account down. Folders above the name that is asked for may come from a listing of any age; the
listing that decides the answer must be fresh. A date's one listing decides for everything below the date.

Rules:

- A listing is believed for `listing_ttl` seconds from when it was asked for, and for `SETTLED_TTL` if its day is complete and past
  (`layout.settled`). With a `listing_ttl` of 0 each operation asks, but joins a listing that is under way.
- One listing of a unit is under way at a time. Whoever needs it waits for it, each within its own deadline; if it fails, it fails for all.
- When a refresh fails, the former listing goes on being shown. While a store is known to fail, no one who can be shown a former listing
  waits: the next try runs in the background, at most one a `RETRY_PAUSE` and unit. The first success ends that state. Without a former listing the failure
  is raised. Each change of state is logged once.
- What a refresh brings replaces the former listing in one assignment; whoever holds nodes of the former one keeps a whole tree.
- Listings are dropped, least recently used first, once more than `max_objects` are held.

Threads: a listing runs in the thread of whoever needs it first (a handler of the bridge), or ahead of need in the pool.

Locks: `_lock` guards everything below the comment in `__init__`; it is a leaf: no store, pool, event, or log is called under it.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from optfs.errors import AccessDenied, DeadlineExceeded, NotAFolder, NotFound, OptfsError
from optfs.stores.protocol import Store
from optfs.tree import layout
from optfs.tree.folders import File, Folder, Link, Node, files_from
from optfs.tree.listings import Lister, Listing
from optfs.tree.prefetch import DateWalk
from optfs.values import Clock, Deadline, ObjectInfo, Provider
from optfs.workers import Priority, WorkerPool

logger = logging.getLogger(__name__)

SETTLED_TTL = 3600.0
"""Seconds for which the listing of a complete day of the past is believed."""

RETRY_PAUSE = 1.0
"""Seconds between tries to refresh a listing while its store fails: soon enough to recover, seldom enough not to load a failing service."""

MAX_OBJECTS = 1_000_000
"""Objects held in listings; about 550 bytes each."""

MAX_WARNINGS = 100
"""Keys named in warnings before they stop, so that a broken export can't fill the log."""

LATEST_AHEAD = 8
"""Dates listed at once when the newest two aren't complete."""


@dataclass(frozen=True, slots=True)
class CatalogStatistics:
    """What the catalog has done, for `optfs status`.

    Attributes:
        listings: held now.
        objects: files in them.
        pages: requests that succeeded.
        failures: requests that failed, retries not counted.
        hits: answers from a fresh listing.
        stale: answers from an old listing because its refresh failed.
        prefetched: listings made ahead of need.
        left_out: keys that no file system can show, as far as warned about.
        failing: stores whose last listing failed.

    """

    listings: int
    objects: int
    pages: int
    failures: int
    hits: int
    stale: int
    prefetched: int
    left_out: int
    failing: tuple[Provider, ...]


class _Flight:
    """One listing under way. `listing` and `error` are set, one of them, before `done` is."""

    __slots__ = ("done", "error", "listing")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.listing: Listing | None = None
        self.error: BaseException | None = None


@dataclass(slots=True)
class _Held:
    """A listing that is held. Guarded by the catalog's lock.

    Attributes:
        tried_at: when its refresh last failed or was last left to the background, by the monotonic clock.
        denied: whether its last refresh was refused for this prefix alone.

    """

    listing: Listing
    tried_at: float
    denied: bool = False


class Catalog:
    """The tree of one account, from one store or from two. Every method may be called by many threads at once."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        *,
        pool: WorkerPool,
        listing_ttl: float,
        timeout: float,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        max_objects: int = MAX_OBJECTS,
    ) -> None:
        """Make a catalog; asks nothing yet.

        Args:
            stores: by provider; all of one account.
            pool: runs listings ahead of need.
            listing_ttl: seconds for which a listing that may change is believed.
            timeout: seconds that a listing ahead of need may take.
            clock: monotonic, seconds.
            wall_clock: seconds since the epoch.
            max_objects: bound on what is held.

        """
        started = wall_clock()
        self._lister = Lister(stores, started, self._observe)
        self._pool = pool
        self._ttl = listing_ttl
        self._timeout = timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._max_objects = max_objects
        self._account = Folder(f"/{self._lister.account}", started, None)
        self._root = Folder("/", started, (self._account,))
        self._prefixes = tuple(store.root.prefix for store in stores.values())
        self._lock = threading.Lock()
        # Guarded by _lock: all below. Invariants: _objects is the sum of the held listings' objects; a unit has at most one flight.
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._walks: dict[str, DateWalk] = {}
        self._failing: set[Provider] = set()
        self._warned: set[str] = set()
        self._objects = 0
        self._pages = self._failures = self._hits = self._stale = self._prefetched = 0
        self._closed = False

    def lookup(self, path: str, deadline: Deadline) -> Node:
        """Return what lies at an absolute path. Links in the middle of it are followed, one at its end is returned.

        Raises:
            NotFound: nothing.
            NotAFolder: something below a file.
            AccessError, ServiceError, DeadlineExceeded: a listing is needed, and can't be had.

        """
        return self._resolve(path, deadline, fresh=True)[0]

    def children(self, path: str, deadline: Deadline) -> Sequence[tuple[str, Node]]:
        """Return the names in the folder at `path` with their nodes, sorted by the bytes of the names: a snapshot.

        Raises as `lookup` does; also NotAFolder for a file.

        """
        node, providers = self._resolve(path, deadline, fresh=False)
        if isinstance(node, Link):
            return self.children(f"{path.rstrip('/').rpartition('/')[0]}/{node.target}", deadline)
        if isinstance(node, File):
            raise NotAFolder(f"not a folder: {path!a}")
        if node.nodes is None:
            unit = self._unit_of(node)
            self._note_date(unit)
            listing = self._get(unit, providers, deadline)
            if not listing.exists and unit:
                raise NotFound(f"no such folder: {path!a}")
            node = listing.folder
        return tuple([(child.name, child) for child in node.nodes or ()])

    def following(self, after: ObjectInfo | str, count: int) -> list[ObjectInfo]:
        """Return up to `count` files that a walk meets after that file, among listings that are held: the folder's, the day's, the next days'.

        Asks nothing; returns fewer where no more is known. `after` is a file, or its path.

        """
        parts = self._parts_of(after)
        if parts is None or count <= 0:
            return []
        with self._lock:
            depth = next((depth for depth in range(len(parts) - 1, -1, -1) if _unit(parts[:depth]) in self._held), None)
            held = {} if depth is None else {unit: held.listing for unit, held in self._held.items() if unit == _unit(parts[:depth])}
        if depth is None:
            return []
        unit = _unit(parts[:depth])
        found: list[ObjectInfo] = []
        rest: Sequence[str] = parts[depth:]
        listing: Listing | None = held[unit]
        while listing is not None:
            for file in files_from(listing.folder, rest):
                found.append(file.info)
                if len(found) == count:
                    return found
            listing = self._next_date(listing.unit)
            rest = ()
        return found

    def statistics(self) -> CatalogStatistics:
        """Return what has been done so far."""
        with self._lock:
            return CatalogStatistics(
                listings=len(self._held),
                objects=self._objects,
                pages=self._pages,
                failures=self._failures,
                hits=self._hits,
                stale=self._stale,
                prefetched=self._prefetched,
                left_out=len(self._warned),
                failing=tuple(sorted(self._failing)),
            )

    def close(self) -> None:
        """Start no more listings ahead of need. What is held can still be looked up."""
        with self._lock:
            self._closed = True

    # Paths

    def _resolve(self, path: str, deadline: Deadline, *, fresh: bool) -> tuple[Node, Sequence[Provider]]:
        """Return the node at a path, and which stores hold it. Without `fresh`, a folder may come from a listing of any age."""
        parts = layout.split_path(path)
        if not parts:
            return self._root, self._lister.providers
        if parts[0] != self._lister.account:
            raise NotFound(f"no such path: {path!a}")
        node: Node = self._account
        providers: Sequence[Provider] = self._lister.providers
        unit, listing = "", None
        for place, name in enumerate(parts[1:], start=2):
            if not isinstance(node, Folder):
                raise NotAFolder(f"not a folder: below {node.name!a}")
            if node.nodes is None:
                unit = self._unit_of(node)
                decides = layout.is_flat(unit) or (fresh and place == len(parts))
                listing, child = self._enter(unit, providers, name, deadline, fresh=decides)
            else:
                child = node.find(name)
            if child is None and listing is not None:
                child = self._short(listing, node, name, deadline)
                if isinstance(child, Link) and place < len(parts):
                    child = (listing.folder if node.nodes is None else node).find(child.target)
            if child is None or listing is None:
                raise NotFound(f"no such path: {path!a}")
            node = child
            providers = listing.owners.get(node.name, self._lister.providers) if not layout.is_flat(unit) else providers
        return node, providers

    def _enter(
        self, unit: str, providers: Sequence[Provider], name: str, deadline: Deadline, *, fresh: bool
    ) -> tuple[Listing, Node | None]:
        """Return a unit's listing and the child of that name in it."""
        if not fresh:
            with self._lock:
                held = self._held.get(unit)
            if held is not None:
                child = held.listing.folder.find(name)
                if isinstance(child, Folder):
                    return held.listing, child
        self._note_date(unit)
        listing = self._get(unit, providers, deadline)
        return listing, listing.folder.find(name)

    def _short(self, listing: Listing, node: Folder, name: str, deadline: Deadline) -> Link | None:
        """Return the link that a short name is, or None."""
        folder = listing.folder if node.nodes is None else node
        target = folder.short_name(name)
        if target is not None:
            return Link(f"{folder.path}/{name}", target.name, target.mtime)
        if name == layout.LATEST and folder is listing.folder and layout.is_type(listing.unit):
            date = self._latest(listing, deadline)
            if date is not None:
                return Link(f"{folder.path}/{name}", date, folder.mtime)
        return None

    def _latest(self, listing: Listing, deadline: Deadline) -> str | None:
        """Return the newest complete date of a type, or None. Lists dates from the newest on until one is complete."""
        dates = [date for date in reversed(listing.dates) if layout.date_of(date) is not None]
        for place, date in enumerate(dates):
            if place >= 2 and place % LATEST_AHEAD == 2:
                self._list_ahead(listing, dates[place + 1 : place + LATEST_AHEAD])
            owners = listing.owners.get(date, self._lister.providers)
            if self._get(layout.child_unit(listing.unit, date), owners, deadline).complete:
                return date
        return None

    def _unit_of(self, folder: Folder) -> str:
        return folder.path[len(self._account.path) + 1 :] + "/" if folder is not self._account else ""

    def _parts_of(self, after: ObjectInfo | str) -> list[str] | None:
        """Return a file's path below the account, or None where it isn't one."""
        if isinstance(after, ObjectInfo):
            prefix = next((prefix for prefix in self._prefixes if after.key.startswith(prefix)), None)
            return None if prefix is None else after.key[len(prefix) :].split("/")
        parts = layout.split_path(after)
        return parts[1:] if len(parts) > 1 and parts[0] == self._lister.account else None

    def _next_date(self, unit: str) -> Listing | None:
        """Return the held listing of the date after a date."""
        if not layout.is_flat(unit):
            return None
        type_unit, date = layout.split_date(unit)
        with self._lock:
            held = self._held.get(type_unit)
            if held is None or date not in held.listing.dates:
                return None
            dates = held.listing.dates
            place = dates.index(date) + 1
            following = self._held.get(layout.child_unit(type_unit, dates[place])) if place < len(dates) else None
            return None if following is None else following.listing

    # Listings

    def _get(self, unit: str, providers: Sequence[Provider], deadline: Deadline) -> Listing:
        """Return a unit's listing: the held one while it is believed or can't be refreshed, else a new one."""
        with self._lock:
            held = self._held.get(unit)
            old: Listing | None = None
            if held is not None:
                self._held.move_to_end(unit)
                old = held.listing
                now = self._clock()
                if self._believed(old, now):
                    self._hits += 1
                    return old
            flight = self._flights.get(unit)
            leads = flight is None
            if held is not None and (held.denied or not self._failing.isdisjoint(providers)):
                self._stale += 1
                retries = leads and not self._closed and now - held.tried_at >= RETRY_PAUSE
                if retries:
                    held.tried_at = now
                flight, leads = None, False
            elif flight is None:
                flight = self._flights[unit] = _Flight()
        if flight is None:
            assert old is not None  # only a held listing is shown without waiting
            if retries:
                self._pool.submit(partial(self._refresh, unit, providers), Priority.PREFETCH)
            return old
        if leads:
            self._fly(flight, unit, providers, old, deadline)
        elif not flight.done.wait(max(0.0, deadline.remaining())):
            flight = None
        if flight is not None and flight.listing is not None:
            return flight.listing
        error = DeadlineExceeded("a listing took longer than --timeout") if flight is None else flight.error
        if old is None or not isinstance(error, OptfsError):
            assert error is not None  # a flight that has ended has a listing or an error
            raise error
        with self._lock:
            self._stale += 1
        return old

    def _believed(self, listing: Listing, now: float) -> bool:
        """Return whether a listing needs no refresh."""
        age = now - listing.asked_at
        if age < self._ttl:
            return True
        if self._ttl <= 0 or not listing.complete or age >= SETTLED_TTL:
            return False
        return layout.settled(layout.date_of(listing.folder.name), complete=True, wall=self._wall_clock())

    def _fly(self, flight: _Flight, unit: str, providers: Sequence[Provider], old: Listing | None, deadline: Deadline) -> None:
        """List a unit, keep the result, and end the flight. An OptfsError is left in the flight, anything else is raised too."""
        try:
            flight.listing = self._lister.fetch(unit, providers, old, deadline)
        except OptfsError as error:
            flight.error = error
        except BaseException as error:
            flight.error = error
            raise
        finally:
            self._land(flight, unit)
            flight.done.set()
        self._warn(flight.listing)

    def _land(self, flight: _Flight, unit: str) -> None:
        """Take a flight's result into what is held."""
        refused = False
        with self._lock:
            del self._flights[unit]
            held = self._held.get(unit)
            if flight.listing is not None:
                self._objects += flight.listing.objects - (0 if held is None else held.listing.objects)
                self._held[unit] = _Held(flight.listing, flight.listing.asked_at)
                self._held.move_to_end(unit)
                self._evict()
            elif held is not None:
                held.tried_at = self._clock()
                if isinstance(flight.error, AccessDenied):
                    refused, held.denied = not held.denied, True
        if refused and isinstance(flight.error, OptfsError):
            logger.warning("%a can't be listed any more: %s; showing what was last seen (%s)", unit, flight.error, flight.error.detail)

    def _evict(self) -> None:
        """Drop the least recently used listings while too much is held. Empty ones count as one object. Called with the lock."""
        while self._objects + len(self._held) > self._max_objects and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._objects -= dropped.listing.objects

    def _refresh(self, unit: str, providers: Sequence[Provider]) -> bool:
        """List a unit in the background unless that is done or under way. A failure is left to whoever needs the listing."""
        with self._lock:
            held = self._held.get(unit)
            if self._closed or unit in self._flights or (held is not None and self._believed(held.listing, self._clock())):
                return False
            flight = self._flights[unit] = _Flight()
            old = None if held is None else held.listing
        self._fly(flight, unit, providers, old, Deadline.after(self._clock, self._timeout))
        return flight.listing is not None

    # Listings ahead of need

    def _note_date(self, unit: str) -> None:
        """Tell the policy that a date is being looked into, and list ahead what it wants."""
        if not layout.is_flat(unit):
            return
        type_unit, date = layout.split_date(unit)
        with self._lock:
            held = self._held.get(type_unit)
            if held is None or self._ttl <= 0:  # with a TTL of 0 nothing listed ahead would be believed
                return
            listing = held.listing
            average = self._objects // max(1, len(self._held))
            ahead = self._walks.setdefault(type_unit, DateWalk()).access(date, listing.dates, average)
        self._list_ahead(listing, ahead)

    def _list_ahead(self, listing: Listing, dates: Sequence[str]) -> None:
        for date in dates:
            owners = listing.owners.get(date, self._lister.providers)
            self._pool.submit(partial(self._prefetch, layout.child_unit(listing.unit, date), owners), Priority.PREFETCH)

    def _prefetch(self, unit: str, providers: Sequence[Provider]) -> None:
        if self._refresh(unit, providers):
            with self._lock:
                self._prefetched += 1

    # What is told to the user

    def _observe(self, provider: Provider, error: OptfsError | None) -> None:
        """Keep whether a store answers. A refusal of one prefix isn't a failing store."""
        with self._lock:
            if error is None:
                self._pages += 1
                changed = provider in self._failing
                self._failing.discard(provider)
            else:
                self._failures += 1
                changed = not isinstance(error, AccessDenied) and provider not in self._failing
                if changed:
                    self._failing.add(provider)
        if changed and error is None:
            logger.info("listings from %s work again", provider)
        elif changed and error is not None:
            logger.warning("listings from %s fail: %s; showing what was last seen (%s)", provider, error, error.detail)

    def _warn(self, listing: Listing | None) -> None:
        """Name what a listing leaves out, once a key."""
        if listing is None or not (listing.left_out or listing.foreign):
            return
        for keys, text in (
            (listing.left_out, "no file system can hold the name of %a: it isn't shown"),
            (listing.foreign[:1], "the service listed %a, which lies outside of what was asked: ignored"),
        ):
            for key in keys:
                with self._lock:
                    if key in self._warned or len(self._warned) >= MAX_WARNINGS:
                        continue
                    self._warned.add(key)
                    last = len(self._warned) == MAX_WARNINGS
                logger.warning(text, key)
                if last:
                    logger.warning("further names that aren't shown aren't logged either")


def _unit(parts: Sequence[str]) -> str:
    return "".join(f"{part}/" for part in parts)
