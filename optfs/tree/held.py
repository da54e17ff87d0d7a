"""Listings that are held: how long each is believed, who refreshes it, and what is shown while that fails.

Rules:

- A listing is believed for `ttl` seconds from when it was asked for, and for `SETTLED_TTL` if its day is complete and past
  (`layout.settled`). With a `ttl` of 0 each operation asks, but joins a listing that is under way.
- A listing that shows a version that a read has found gone, or was denied, is believed no more (`disbelieve`): the next one who needs it asks anew. The
  listing that took the place of such a one is believed for `RELIST` times what it took, whatever is found gone in it: a day that is being
  deleted, or a store that goes on listing what it doesn't give, costs a share of the time.
- One listing of a unit is under way at a time. Whoever needs it waits for it, each within its own deadline; if it fails, it fails for all.
  Whatever is raised once it is noted as under way, and be it for want of memory, ends it: else nobody would ever ask for the unit again.
- When a refresh fails, the former listing goes on being shown. While a store is known to fail, or sends no page for `PATIENCE` that it was asked
  for, nobody who can be shown a former listing waits: the next try runs in the background, at most one a unit in `RETRY_PAUSE` and
  `MAX_RETRIES` at a time. The first success ends that state. What a read has found wrong isn't shown for silence alone. Without a former
  listing the failure is raised. Each change of state is logged once.
- What a refresh brings replaces the former listing in one assignment; whoever holds nodes of the former one keeps a whole tree.
- Listings are dropped, least recently used first, once more than `max_objects` are held.

Threads: a listing that somebody waits for runs in a thread of its own, since whoever waits may be killed, and the pool's may all be at listings
ahead of need; one ahead of need runs in the pool, which runs nothing else.

Locks: `_lock` guards everything below the comment in `__init__`; it is a leaf: no store, pool, event, or log is called under it.
"""

import contextlib
import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from optfs.errors import AccessDenied, DeadlineExceeded, OptfsError, bare
from optfs.stores.protocol import Store
from optfs.threads import StartedThread
from optfs.tree import layout
from optfs.tree.listings import Lister, Listing
from optfs.values import LOOK_AGAIN, Clock, Deadline, Provider
from optfs.workers import Priority, WorkerPool

logger = logging.getLogger(__name__)

SETTLED_TTL = 3600.0
"""Seconds for which the listing of a complete day of the past is believed."""

PATIENCE = 5.0
"""Seconds without a page after which a store counts as silent, and what was listed before is shown: that it fails isn't known yet."""

RETRY_PAUSE = 1.0
"""Seconds between tries to refresh a listing while its store fails: soon enough to recover, seldom enough not to load a failing service."""

MAX_RETRIES = 2
"""Such tries at once: a store that doesn't answer holds each up for the whole timeout, and the pool's other threads list ahead."""

RELIST = 5.0
"""Least age, in times that it took to make, at which a listing that took the place of an outdated one is made anew for the same reason."""

MAX_WARNINGS = 100
"""Keys named in warnings before they stop, so that a broken export can't fill the log."""


@dataclass(frozen=True, slots=True)
class CatalogStatistics:
    """What the catalog has done, for `optfs status`.

    Attributes:
        listings: held now.
        objects: files in them.
        size: bytes of those files.
        pages: requests that succeeded.
        failures: requests that failed, retries not counted.
        hits: answers from a fresh listing.
        stale: answers from an old listing because its refresh failed.
        prefetched: listings made ahead of need.
        left_out: keys that no file system can show, as far as warned about.
        failing: stores whose last listing failed.
        refusing: stores that refused the last one, though others may be allowed.

    """

    listings: int
    objects: int
    size: int
    pages: int
    failures: int
    hits: int
    stale: int
    prefetched: int
    left_out: int
    failing: tuple[Provider, ...]
    refusing: tuple[Provider, ...]


class _Flight:
    """One listing under way. `listing` and `error` are set, one of them, before `done` is. `outdated` is guarded by `HeldListings`' lock."""

    __slots__ = ("began", "done", "error", "listing", "outdated", "providers")

    def __init__(self, began: float, providers: Sequence[Provider]) -> None:
        self.began = began
        self.providers = providers
        self.done = threading.Event()
        self.listing: Listing | None = None
        self.error: BaseException | None = None
        self.outdated = False


