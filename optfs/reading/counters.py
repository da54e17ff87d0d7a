"""What the data path counts.

Rule: `Counters` are changed under the lock of the `blocks.Blocks` that owns them; what leaves the layer is a copy.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Sums since the mount began, but for the last two, which tell the present.

    Attributes:
        memory_hits: look-ups of a block that was in memory.
        disk_hits: fetches that the block cache answered.
        misses: fetches that went to a store.
        fetched_bytes: bytes that stores sent.
        disk_bytes: bytes that the block cache gave.
        read_bytes: bytes handed out to readers.
        unused_bytes: bytes fetched ahead that left memory without ever being read.
        fresh_bytes: bytes fetched ahead, in memory, not read yet.
        resident_bytes: bytes of blocks in memory, and of buffers being filled or kept for reuse.

    """

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    disk_bytes: int = 0
    read_bytes: int = 0
    unused_bytes: int = 0
    fresh_bytes: int = 0
    resident_bytes: int = 0
