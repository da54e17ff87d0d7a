"""All of optfs but the network and FUSE, put together by hand: a bucket in memory, a clock that a test moves, and no thread but the cache's.

`World.start` and `World.stop` are a mount and its end; the bucket, the clock and the cache folder outlive them.
"""

from collections.abc import Callable
from pathlib import Path

from optfs.cache.disk import DiskCache
from optfs.cache.folder import BLOCKS, TEMPORARY
from optfs.demo.objects import Bucket, Version
from optfs.errors import VersionGone
from optfs.filesystem import FileSystem, Owner
from optfs.reading.files import Files
from optfs.stores.protocol import Progress
from optfs.tree.catalog import Catalog
from optfs.units import FreeFloor
from optfs.values import AccountRoot, Deadline, ListPage, MiB, ObjectInfo, Provider
from optfs.workers import Job, Priority, WorkerPool
from tests.support.caches import WAIT, HandClock, make_cache
from tests.support.model import Stored

ACCOUNT = "123"
PREFIX = f"v1/account_id={ACCOUNT}/"
NOON = 1_793_707_200.0
"""2026-11-03 12:00 UTC, when a world begins."""
MEMORY = 2 * MiB
"""The least: blocks of 128 KiB, so that files of half a megabyte have several and memory is short."""


class BucketStore:
    """The embedded services' bucket without HTTP, a few entries a page."""

    def __init__(self, bucket: Bucket, provider: Provider) -> None:
        self.bucket = bucket
        self.root = AccountRoot(ACCOUNT, provider, "bucket", PREFIX)

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page."""
        page = self.bucket.list_page(prefix, delimiter=delimiter or "", continuation=continuation, limit=3)
        return ListPage(tuple(map(self._info, page.objects)), tuple(page.prefixes), page.continuation)

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill the buffer from the version that is asked for, or fail."""
        assert 0 < len(buffer) <= info.size - start
        version = self.bucket.get(info.key)
        if version is None or self.tag(version) != info.version:
            raise VersionGone("the version is gone")
        content = version.content
        assert isinstance(content, bytes)
        buffer[:] = content[start : start + len(buffer)]
        progress(len(buffer))

    def close(self) -> None:
        """Do nothing."""

    def tag(self, version: Version) -> str:
        """Return what pins a version on this provider."""
        return version.etag if self.root.provider == "aws" else str(version.generation)

    def _info(self, version: Version) -> ObjectInfo:
        return ObjectInfo(version.key, version.size, version.mtime, self.tag(version), self.root.provider)


class InlinePool(WorkerPool):
    """Runs each job where it is submitted: nothing goes on while a test moves the clock or the bucket."""

    def __init__(self) -> None:
        super().__init__("inline", 3)

    def submit(self, job: Job, priority: Priority) -> bool:
        """Run the job."""
        job()
        return True


class World:
    """A bucket, and a mount of it that can be ended and begun again."""

    def __init__(self, folder: Path, provider: Provider, ttl: float) -> None:
        self.bucket = Bucket()
        self.store = BucketStore(self.bucket, provider)
        self.clock = HandClock()
        self.began = self.clock.now
        self.ttl = ttl
        self._folder = folder
        self.cache: DiskCache
        self.filesystem: FileSystem
        self.start()

    def wall(self) -> float:
        """Return the time of day."""
        return NOON + self.clock.now - self.began

    def start(self) -> None:
        """Mount."""
        stores = {self.store.root.provider: self.store}
        pool = InlinePool()
        self.cache = make_cache(self._folder, clock=self.clock, min_free=FreeFloor())
        catalog = Catalog(stores, pool=pool, listing_ttl=self.ttl, timeout=30.0, clock=self.clock, wall_clock=self.wall)
        files = Files(stores, self.cache, pools=dict.fromkeys(stores, pool), looks=pool, memory=MEMORY, timeout=WAIT, clock=self.clock)
        self._files = files
        roots = {self.store.root.provider: self.store.root}
        owner = Owner(1, 2, 0o222)
        self.filesystem = FileSystem(catalog, files, roots=roots, owner=owner, cache=self.cache, timeout=30.0, clock=self.clock)

    def stop(self) -> None:
        """Unmount; open files are lost."""
        assert self._files.close(WAIT)
        self.cache.close()
        del self.filesystem, self._files, self.cache  # whose descriptors go with the last reference

    def put(self, key: str, content: bytes, mtime: float) -> Stored:
        """Write a version of an object."""
        version = self.bucket.put(PREFIX + key, content, mtime=mtime)
        return Stored(content, version.mtime, self.store.tag(version))

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.bucket.delete(PREFIX + key)

    def damage(self, harm: Callable[[list[Path]], None]) -> None:
        """Let something happen to the block files, once all that is on its way there has arrived."""
        assert self.cache.flush(WAIT)
        harm(block_files(self._folder))


def block_files(cache_dir: Path) -> list[Path]:
    """Return the files that hold blocks, in a stable order. Any of them may vanish: a running mount goes on writing and evicting."""
    return sorted(path for path in (cache_dir / BLOCKS).glob("?/*") if not path.name.endswith(TEMPORARY))


def nothing(files: list[Path]) -> None:
    """Do no harm."""


def delete_all(files: list[Path]) -> None:
    """Evict everything, as another mount or a person may."""
    for file in files:
        file.unlink(missing_ok=True)


def flip(files: list[Path]) -> None:
    """Change one byte of each block, in its header or in its data, as a failing disk does."""
    for number, file in enumerate(files):
        data = bytearray(_read(file))
        if data:
            data[(7919 * (number + 1)) % len(data)] ^= 0x40
            file.write_bytes(data)


def cut(files: list[Path]) -> None:
    """Leave each block with its beginning only."""
    for file in files:
        file.write_bytes(_read(file)[:-1])


def confuse(files: list[Path]) -> None:
    """Put each block's file where the next block's is."""
    contents = [_read(file) for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