@dataclass(slots=True)
class _Held:
    """A listing that is held. Guarded by `HeldListings`' lock.

    Attributes:
        tried_at: when its refresh last failed or was last left to the background, by the monotonic clock.
        denied: whether its last refresh was refused for this prefix alone.
        outdated: whether it is known to show what is no longer there.
        again: whether it took the place of one that was outdated.

    """

    listing: Listing
    tried_at: float
    denied: bool = False
    outdated: bool = False
    again: bool = False


class HeldListings:
    """The listings of one account. Every method may be called by many threads at once."""

    def __init__(
        self,
        stores: Mapping[Provider, Store],
        *,
        pool: WorkerPool,
        ttl: float,
        timeout: float,
        clock: Clock,
        wall_clock: Clock,
        max_objects: int,
    ) -> None:
        """Hold nothing yet. See `Catalog` for the arguments."""
        self.started = wall_clock()
        self._lister = Lister(stores, self.started, self._observe)
        self.account = self._lister.account
        self.providers = self._lister.providers
        self.ttl = ttl
        self._pool = pool
        self._timeout = timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._max_objects = max_objects
        self._lock = threading.Lock()
        # Guarded by _lock: all below. Invariants: _objects is the sum of the held listings' objects; a unit has at most one flight;
        # _retrying names the units whose refresh was left to the background while their store failed.
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._retrying: set[str] = set()
        self._failing: set[Provider] = set()
        self._heard: dict[Provider, float] = {}  # when each store sent its last page
        self._refusing: set[Provider] = set()  # stores that refused the last listing
        self._warned: set[str] = set()
        self._objects = 0
        self._pages = self._failures = self._hits = self._stale = self._prefetched = 0
        self._closed = False

    def peek(self, unit: str) -> Listing | None:
        """Return a listing of any age, or None."""
        with self._lock:
            held = self._held.get(unit)
            return None if held is None else held.listing

    def average(self) -> int:
        """Return how many objects a held listing has."""
        with self._lock:
            return self._objects // max(1, len(self._held))

    def list_ahead(self, wanted: Iterable[tuple[str, Sequence[Provider]]]) -> None:
        """Have units listed by the pool, in that order, unless they are believed or under way, or their store fails, when their turn comes."""
        with contextlib.suppress(MemoryError):  # whoever needs a unit lists it
            for unit, providers in wanted:
                self._pool.submit(partial(self._prefetch, unit, providers), Priority.PREFETCH)

    def statistics(self) -> CatalogStatistics:
        """Return what has been done so far."""
        with self._lock:
            return CatalogStatistics(
                listings=len(self._held),
                objects=self._objects,
                size=sum(held.listing.size for held in self._held.values()),
                pages=self._pages,
                failures=self._failures,
                hits=self._hits,
                stale=self._stale,
                prefetched=self._prefetched,
                left_out=len(self._warned),
                failing=tuple(sorted(self._failing)),
                refusing=tuple(sorted(self._refusing)),
            )

    def close(self) -> None:
        """Start no more listings in the background. What is held can still be looked up."""
        with self._lock:
            self._closed = True

    def get(self, unit: str, providers: Sequence[Provider], deadline: Deadline) -> Listing:
        """Return a unit's listing: the held one while it is believed or can't be refreshed, else a new one.

        Raises:
            AccessError, ServiceError, DeadlineExceeded: it can't be listed, and none is held.
            Abandoned: nobody needs it any more.

        """
        with self._lock:
            held = self._held.get(unit)
            old: Listing | None = None
            outdated = False
            if held is not None:
                self._held.move_to_end(unit)
                old, outdated = held.listing, held.outdated
                now = self._clock()
                if self._believed(held, now):
                    self._hits += 1
                    return old
            flight = self._flights.get(unit)
            leads = flight is None
            if held is not None and (
                held.denied or not self._failing.isdisjoint(providers) or (not outdated and self._silent(providers, now))
            ):
                self._stale += 1
                retries = (
                    leads
                    and not self._closed
                    and unit not in self._retrying
                    and len(self._retrying) < MAX_RETRIES
                    and now - held.tried_at >= RETRY_PAUSE
                )
                if retries:
                    self._retrying.add(unit)
                flight, leads = None, False
            elif flight is None:
                flight = self._flights[unit] = _Flight(self._clock(), providers)
        if flight is None:
            assert old is not None  # only a held listing is shown without waiting
            if retries:
                self._leave(unit, providers)
            return old
        if leads:
            try:
                self._take_off(flight, unit, providers, old, deadline)
            except BaseException as failure:
                self._end(flight, unit, failure)
                raise
        if old is None or outdated:
            # A flight that was begun here is bound by this deadline, and says better than this wait why it failed.
            arrived = _wait(flight.done, deadline) or (leads and flight.done.wait(LOOK_AGAIN))
        else:
            arrived = self._wait_while_pages_come(flight, deadline)
        if not arrived:
            flight = None
        if flight is not None and flight.listing is not None:
            return flight.listing
        error = DeadlineExceeded("a listing took longer than --timeout") if flight is None else flight.error
        if old is None or not isinstance(error, OptfsError):
            assert error is not None  # a flight that has ended has a listing or an error
            raise bare(error) if isinstance(error, OptfsError) else error
        with self._lock:
            self._stale += 1
        return old

    def disbelieve(self, listing: Listing) -> None:
        """Note that a listing shows a version that isn't there any more, unless another one has taken its place."""
        with self._lock:
            held = self._held.get(listing.unit)
            if held is not None and held.listing is listing:
                held.outdated = True
                if flight := self._flights.get(listing.unit):  # which may have looked before
                    flight.outdated = True

    def _believed(self, held: _Held, now: float) -> bool:
        """Return whether a listing needs no refresh. Called with the lock."""
        listing = held.listing
        age = now - listing.asked_at
        if held.outdated and (not held.again or age >= RELIST * listing.took):
            return False
        if age < self.ttl:
            return True
        if self.ttl <= 0 or not listing.complete or age >= SETTLED_TTL:
            return False
        return layout.settled(layout.date_of(listing.folder.name), complete=True, wall=self._wall_clock())

    def _silent(self, providers: Sequence[Provider], now: float) -> bool:
        """Return whether a listing that one of these stores takes part in has brought no page for too long. Called with the lock."""
        flights = self._flights.values()
        return any(now - self._news_of(flight) >= PATIENCE and not set(providers).isdisjoint(flight.providers) for flight in flights)

    def _news_of(self, flight: _Flight) -> float:
        """Return when one of a listing's stores sent its last page, or when it began. Called with the lock."""
        return max(flight.began, *(self._heard.get(provider, flight.began) for provider in flight.providers))

    def _wait_while_pages_come(self, flight: _Flight, deadline: Deadline) -> bool:
        """Wait for a listing until its stores are silent; return whether it has ended. Raises as `_wait` does."""
        while True:
            with self._lock:
                news = self._news_of(flight)
            if _wait(flight.done, deadline.sooner(news + PATIENCE - self._clock())):
                return True
            with self._lock:
                if self._news_of(flight) == news or deadline.remaining() <= 0:
                    return False

    def _take_off(self, flight: _Flight, unit: str, providers: Sequence[Provider], old: Listing | None, deadline: Deadline) -> None:
        """List a unit in a new thread; in this one where there is no memory for another."""
        own = Deadline(deadline.clock, deadline.at)

        def fly() -> None:
            try:
                self._fly(flight, unit, providers, old, own)
            except BaseException as error:  # noqa: BLE001 - kept in the flight for those who wait
                self._end(flight, unit, error)

        try:
            StartedThread(fly, "listing")
        except (RuntimeError, MemoryError):
            fly()

    def _fly(self, flight: _Flight, unit: str, providers: Sequence[Provider], old: Listing | None, deadline: Deadline) -> None:
        """List a unit, keep the result, and end the flight; an OptfsError is left in it. For anything else that is raised the caller ends it."""
        try:
            flight.listing = self._lister.fetch(unit, providers, old, deadline)
        except OptfsError as error:
            traceback.clear_frames(error.__traceback__)  # of former listings and pages
            flight.error = bare(error)
        finally:
            self._land(flight, unit)
        self._warn(flight.listing)
        self._end(flight, unit, None)

    def _end(self, flight: _Flight, unit: str, error: BaseException | None) -> None:
        """End a flight, by an error unless it brought something. Makes nothing new, since there may be no memory for it."""
        with self._lock:
            if self._flights.get(unit) is flight:
                del self._flights[unit]
        if flight.listing is None and flight.error is None:
            flight.error = error
        flight.done.set()

    def _land(self, flight: _Flight, unit: str) -> None:
        """Take a flight's result into what is held."""
        refused = False
        partly: Mapping[Provider, str] = {}
        with self._lock:
            if self._flights.get(unit) is flight:
                del self._flights[unit]
            held = self._held.get(unit)
            if flight.listing is not None:
                partly = {name: why for name, why in flight.listing.refused.items() if held is None or name not in held.listing.refused}
                objects = self._objects + flight.listing.objects - (0 if held is None else held.listing.objects)
                again = held is not None and held.outdated
                self._held[unit] = _Held(flight.listing, flight.listing.asked_at, outdated=flight.outdated, again=again)
                self._objects = objects
                self._held.move_to_end(unit)
                self._evict()
            elif held is not None:
                held.tried_at = self._clock()
                if isinstance(flight.error, AccessDenied):
                    refused, held.denied = not held.denied, True
        if refused and isinstance(flight.error, OptfsError):
            logger.warning("%a can't be listed any more: %s; showing what was last seen (%s)", unit, flight.error, flight.error.detail)
        for provider, why in partly.items():
            logger.warning("%a can't be listed any more on %s, of which is shown what was last seen: %s", unit, provider, why)

    def _evict(self) -> None:
        """Drop the least recently used listings while too much is held. Each counts as one object more, so that empty ones do. Called with the lock."""
        while self._objects + len(self._held) > self._max_objects and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._objects -= dropped.listing.objects

    def _refresh(self, unit: str, providers: Sequence[Provider]) -> bool:
        """List a unit in the background unless that is done or under way. A failure is left to whoever needs the listing."""
        with self._lock:
            held = self._held.get(unit)
            if held is not None:  # it will be wanted soon: not to be dropped for one that is listed before
                self._held.move_to_end(unit)
            if self._closed or unit in self._flights or (held is not None and self._believed(held, self._clock())):
                return False
            flight = self._flights[unit] = _Flight(self._clock(), providers)
        try:
            self._fly(flight, unit, providers, None if held is None else held.listing, Deadline.after(self._clock, self._timeout))
        except BaseException as error:
            self._end(flight, unit, error)
            raise
        return flight.listing is not None

    def _prefetch(self, unit: str, providers: Sequence[Provider]) -> None:
        with self._lock:
            failing = not self._failing.isdisjoint(providers)
        if not failing and self._refresh(unit, providers):
            with self._lock:
                self._prefetched += 1

    def _leave(self, unit: str, providers: Sequence[Provider]) -> None:
        """Leave the refresh of a unit that was noted in `_retrying` to the pool."""
        left = False
        try:
            left = self._pool.submit(partial(self._retry, unit, providers), Priority.PREFETCH)
        finally:
            if not left:
                with self._lock:
                    self._retrying.discard(unit)

    def _retry(self, unit: str, providers: Sequence[Provider]) -> None:
        try:
            self._refresh(unit, providers)
        finally:
            with self._lock:
                self._retrying.discard(unit)

    def _observe(self, provider: Provider, error: OptfsError | None) -> None:
        """Keep whether a store answers. A refusal of one prefix isn't a failing store."""
        with self._lock:
            if error is None:
                self._pages += 1
                self._heard[provider] = self._clock()
                changed = provider in self._failing
                self._failing.discard(provider)
                self._refusing.discard(provider)
            else:
                self._failures += 1
                if isinstance(error, AccessDenied):
                    self._refusing.add(provider)
                else:
                    self._refusing.discard(provider)
                changed = not isinstance(error, AccessDenied) and provider not in self._failing
                if changed:
                    self._failing.add(provider)
        if changed and error is None:
            logger.info("listings from %s work again", provider)
        elif changed and error is not None:
            logger.warning("listings from %s fail: %s; showing what was last seen (%s)", provider, error, error.detail)

    def _warn(self, listing: Listing | None) -> None:
        """Name what a listing leaves out, once a key."""
        for key in () if listing is None else listing.left_out:
            with self._lock:
                if key in self._warned or len(self._warned) >= MAX_WARNINGS:
                    continue
                self._warned.add(key)
                last = len(self._warned) == MAX_WARNINGS
            logger.warning("no file system can hold the name of %a: it isn't shown", key)
            if last:
                logger.warning("further names that aren't shown aren't logged either")


def _wait(done: threading.Event, deadline: Deadline) -> bool:
    """Wait until `done` is set, and return whether it is; raises `Abandoned` where nobody needs it any more."""
    while not done.wait(min(max(0.0, deadline.remaining()), LOOK_AGAIN)):
        deadline.check_abandoned()
        if deadline.remaining() <= 0:
            return done.is_set()
    return True
