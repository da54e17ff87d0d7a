"""A store of keys in memory, and a catalog over it whose clocks are moved by hand and whose pool runs when told."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optfs.errors import OptfsError, ServiceUnavailable
from optfs.stores.protocol import Progress, Store
from optfs.tree.catalog import Catalog
from optfs.tree.folders import Node
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo, Provider, encode_name
from optfs.workers import Job, Priority, WorkerPool

ACCOUNT = "123"
PREFIX = "v1/account_id=123/"
WALL = 1_793_534_400.0
"""2026-11-01 12:00 UTC."""
LIMIT = 30.0
"""Seconds that a loaded machine may take to get somewhere."""


class MemoryStore:
    """Lists keys below the account's prefix. `asked` holds each request; `error` and `gate` fail and hold up requests."""

    def __init__(self, provider: Provider = "gcp", keys: Iterable[str] = (), *, page_size: int = 1000) -> None:
        self.provider = provider
        self.objects: dict[str, ObjectInfo] = {}
        self.page_size = page_size
        self.asked: list[tuple[str, str | None]] = []
        self.error: OptfsError | None = None
        self.gate: Callable[[str], None] | None = None
        self.lock = threading.Lock()
        for key in keys:
            self.put(key)

    @property
    def root(self) -> AccountRoot:
        """The account."""
        return AccountRoot(ACCOUNT, self.provider, "bucket", PREFIX)

    def put(self, key: str, *, size: int = 7, mtime: float = 1000.0, version: str = "v1") -> None:
        """Put a key, below the account's prefix."""
        self.objects[key] = ObjectInfo(PREFIX + key, size, mtime, version, self.provider)

    def units(self) -> list[str]:
        """Return what was asked for, each page once, relative to the account's prefix."""
        return [prefix.removeprefix(PREFIX) for prefix, _ in self.asked]

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page."""
        with self.lock:
            self.asked.append((prefix, delimiter))
        if self.gate is not None:
            self.gate(prefix.removeprefix(PREFIX))
        if self.error is not None:
            raise self.error
        entries: list[ObjectInfo | str] = []
        for key in sorted(self.objects, key=lambda key: key.encode("utf-8", "surrogatepass")):
            info = self.objects[key]
            if not info.key.startswith(prefix):
                continue
            head, found, _ = info.key[len(prefix) :].partition(delimiter or "\uffff")
            entry = prefix + head + found if delimiter and found else info
            if not entries or entries[-1] != entry:
                entries.append(entry)
        start = int(continuation or 0)
        page = entries[start : start + self.page_size]
        return ListPage(
            tuple(entry for entry in page if isinstance(entry, ObjectInfo)),
            tuple(entry for entry in page if isinstance(entry, str)),
            str(start + self.page_size) if start + self.page_size < len(entries) else None,
        )

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Not for trees."""
        raise AssertionError("a tree reads no object")

    def close(self) -> None:
        """Do nothing."""


class HandPool(WorkerPool):
    """Keeps jobs until `run`."""

    def __init__(self) -> None:
        super().__init__("hand", 3)
        self.jobs: list[Job] = []

    def submit(self, job: Job, priority: Priority) -> bool:
        """Keep a job."""
        self.jobs.append(job)
        return True

    def run(self) -> int:
        """Run the jobs kept so far, and return how many."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()
        return len(jobs)


@dataclass
class Rig:
    """A catalog over stores in memory."""

    stores: Sequence[MemoryStore]
    ttl: float = 60.0
    max_objects: int = 1_000_000
    pool: WorkerPool = field(default_factory=HandPool)
    now: float = 100.0
    wall: float = WALL

    def __post_init__(self) -> None:
        stores: Mapping[Provider, Store] = {store.provider: store for store in self.stores}
        self.catalog = Catalog(
            stores,
            pool=self.pool,
            listing_ttl=self.ttl,
            timeout=30.0,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
            max_objects=self.max_objects,
        )

    def deadline(self, seconds: float = 30.0) -> Deadline:
        """Return a deadline that far from now."""
        return Deadline.after(lambda: self.now, seconds)

    def lookup(self, path: str) -> Node:
        """Look a path below the account up."""
        return self.catalog.lookup(f"/{ACCOUNT}/{path}".rstrip("/"), self.deadline())

    def names(self, path: str = "") -> list[str]:
        """List a folder below the account."""
        return [name for name, _ in self.catalog.children(f"/{ACCOUNT}/{path}".rstrip("/"), self.deadline())]

    def run_jobs(self) -> int:
        """Run what the pool keeps."""
        assert isinstance(self.pool, HandPool)
        return self.pool.run()


def by_bytes(names: Iterable[str]) -> list[str]:
    """Sort as folders do."""
    return sorted(names, key=encode_name)


def outage() -> OptfsError:
    """Return a store's failure."""
    return ServiceUnavailable("the service can't be reached", detail="request 1")


def in_threads(count: int, work: Callable[[], object]) -> tuple[list[threading.Thread], list[object]]:
    """Do the same in several threads; return them, and what they return or fail with, as it comes."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except OptfsError as error:
            results.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def join_all(threads: list[threading.Thread]) -> None:
    """Wait for threads to end."""
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
