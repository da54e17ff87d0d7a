"""The composition root: everything that one mount consists of, put together, and taken apart in the opposite order.

From bottom to top: stores with retries, the block cache, the pools of fetching threads, the catalog, open files, the file system. `Mount` owns
them all but the connections it is given; nothing else in optfs makes one of these for a running mount.

`--memory` is shared: an eighth of it, at most `BACKLOG`, for what malloc loses between buffers of mixed sizes (without it 200 readers of different
blocks passed `--memory` + 150 MiB by 36, and no stream was faster); as much for blocks that wait to be written to the cache, if there is one; the
rest for open files.
"""

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optfs.bridge.bindings import Binding
from optfs.cache.disk import BACKLOG, SMALLEST, CacheStats, open_cache
from optfs.cache.folder import open_folder
from optfs.cache.origin import OriginCache
from optfs.cache.protocol import BlockCache
from optfs.config import Config
from optfs.errors import ConfigError, OptfsError
from optfs.filesystem import FileSystem, Owner, Totals
from optfs.reading.files import Files
from optfs.service.providers import Connected
from optfs.stores.protocol import Store
from optfs.stores.retry import RetryingStore
from optfs.tree.catalog import Catalog
from optfs.tree.folders import Folder
from optfs.values import Deadline, Provider
from optfs.workers import WorkerPool

THREADS = 36
"""Ranged GETs of one service at once: as many blocks as it may bring into the default `--memory` with a cache.
With 24 a service that is 100 ms away was left idle: without a cache eight streams took 3.8 s, a stream 2.0, a thousand files of a MiB 5.7; with 36
2.6, 1.6 and 4.2. With 30 ms, where two cores are busy, the stream gained 8 %, eight into a cache lost 2 to 7 %; memory of 64 and 200 readers was
the same (in turns)."""

LIST_THREADS = 24
"""Listings ahead of need at once. With 36, `find` over 365 days took as long, with 30 and with 100 ms a request (in turns)."""

LOOK_THREADS = 8
"""Reads of the block cache for those who wait: a local disk gives no more for more."""

UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})
"""Errors that tell of a wrong folder, not of a failing disk, or one that was mounted read-only."""

FIRST_TYPES = 8
"""Types that are listed before a mount is called usable; an export has two or three."""

CLOSE_LIMIT = 3.0
"""Seconds that running fetches get to end; what they bring nobody wants any more."""


def check_cache_folder(config: Config) -> str:
    """Return why a mount would have no block cache, or "" where its folder can be made, opened and written to.

    A cache that fails later costs speed only; a folder that can't be had from the start is most likely a mistake in the settings. One that is
    another user's, open to others, or on a disk that fails isn't used, with a warning.

    Raises:
        ConfigError: it can't be made, or not be opened.

    """
    if config.cache_size == 0:
        return "--cache-size 0"
    if config.cache_size < SMALLEST:
        return "--cache-size is less than its own folders and index need"
    try:
        folder = open_folder(config.cache_dir)
    except ConfigError as error:
        if not config.cache_dir.is_dir():
            raise
        return error.message
    except OSError as error:
        message = f"--cache-dir: {config.cache_dir} can't be used: {error.strerror}; choose another, or turn the cache off: --cache-size 0"
        if error.errno in UNUSABLE:
            raise ConfigError(message) from None
        return message
    return "" if os.access(folder.path, os.W_OK) else f"--cache-dir: {folder.path} isn't writable; choose another"


def _by_origin(cache: BlockCache, config: Config) -> BlockCache:
    endpoints = {"s3": config.s3_endpoint_url, "gs": config.gcs_endpoint_url}
    others = {scheme: url for scheme, url in endpoints.items() if url is not None}
    return OriginCache(cache, others) if others else cache


class Mount:
    """The parts of one mount."""

    def __init__(self, config: Config, connected: Sequence[Connected], mountpoint: Path, binding: Binding) -> None:
        """Put the parts together; sends nothing.

        Raises:
            ConfigError: the block cache's folder can't be used.

        """
        check_cache_folder(config)
        self.config = config
        self.connected = connected
        self.mountpoint = mountpoint
        self.binding = binding
        self.started_at = time.time()
        self.account = connected[0].store.root.account
        stores: dict[Provider, Store] = {each.provider: RetryingStore(each.store, each.source, each.counters) for each in connected}
        share = min(BACKLOG, config.memory // 8)
        self._cache = open_cache(config.cache_dir, limit=config.cache_size, min_free=config.cache_min_free, backlog=share)
        self._pools: dict[Provider, WorkerPool] = {provider: WorkerPool(f"fetch-{provider}", THREADS) for provider in stores}
        self._lists = WorkerPool("list", LIST_THREADS, reserve=0)  # has nothing but listings ahead of need
        self._looks = WorkerPool("look", LOOK_THREADS)
        self.catalog = Catalog(stores, pool=self._lists, listing_ttl=config.listing_ttl, timeout=config.timeout)
        block_cache = None if self._cache is None else _by_origin(self._cache, config)
        self.files = Files(
            stores,
            block_cache,
            pools=self._pools,
            looks=self._looks,
            memory=config.memory - (1 if self._cache is None else 2) * share,
            timeout=config.timeout,
            gone=self.catalog.gone,
        )
        self.filesystem = FileSystem(
            self.catalog,
            self.files,
            roots={each.provider: each.store.root for each in connected},
            owner=Owner(config.uid, config.gid, config.umask),
            cache=block_cache,
            timeout=config.timeout,
            clock=time.monotonic,
            totals=self._totals,
        )

    def list_first(self) -> None:
        """List the account and its types, the types at once, so that the first look at the mount finds its upper levels listed.

        A failure is left to whoever looks.
        """
        if not self.config.listing_ttl:
            return

        def types() -> list[str]:
            deadline = Deadline.after(time.monotonic, self.config.timeout)
            return [
                f"/{self.account}/{name}" for name, node in self.catalog.children(f"/{self.account}", deadline) if isinstance(node, Folder)
            ]

        def list_folder(path: str) -> None:
            with contextlib.suppress(OptfsError):
                self.catalog.children(path, Deadline.after(time.monotonic, self.config.timeout))

        with contextlib.suppress(OptfsError), ThreadPoolExecutor(FIRST_TYPES, "first-list") as threads:
            list(threads.map(list_folder, types()[:FIRST_TYPES]))

    def _totals(self) -> Totals:
        known = self.catalog.statistics()
        return Totals(known.size, known.objects)

    def cache_stats(self) -> CacheStats:
        """Return what the block cache did."""
        return CacheStats("off", 0) if self._cache is None else self._cache.stats()

    def _close_pools(self) -> None:
        deadline = Deadline.after(time.monotonic, CLOSE_LIMIT)
        for pool in (self._lists, self._looks, *self._pools.values()):
            pool.close(max(0.0, deadline.remaining()))

    def close(self) -> None:
        """End all threads, as far as they end in time, and let go of the cache. What was handed in as `connected` stays the caller's."""
        with contextlib.ExitStack() as stack:
            if self._cache is not None:
                stack.callback(self._cache.close)
            stack.callback(self._close_pools)
            stack.callback(self.files.close, CLOSE_LIMIT)
            stack.callback(self.catalog.close)
