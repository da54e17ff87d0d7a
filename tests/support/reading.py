"""A store and a block cache in memory whose bytes, failures and pace a test decides, for the tests of the reading layer."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockKey
from optfs.errors import OptfsError
from optfs.reading.fetcher import Gone
from optfs.reading.files import Files, OpenFile
from optfs.stores.protocol import Progress, Store
from optfs.values import AccountRoot, Clock, Deadline, ListPage, MiB, ObjectInfo
from optfs.workers import WorkerPool

PATIENCE = 30.0
"""Seconds that a test waits for what must happen."""

_PATTERN = random.Random(7).randbytes(MiB + 13)  # a length that divides no block: each block's bytes differ


def contents(key: str, start: int, length: int) -> bytes:
    """Return the bytes of a fake object."""
    at = (start + sum(key.encode())) % len(_PATTERN)
    return (_PATTERN[at:] + _PATTERN * (length // len(_PATTERN) + 1))[:length]


def info(key: str, size: int, version: str = "1") -> ObjectInfo:
    """Return a fake object."""
    return ObjectInfo(key=key, size=size, mtime=0.0, version=version, provider="aws")


def nothing_follows(_count: int) -> Sequence[ObjectInfo]:
    """Answer `following` of a file that is alone."""
    return ()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it didn't come about.

    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what a test waits for didn't happen"
        time.sleep(0.002)


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the moment."""
        return self.now


class FakeStore:
    """Objects of any name and size. `gate` holds requests back (after `partial` bytes of each) until it is set."""

    def __init__(self) -> None:
        self.root = AccountRoot("1", "aws", "bucket", "v1/account_id=1/")
        self.gate = threading.Event()
        self.gate.set()
        self.partial = 0
        self.gated: Callable[[ObjectInfo, int], bool] = lambda _info, _start: True
        self.fail: Callable[[ObjectInfo, int], OptfsError | None] = lambda _info, _start: None
        self.copying = True
        self._lock = threading.Lock()
        self._requests: list[tuple[str, int, int]] = []

    @property
    def requests(self) -> list[tuple[str, int, int]]:
        """Key, start and length of each request so far, in order."""
        with self._lock:
            return list(self._requests)

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """List nothing."""
        return ListPage((), (), None)

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill the buffer as the test has arranged it."""
        assert 0 < len(buffer) <= info.size - start
        with self._lock:
            self._requests.append((info.key, start, len(buffer)))
        filled = 0
        if not self.gate.is_set() and self.gated(info, start):
            filled = min(self.partial, len(buffer))
            if filled:
                buffer[:filled] = contents(info.key, start, filled)
                progress(filled)
            assert self.gate.wait(PATIENCE)
        error = self.fail(info, start)
        if error is not None:
            raise error
        if self.copying:
            buffer[filled:] = contents(info.key, start + filled, len(buffer) - filled)
        progress(len(buffer))

    def close(self) -> None:
        """Close nothing."""


class FakeCache:
    """A block cache without limits."""

    def __init__(self) -> None:
        self.blocks: dict[BlockKey, bytes] = {}

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Return a block that was put, and leave other bytes in the buffer where there is none."""
        data = self.blocks.get(key)
        if into is None or data is None:
            if into is not None:
                into[:] = b"\xa5" * len(into)
            return data
        into[:] = data
        return into

    def get_range(self, key: BlockKey, start: int, length: int) -> bytes | None:
        """Return a range of a block that was put."""
        data = self.blocks.get(key)
        return None if data is None else data[start - key.start :][:length]

    def put(self, key: BlockKey, data: memoryview) -> None:
        """Keep a block."""
        assert len(data) == key.length
        self.blocks[key] = bytes(data)

    def cached_bytes(self, uri: str, info: ObjectInfo) -> int:
        """Return the bytes of one version."""
        return sum(key.length for key in self.blocks if key.uri == uri and key.version == info.version)

    def close(self) -> None:
        """Close nothing."""


@contextmanager
def reading(
    store: FakeStore,
    cache: FakeCache | None = None,
    *,
    memory: int = 256 * MiB,
    timeout: float = PATIENCE,
    clock: Clock = time.monotonic,
    threads: int = 8,
    gone: Gone = lambda _info: None,
    through: Store | None = None,
) -> Iterator[Files]:
    """Give files over a fake store, read by `through` if given, and end their pool."""
    pool = WorkerPool("fetch", threads)
    looks = WorkerPool("look", 3)
    files = Files(
        {"aws": through or store}, cache, pools={"aws": pool}, looks=looks, memory=memory, timeout=timeout, clock=clock, gone=gone
    )
    try:
        yield files
    finally:
        store.gate.set()
        files.blocks.close()
        assert pool.close(PATIENCE)
        assert looks.close(PATIENCE)


def check(file: OpenFile, offset: int, length: int) -> None:
    """Read, and compare with what the object holds."""
    expected = max(0, min(length, file.info.size - offset))
    assert b"".join(file.read(offset, length)) == contents(file.info.key, offset, expected)


def stream(file: OpenFile, start: int, stop: int, step: int = MiB) -> None:
    """Read one piece after the other, and compare."""
    for offset in range(start, stop, step):
        check(file, offset, min(step, stop - offset))


def started(call: object, *arguments: object) -> threading.Thread:
    """Run a call in a thread."""
    assert callable(call)
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def ended(*threads: threading.Thread) -> None:
    """Wait for threads."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
