"""What the reading layer knows of the block cache on disk."""

from dataclasses import dataclass
from typing import Protocol

from optfs.buffers import Buffer
from optfs.values import ObjectInfo


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Names the bytes `[start, start + length)` of one version of one object.

    Attributes:
        uri: `s3://…` or `gs://…`, with the endpoint before it where that isn't the provider's own (`cache.origin`).
        version: ETag or generation.
        size: of the whole object, bytes.

    """

    uri: str
    version: str
    size: int
    start: int
    length: int


class BlockCache(Protocol):
    """Blocks that outlive the process. No method raises: a failing disk means no caching. Any thread may call any method."""

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Return the block, checked against its identity and checksums, or None. A block that fails the check is dropped.

        `into`, of the block's length, is where it is read to and what is returned then; after None its contents are undefined.
        """
        ...

    def get_range(self, key: BlockKey, start: int, length: int) -> bytes | None:
        """Return `length` bytes of the block, more than 0, from `start` on (counted in the object, as `key.start` is), checked, or None.

        Damage elsewhere in the block may go unnoticed.
        """
        ...

    def put(self, key: BlockKey, data: memoryview) -> None:
        """Offer a block; it may be written later, by another thread, or be dropped when the disk doesn't keep up."""
        ...

    def cached_bytes(self, uri: str, info: ObjectInfo) -> int:
        """Return how many bytes of this version are in the cache (`user.optfs.cached`)."""
        ...

    def close(self) -> None:
        """Write what was taken, bounded in time, and let go of the folder."""
        ...
