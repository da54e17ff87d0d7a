"""Keeps apart in one cache folder what different services call by the same name.

A version names content within one service only: emulators count their generations from the same number, each time they start. So blocks
that come from another endpoint than the provider's own carry it in their identity. No lock of its own.
"""

from collections.abc import Mapping
from dataclasses import replace

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockCache, BlockKey
from optfs.values import ObjectInfo


class OriginCache:
    """A block cache for objects of certain services; implements `cache.protocol.BlockCache`."""

    def __init__(self, cache: BlockCache, endpoints: Mapping[str, str]) -> None:
        """Decorate `cache`; `endpoints` are those that aren't the providers' own, by the scheme of their objects' uris (`s3`, `gs`)."""
        self._cache = cache
        self._endpoints = endpoints

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Return the block; see `BlockCache`."""
        return self._cache.get(self._key(key), into)

    def get_range(self, key: BlockKey, start: int, length: int) -> bytes | None:
        """Return a range of a block; see `BlockCache`."""
        return self._cache.get_range(self._key(key), start, length)

    def put(self, key: BlockKey, data: memoryview) -> None:
        """Offer a block; see `BlockCache`."""
        self._cache.put(self._key(key), data)

    def cached_bytes(self, uri: str, info: ObjectInfo) -> int:
        """Return how many bytes of a version are there; see `BlockCache`."""
        return self._cache.cached_bytes(self._uri(uri), info)

    def close(self) -> None:
        """Close the cache; see `BlockCache`."""
        self._cache.close()

    def _key(self, key: BlockKey) -> BlockKey:
        return replace(key, uri=self._uri(key.uri))

    def _uri(self, uri: str) -> str:
        endpoint = self._endpoints.get(uri.partition(":")[0])
        return uri if endpoint is None else f"{endpoint} {uri}"
