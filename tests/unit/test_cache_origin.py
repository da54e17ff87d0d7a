"""Blocks of different services that share a cache folder."""

from optfs.buffers import Buffer
from optfs.cache.origin import OriginCache
from optfs.cache.protocol import BlockKey
from optfs.values import ObjectInfo

HERE, THERE = "http://127.0.0.1:1", "http://127.0.0.1:2"
INFO = ObjectInfo("v1/a", 3, 0.0, "7", "gcp")


class _Cache:
    """What the decorator decorates."""

    def __init__(self) -> None:
        self.blocks: dict[BlockKey, bytes] = {}
        self.closed = False

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        del into
        return self.blocks.get(key)

    def get_range(self, key: BlockKey, start: int, length: int) -> bytes | None:
        data = self.blocks.get(key)
        return None if data is None else data[start - key.start :][:length]

    def put(self, key: BlockKey, data: memoryview) -> None:
        self.blocks[key] = bytes(data)

    def cached_bytes(self, uri: str, info: ObjectInfo) -> int:
        return sum(key.length for key in self.blocks if (key.uri, key.version) == (uri, info.version))

    def close(self) -> None:
        self.closed = True


def test_a_block_of_one_endpoint_is_none_of_another() -> None:
    """Though all else that names it is the same; the provider's own service is one, too."""
    cache = _Cache()
    mounts = {text: OriginCache(cache, {"gs": HERE, "s3": text}) for text in (HERE, THERE)} | {"": OriginCache(cache, {"gs": HERE})}
    key = BlockKey("s3://bucket/v1/a", "7", 3, 0, 3)
    for text, mount in mounts.items():
        assert mount.get(key) is None
        mount.put(key, memoryview(text[-1:].ljust(3).encode()))
    assert [mount.get(key) for mount in mounts.values()] == [b"1  ", b"2  ", b"   "]
    assert [mount.get_range(key, 0, 1) for mount in mounts.values()] == [b"1", b"2", b" "]
    assert [mount.cached_bytes(key.uri, INFO) for mount in mounts.values()] == [3, 3, 3]
    assert cache.get(key) == b"   ", "the provider's own keep their names"


def test_closing_closes_what_is_decorated() -> None:
    """There is one cache below."""
    cache = _Cache()
    OriginCache(cache, {}).close()
    assert cache.closed
