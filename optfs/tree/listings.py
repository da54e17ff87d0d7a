"""Lists one unit of the tree, from one store or from both.

Rules for two stores, while the export moves from S3 to GCS:

- A level (the account, a type, another folder) is the union of both stores' levels. Which stores hold a folder is kept beside it
  (`Listing.owners`), so that what only one holds is asked of that one.
- A date comes from exactly one store, so that nothing is counted twice: from the one that has completed it (`_SUCCESS`), GCS before S3
  where that doesn't decide. S3 isn't even asked for a date that GCS has completed.
- A store that fails makes the whole unit fail: half a tree would look like a whole one. `HeldListings` then shows the former listing.
- A store that refuses us contributes to a level what it was last seen to hold, so that what is new on the other one appears: S3 will refuse
  everybody one day. For a level that was never seen, and for dates, the rule above holds.

All pages are fetched before the folder is made; they are requested one after the other, since each names the next. No lock is held here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optfs.errors import AccessError, InvalidResponse, OptfsError, ServiceError
from optfs.stores.protocol import Store
from optfs.tree import layout
from optfs.tree.folders import Built, File, Folder, build_level, build_subtree, files_from, folder_mtime, unite_levels
from optfs.values import Deadline, ListPage, ObjectInfo, Provider

PREFERENCE: tuple[Provider, ...] = ("gcp", "aws")
"""Which store wins where both hold the same: the one that the export is moving to."""

Observer = Callable[[Provider, OptfsError | None], None]
"""Told of each page: which store, and why it failed or None."""


MOST_EMPTY = 100
"""Pages in a row that hold nothing: Google's may be empty in the middle of a listing."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One unit as it was at a moment. Immutable.

    Attributes:
        unit: its name, see `optfs.tree.layout`.
        folder: its folder with its children.
        exists: whether the stores showed anything below its prefix.
        objects: how many files it holds in memory.
        size: bytes of those files.
        complete: whether it is a date with `_SUCCESS`.
        dates: names of the date folders in it, sorted.
        owners: for folders that not all stores hold: which do, in order of preference.
        asked_at: when the first request began, by the monotonic clock.
        took: seconds from then until it was made.
        left_out: keys that no file system can show.
        providers: stores of which it was made: that were asked for it, or for the former one where they refused.
        refused: stores that refused it, and with which words; what they were last seen to hold is in it.

    """

    unit: str
    folder: Folder
    exists: bool
    objects: int
    size: int
    complete: bool
    owners: Mapping[str, tuple[Provider, ...]]
    asked_at: float
    took: float
    left_out: Sequence[str]
    dates: tuple[str, ...]
    providers: tuple[Provider, ...]
    refused: Mapping[Provider, str]


class Lister:
    """Lists units. Stateless: any thread may call it."""

    def __init__(self, stores: Mapping[Provider, Store], started: float, observe: Observer) -> None:
        """Make a lister.

        Args:
            stores: one or both; all of one account.
            started: mtime of folders that have none of their own, seconds since the epoch.
            observe: called after each page, without a lock.

        """
        self.providers: tuple[Provider, ...] = tuple(provider for provider in PREFERENCE if provider in stores)
        if not self.providers or len({store.root.account for store in stores.values()}) != 1:
            raise ValueError("a tree shows one account, from one store at least")
        self._stores = stores
        self._started = started
        self._observe = observe
        self.account = stores[self.providers[0]].root.account

    def fetch(self, unit: str, providers: Sequence[Provider], old: Listing | None, deadline: Deadline) -> Listing:
        """List a unit in those stores, which are given in order of preference.

        Raises:
            AccessError, ServiceError, DeadlineExceeded: a store failed.

        """
        asked_at = deadline.clock()
        known = {} if old is None else {file.info.key: file for file in files_from(old.folder, ())}
        path = f"/{self.account}/{unit}"[:-1]
        owners: dict[str, tuple[Provider, ...]] = {}
        refused: dict[Provider, str] = {}
        if layout.is_flat(unit):
            built = self._date(unit, path, providers, known, deadline)
        else:
            levels = self._levels(unit, path, providers, known, old, refused, deadline)
            owners = self._owners(levels)
            built = unite_levels(list(levels.values())) if len(levels) > 1 else levels[providers[0]]
        folder = built.folder
        return Listing(
            unit=unit,
            folder=folder,
            exists=built.exists,
            objects=built.objects,
            size=sum(file.info.size for file in files_from(folder, ())),
            complete=layout.is_flat(unit) and _complete(built),
            owners=owners,
            asked_at=asked_at,
            took=deadline.clock() - asked_at,
            left_out=built.left_out,
            dates=layout.dates_among(node.name for node in folder.nodes or () if isinstance(node, Folder)) if layout.is_type(unit) else (),
            providers=tuple(providers),
            refused=refused,
        )

    def _date(self, unit: str, path: str, providers: Sequence[Provider], known: Mapping[str, File], deadline: Deadline) -> Built:
        mtime = folder_mtime(layout.unit_name(unit), self._started)
        best: Built | None = None
        for provider in providers:
            prefix = self._stores[provider].root.prefix + unit
            built = build_subtree(path, mtime, prefix, self._pages(provider, prefix, None, deadline).objects, known)
            if _complete(built):
                return built
            if best is None or (built.exists and not best.exists):
                best = built
        if best is None:
            raise ValueError("no store was asked for")
        return best

    def _levels(
        self,
        unit: str,
        path: str,
        providers: Sequence[Provider],
        known: Mapping[str, File],
        old: Listing | None,
        refused: dict[Provider, str],
        deadline: Deadline,
    ) -> dict[Provider, Built]:
        """Return one level of each store, in order of preference; note in `refused` those whose is what was last seen."""
        levels: dict[Provider, Built] = {}
        for place, provider in enumerate(providers):
            prefix = self._stores[provider].root.prefix + unit
            try:
                page = self._pages(provider, prefix, "/", deadline)
            except AccessError as error:
                if isinstance(error, ServiceError):  # the credential can't be renewed now: that is a failing service
                    raise
                refused[provider] = f"{error.message} ({error.detail})"
                if old is None or provider not in old.providers or place + 1 == len(refused) == len(providers):  # nobody gave an answer
                    raise
                levels[provider] = self._last_seen(old, provider)
            else:
                levels[provider] = build_level(path, self._started, prefix, page, known)
        return levels

    def _owners(self, levels: Mapping[Provider, Built]) -> dict[str, tuple[Provider, ...]]:
        """Return which stores hold a folder, for those that not all do."""
        owners: dict[str, tuple[Provider, ...]] = {}
        if len(self.providers) > 1:
            for provider, built in levels.items():
                for node in built.folder.nodes or ():
                    if isinstance(node, Folder):
                        owners[node.name] = (*owners.get(node.name, ()), provider)
        return {name: held_by for name, held_by in owners.items() if held_by != self.providers}

    def _last_seen(self, old: Listing, provider: Provider) -> Built:
        """Return what a former listing of a level has from one store."""
        nodes = []
        for node in old.folder.nodes or ():
            held_by = (node.info.provider,) if isinstance(node, File) else old.owners.get(node.name, self.providers)
            if provider in held_by:
                nodes.append(node)
        folder = Folder(old.folder.path, old.folder.mtime, tuple(nodes))
        return Built(folder, exists=bool(nodes), objects=sum(isinstance(node, File) for node in nodes))

    def _pages(self, provider: Provider, prefix: str, delimiter: str | None, deadline: Deadline) -> ListPage:
        """Return all pages as one."""
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        continuation: str | None = None
        asked: set[str] = set()
        empty = 0
        while True:
            try:
                deadline.check("a listing")
                page = self._stores[provider].list_page(prefix, delimiter=delimiter, continuation=continuation, deadline=deadline)
            except OptfsError as error:
                self._observe(provider, error)
                raise
            self._observe(provider, None)
            empty = 0 if page.objects or page.prefixes else empty + 1
            if empty > MOST_EMPTY:
                raise InvalidResponse("the service sends empty pages of a listing without end", detail=f"prefix {prefix!a}")
            objects += page.objects
            prefixes += page.prefixes
            if page.continuation is None:
                return ListPage(tuple(objects), tuple(prefixes), None)
            if page.continuation in asked:
                raise InvalidResponse("the service repeats a page of a listing without end", detail=f"prefix {prefix!a}")
            continuation = page.continuation
            asked.add(continuation)


def _complete(built: Built) -> bool:
    return isinstance(built.folder.find(layout.SUCCESS), File)
