"""A mount's cache in a process of its own, to be killed or stopped: `python -m tests.support.cache_child FOLDER LIMIT FIRST LENGTH`.

Writes blocks numbered from FIRST on, without end, and prints how many it has stored after each few.
"""

import sys
import time
from pathlib import Path

from optfs.cache.disk import DiskCache
from optfs.units import FreeFloor
from tests.support.caches import block_key, content


def main() -> None:
    """Write until killed."""
    folder, limit, first, length = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    cache = DiskCache(folder, limit=limit, min_free=FreeFloor(), clock=time.monotonic)
    number = first
    while True:
        for _ in range(5):
            key = block_key(number, length)
            cache.put(key, memoryview(content(key)))
            number += 1
        cache.flush(30)
        sys.stdout.write(f"{cache.stats().stored}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
