"""How much must go before something comes: the limit and the free-space floor. Pure.

Rules: what a file costs is what `du` shows for it, not its length, so that the limit holds however a user looks. The index, its journal
and the folders count too. Room is made before anything is written, and what mounts of the same folder have promised to write counts as
written; so none of them passes the limit or the floor, not even for a moment. The floor is kept by blocks alone: the index's own growth and
its journal (`_JOURNAL` at most) may go below it, as what other programs write may.
"""

from optfs.values import KiB, MiB

_UNIT = 4 * KiB  # the allocation unit of ext4, xfs and btrfs as they come
_ENTRY = 128  # a name of up to 72 bytes in a folder whose blocks are half full
_FIXED = 32 * _UNIT  # the folder, its shards, CACHEDIR.TAG, an index's first pages
_ROW = 1 * KiB  # what one new row may add to the index: the row and three index entries, pages split in two
_JOURNAL = 4 * MiB  # a transaction's rollback journal: never more pages than the index has, nor than the batches here touch


def charge(file_length: int) -> int:
    """Return what a file of this length costs, bytes."""
    return -(-file_length // _UNIT) * _UNIT + _ENTRY


def overhead(index_size: int, new_rows: int) -> int:
    """Return what the cache costs beside its blocks, bytes, once `new_rows` are added to an index file of `index_size` bytes."""
    return _FIXED + index_size + min(index_size, _JOURNAL) + new_rows * _ROW


def to_evict(*, limit: int, used: int, new: int, free: int, floor: int) -> int:
    """Return how many bytes must go so that `new` may come, with `used` held and `free` neither taken nor promised."""
    return max(used + new - limit, new + floor - free if new or free < floor else 0, 0)
