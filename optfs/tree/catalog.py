"""The tree that a mount shows: looks paths up in listings, and has those listed ahead that a walk will want.

Algorithm: a path is walked from the account down. Folders above the name that is asked for may come from a listing of any age; the
listing that decides the answer must be fresh. A date's one listing decides for everything below the date.

How long a listing is believed, and what is shown when it can't be refreshed, is `optfs.tree.held`'s business.

Locks: `_lock` guards `_walks`; it is a leaf: nothing else is called under it but the pure policy.
"""

import threading
import time
from collections.abc import Mapping, Sequence

from optfs.errors import NotAFolder, NotFound
from optfs.stores.protocol import Store
from optfs.tree import layout
from optfs.tree.folders import File, Folder, Link, Node, files_from
from optfs.tree.held import CatalogStatistics, HeldListings
from optfs.tree.listings import Listing
from optfs.tree.prefetch import DateWalk
from optfs.values import Clock, Deadline, ObjectInfo, Provider
from optfs.workers import WorkerPool

MAX_OBJECTS = 1_000_000
"""Objects held in listings; about 550 bytes each."""

LATEST_AHEAD = 8
"""Dates listed at once when the newest two aren't complete."""


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
        self._listings = HeldListings(
            stores, pool=pool, ttl=listing_ttl, timeout=timeout, clock=clock, wall_clock=wall_clock, max_objects=max_objects
        )
        self._account = Folder(f"/{self._listings.account}", self._listings.started, None)
        self._root = Folder("/", self._listings.started, (self._account,))
        self._prefixes = {provider: store.root.prefix for provider, store in stores.items()}
        self._lock = threading.Lock()
        self._walks: dict[str, DateWalk] = {}

    def lookup(self, path: str, deadline: Deadline) -> Node:
        """Return what lies at an absolute path. Links in the middle of it are followed, one at its end is returned.

        Raises:
            NotFound: nothing.
            NameTooLong: nothing, as a name on the way is too long to be one.
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
            listing = self._listings.get(unit, providers, deadline)
            if not listing.exists and unit:
                raise NotFound(f"no such folder: {path!a}")
            node = listing.folder
        return tuple([(child.name, child) for child in node.nodes or ()])

    def following(self, after: ObjectInfo, count: int) -> list[ObjectInfo]:
        """Return up to `count` files that a walk meets after that file, among listings that are held: the folder's, the day's, the next days'.

        Asks nothing; returns fewer where no more is known.
        """
        parts = self._parts_of(after)
        if parts is None or count <= 0:
            return []
        listing: Listing | None = None
        depth = len(parts)
        while listing is None and depth > 0:
            depth -= 1
            listing = self._listings.peek(_unit(parts[:depth]))
        found: list[ObjectInfo] = []
        rest: Sequence[str] = parts[depth:]
        while listing is not None:
            for file in files_from(listing.folder, rest):
                found.append(file.info)
                if len(found) == count:
                    return found
            listing = self._next_date(listing.unit)
            rest = ()
        return found

    def gone(self, info: ObjectInfo) -> None:
        """Note that a version isn't there any more, or perhaps: S3 denies what is missing to some.

        The listing that shows it is made anew when it is needed next. Asks nothing.
        """
        parts = self._parts_of(info)
        if parts is None:
            return
        for depth in range(len(parts) - 1, -1, -1):
            listing = self._listings.peek(_unit(parts[:depth]))
            if listing is not None:
                file = _find(listing.folder, parts[depth:])
                if isinstance(file, File) and file.info == info:
                    self._listings.disbelieve(listing)
                return

    def statistics(self) -> CatalogStatistics:
        """Return what has been done so far."""
        return self._listings.statistics()

    def close(self) -> None:
        """Start no more listings ahead of need. What is held can still be looked up."""
        self._listings.close()

    # Paths

    def _resolve(self, path: str, deadline: Deadline, *, fresh: bool) -> tuple[Node, Sequence[Provider]]:
        """Return the node at a path, and which stores hold it. Without `fresh`, a folder may come from a listing of any age."""
        parts = layout.split_path(path)
        if not parts:
            return self._root, self._listings.providers
        if parts[0] != self._listings.account:
            raise layout.missing(parts[0], path)
        node: Node = self._account
        providers: Sequence[Provider] = self._listings.providers
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
                raise layout.missing(name, path)
            node = child
            providers = self._owners(listing, node.name) if not layout.is_flat(unit) else providers
        return node, providers

    def _enter(
        self, unit: str, providers: Sequence[Provider], name: str, deadline: Deadline, *, fresh: bool
    ) -> tuple[Listing, Node | None]:
        """Return a unit's listing and the child of that name in it."""
        if not fresh:
            held = self._listings.peek(unit)
            if held is not None:
                child = held.folder.find(name)
                if isinstance(child, Folder):
                    return held, child
        self._note_date(unit)
        listing = self._listings.get(unit, providers, deadline)
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
            owners = self._owners(listing, date)
            if self._listings.get(layout.child_unit(listing.unit, date), owners, deadline).complete:
                return date
        return None

    def _unit_of(self, folder: Folder) -> str:
        return folder.path[len(self._account.path) + 1 :] + "/" if folder is not self._account else ""

    def _parts_of(self, info: ObjectInfo) -> list[str] | None:
        """Return a file's path below the account, or None where it isn't one."""
        prefix = self._prefixes.get(info.provider)
        return None if prefix is None or not info.key.startswith(prefix) else info.key[len(prefix) :].split("/")

    def _next_date(self, unit: str) -> Listing | None:
        """Return the held listing of the date after a date."""
        if not layout.is_flat(unit):
            return None
        type_unit, date = layout.split_date(unit)
        held = self._listings.peek(type_unit)
        if held is None or date not in held.dates:
            return None
        place = held.dates.index(date) + 1
        return self._listings.peek(layout.child_unit(type_unit, held.dates[place])) if place < len(held.dates) else None

    # Listings ahead of need

    def _note_date(self, unit: str) -> None:
        """Tell the policy that a date is being looked into, and list ahead what it wants."""
        if not layout.is_flat(unit) or self._listings.ttl <= 0:  # with a TTL of 0 nothing listed ahead would be believed
            return
        type_unit, date = layout.split_date(unit)
        listing = self._listings.peek(type_unit)
        if listing is None:
            return
        average = self._listings.average()
        with self._lock:
            ahead = self._walks.setdefault(type_unit, DateWalk()).access(date, listing.dates, average)
        if ahead:
            self._list_ahead(listing, ahead)

    def _list_ahead(self, listing: Listing, dates: Sequence[str]) -> None:
        self._listings.list_ahead((layout.child_unit(listing.unit, date), self._owners(listing, date)) for date in dates)

    def _owners(self, listing: Listing, name: str) -> Sequence[Provider]:
        return listing.owners.get(name, self._listings.providers)


def _find(folder: Folder, parts: Sequence[str]) -> Node | None:
    node: Node | None = folder
    for part in parts:
        if not isinstance(node, Folder):
            return None
        node = node.find(part)
    return node


def _unit(parts: Sequence[str]) -> str:
    return "".join(f"{part}/" for part in parts)
