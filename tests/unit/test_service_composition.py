"""What one mount consists of."""

import threading
from pathlib import Path
from typing import Any

from optfs.config import load
from optfs.service.composition import THREADS, Mount
from optfs.service.providers import Connected
from optfs.stores.counters import StoreCounters
from optfs.workers import Priority
from tests.support.trees import MemoryStore


def test_all_threads_for_listings_list_ahead_of_need(tmp_path: Path) -> None:
    """Whoever waits for a listing has one of his own: none is kept free."""
    source: Any = None
    connected = Connected("aws", source, MemoryStore("aws"), StoreCounters(), has_data=True)
    mount = Mount(load({"cache_size": "0"}, environ={}), [connected], tmp_path, "fuse2")
    together = threading.Barrier(THREADS + 1)

    def meet() -> None:
        together.wait(10)

    try:
        for _ in range(THREADS):
            mount._lists.submit(meet, Priority.PREFETCH)
        meet()
    finally:
        mount.close()
