"""Room in memory under open files: readers that wait for it, buffers that are used again, and want of memory."""

import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockKey
from optfs.errors import DeadlineExceeded, OptfsError, OutOfMemory
from optfs.reading.blocks import Blocks, Refusal
from optfs.reading.fetches import Fetch, Part
from optfs.reading.files import ident_of
from optfs.reading.readahead import BLOCK, PIECE
from optfs.reading.spares import LENT
from optfs.values import Deadline, KiB, MiB, ObjectInfo, Provider
from tests.support.reading import (
    PATIENCE,
    FakeCache,
    FakeStore,
    HandClock,
    check,
    contents,
    ended,
    info,
    nothing_follows,
    reading,
    started,
    stream,
    until,
)

BIG = info("big", 64 * MiB + 12345)


class Watched(bytearray):
    """A buffer that can be referred to weakly."""


@pytest.mark.parametrize("memory", [1, 2 * MiB, 8 * MiB])
def test_many_readers_with_little_memory_all_get_their_bytes(memory: int) -> None:
    """No reader waits for another that waits for it."""
    store = FakeStore()
    with reading(store, FakeCache(), memory=memory, threads=6) as files, ThreadPoolExecutor(64) as readers:

        def run(number: int) -> None:
            file = files.open(info(f"file-{number % 32}", 2 * MiB + 17), nothing_follows)
            if number % 2:
                stream(file, 0, file.info.size, 256 * KiB)
            else:
                for at in range(6):
                    check(file, (at * 7 + number) * 64 * KiB % file.info.size, 200 * KiB)
            file.close()

        for done in [readers.submit(run, number) for number in range(64)]:
            done.result(100)


def test_a_piece_in_memory_holds_no_more_than_its_own_bytes() -> None:
    """A piece fetched in a run lets go of the run's buffer."""
    with reading(FakeStore()) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 40 * MiB, 8 * PIECE)
        until(
            lambda: (
                files.blocks.known((("aws", "big", "1"), 40 * MiB, PIECE))
                and not files.blocks.flight((("aws", "big", "1"), 40 * MiB, PIECE))
            )
        )
        views = file.read(40 * MiB, 10)
        assert [memoryview(view.obj).nbytes for view in views] == [PIECE]


def test_blocks_of_the_cache_are_read_into_buffers_that_are_used_again() -> None:
    """New memory costs more than the copy into it."""

    class Watch(FakeCache):
        def __init__(self) -> None:
            super().__init__()
            self.buffers: list[Buffer] = []  # keeps them, or a new one could be taken for one that is gone

        def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
            if into is not None and not any(into is buffer for buffer in self.buffers):
                self.buffers.append(into)
            return super().get(key, into)

    size = 40 * BLOCK
    store, cache = FakeStore(), Watch()
    for _ in range(2):  # the second time from the cache
        cache.buffers.clear()
        with reading(store, cache, memory=64 * MiB) as files:
            stream(files.open(info("a", size), nothing_follows), 0, size)
            until(lambda: sum(map(len, cache.blocks.values())) == size)
            counters = files.counters()
    assert (counters.disk_bytes, counters.fetched_bytes) == (size, 0)
    assert 0 < len(cache.buffers) <= len(cache.blocks) / 2


def test_a_buffer_that_is_still_viewed_is_used_again_once_it_is_not() -> None:
    """As when the cache's writer has it in hand; meanwhile it takes no room of others, and nobody gets it."""
    blocks = Blocks(4 * MiB, MiB, HandClock())

    def admitted(name: str) -> Fetch:
        one = info(name, MiB)
        fetch = Fetch(one, ((ident_of(one), 0, MiB),), demanded=True)
        assert blocks.demand(fetch, Deadline.after(HandClock(), 0)) is fetch
        return fetch

    def landed(fetch: Fetch, buffer: Buffer) -> None:
        blocks.landed(fetch, [memoryview(buffer).toreadonly()])
        fetch.finish(memoryview(b""))

    buffer = admitted("a").take_buffer()
    landed(first := admitted("b"), buffer)
    writer = memoryview(buffer)
    blocks.drop(first.parts[0])
    for name in ("c", "d", "e"):
        fetch = admitted(name)
        assert fetch.spare is None
        landed(fetch, fetch.take_buffer())
    assert blocks.counters().resident_bytes == 4 * MiB
    writer.release()
    assert admitted("f").take_buffer() is buffer


@pytest.mark.parametrize("viewed", [False, True])
def test_buffers_kept_for_reuse_take_no_room_beyond_the_bound(viewed: bool) -> None:
    """Also when what comes is no block, so that nobody takes them."""
    blocks = Blocks(16 * MiB, MiB, HandClock())
    kept: list[weakref.ref[Watched]] = []

    def land(name: str, length: int) -> Part:
        one = info(name, length)
        fetch = Fetch(one, ((ident_of(one), 0, length),), demanded=True)
        assert blocks.demand(fetch, Deadline.after(HandClock(), 0)) is fetch
        buffer = Watched(length)
        kept.append(weakref.ref(buffer))
        blocks.landed(fetch, [memoryview(buffer).toreadonly()])
        return fetch.parts[0]

    parts = [land(f"block-{number}", MiB) for number in range(16)]
    views = [blocks.find(part, MiB) for part in parts] if viewed else []
    for part in parts:
        blocks.drop(part)
    views.clear()
    for number in range(32):
        land(f"file-{number}", MiB // 2)
    assert sum(len(buffer) for buffer in (each() for each in kept) if buffer is not None) <= 16 * MiB


def test_of_buffers_that_are_still_viewed_only_the_last_few_are_expected_back() -> None:
    """Nobody counts them: once their views are gone, memory holds no more than those beyond its bound."""
    blocks = Blocks(3 * LENT * PIECE, PIECE, HandClock())
    buffers: list[weakref.ref[Watched]] = []
    views: list[memoryview | None] = []
    for number in range(3 * LENT):
        one = info(f"{number}", PIECE)
        fetch = Fetch(one, ((ident_of(one), 0, PIECE),), demanded=True)
        assert blocks.demand(fetch, Deadline.after(HandClock(), 0)) is fetch
        buffer = Watched(PIECE)
        buffers.append(weakref.ref(buffer))
        blocks.landed(fetch, [memoryview(buffer).toreadonly()])
        del buffer
        views.append(blocks.find(fetch.parts[0], PIECE))
        blocks.drop(fetch.parts[0])
    assert blocks.counters().resident_bytes == 0
    views.clear()
    assert [number for number, buffer in enumerate(buffers) if buffer() is not None] == list(range(2 * LENT, 3 * LENT))


def test_who_waits_for_room_holds_no_block() -> None:
    """Of a read across two blocks, the first one's bytes are copied; 200 such readers held hundreds of blocks that nobody counted."""
    store = FakeStore()
    size = 16 * PIECE
    with reading(store, memory=size, threads=20) as files:
        block = files.block
        file = files.open(info("a", 2 * size), nothing_follows)
        check(file, 4 * block, block)
        store.gate.clear()
        stuck = [started(check, files.open(info(f"stuck-{number}", block), nothing_follows), 0, block) for number in range(12)]
        until(lambda: len(store.requests) >= 1 + 12)
        spanning = started(check, file, 5 * block - 1000, 2000)
        until(lambda: any(fetch.info == file.info for queue in files.blocks._queues.values() for fetch in queue))
        part = (ident_of(file.info), 4 * block, block)
        assert files.blocks.known(part)
        files.blocks.drop(part)
        assert files.blocks._spares._lent == []
        store.gate.set()
        ended(spanning, *stuck)


@pytest.mark.parametrize(("resident", "missing"), [(4, 5), (5, 4)])
def test_who_waits_for_bytes_holds_no_resident_block(resident: int, missing: int) -> None:
    """Whether its bytes come before the missing ones or after them, they are copied: the block may be evicted meanwhile."""
    store = FakeStore()
    with reading(store, memory=16 * PIECE) as files:
        block = files.block
        file = files.open(info("a", 20 * block), nothing_follows)
        check(file, resident * block, block)
        store.gate.clear()
        spanning = started(check, file, 5 * block - 1000, 2000)

        def waits() -> bool:
            flight = files.blocks._flights.get((ident_of(file.info), missing * block, block))
            return flight is not None and flight._waiting > 0

        until(waits)
        part = (ident_of(file.info), resident * block, block)
        assert files.blocks.known(part)
        files.blocks.drop(part)
        assert files.blocks._spares._lent == []
        store.gate.set()
        ended(spanning)


def test_readers_get_room_in_the_order_they_came() -> None:
    """Nobody overtakes: a read that many others pass would fail by its deadline though the service is well."""
    blocks = Blocks(16 * MiB, MiB, time.monotonic)
    order: list[int] = []

    def fetch(name: str) -> Fetch:
        one = info(name, MiB)
        return Fetch(one, ((ident_of(one), 0, MiB),), demanded=True)

    def wait(number: int) -> None:
        blocks.demand(fetch(f"waiting-{number}"), Deadline.after(time.monotonic, PATIENCE))
        order.append(number)

    admitted = [fetch(f"{number}") for number in range(16)]
    for each in admitted:
        blocks.demand(each, Deadline.after(time.monotonic, 0))
    waiting = []
    for number in range(8):
        waiting.append(started(wait, number))
        until(lambda number=number: sum(map(len, blocks._queues.values())) == number + 1)  # type: ignore[misc]  # mypy can't type defaults of lambdas
    for number, each in enumerate(admitted[:8]):
        blocks.failed(each, OutOfMemory("so that it holds no longer"))
        with pytest.raises(DeadlineExceeded):
            blocks.demand(fetch(f"late-{number}"), Deadline.after(time.monotonic, 0))
        until(lambda number=number: len(order) == number + 1)  # type: ignore[misc]  # as above
    ended(*waiting)
    assert order == list(range(8))


def test_nothing_is_admitted_ahead_while_a_reader_waits_for_room_for_its_provider() -> None:
    """What little is free is the reader's as soon as there is more; another provider's readers aren't concerned."""
    blocks = Blocks(16 * MiB, MiB, time.monotonic)

    def fetch(name: str, length: int, *, provider: Provider = "aws", demanded: bool = True) -> Fetch:
        one = replace(info(name, length), provider=provider)
        return Fetch(one, ((ident_of(one), 0, length),), demanded=demanded)

    admitted = [fetch(f"{number}", MiB) for number in range(15)]
    for each in [*admitted, fetch("half", MiB // 2)]:
        blocks.demand(each, Deadline.after(time.monotonic, 0))
    reader = started(blocks.demand, fetch("waiting", MiB), Deadline.after(time.monotonic, PATIENCE))
    until(lambda: any(blocks._queues.values()))
    assert blocks.ahead(fetch("ahead", PIECE, demanded=False)) is Refusal.NO_ROOM
    assert blocks.ahead(fetch("ahead", PIECE, provider="gcp", demanded=False)) is None
    for each in admitted[:2]:
        blocks.failed(each, OutOfMemory("so that it holds no longer"))
    ended(reader)
    assert blocks.ahead(fetch("ahead", PIECE, demanded=False)) is None


def test_want_of_memory_gives_up_what_is_resident_and_the_read_is_tried_again() -> None:
    """Else a mount whose limit is reached would refuse some reads for good."""
    store = FakeStore()

    def starve(_info: ObjectInfo, _start: int) -> OptfsError | None:
        if files.counters().resident_bytes > MiB:
            raise MemoryError
        return None

    with reading(store) as files:
        for number in range(3):
            check(files.open(info(f"resident-{number}", MiB), nothing_follows), 0, MiB)
        assert files.counters().resident_bytes == 3 * MiB
        store.fail = starve
        check(files.open(info("wanted", MiB), nothing_follows), 0, MiB)
        assert files.counters().resident_bytes == MiB


def test_want_of_memory_loses_no_count_of_what_was_fetched_ahead() -> None:
    """A part that can't be noted as read stays one that was fetched ahead, and is there when there is memory again."""

    class Starved(OrderedDict[Part, memoryview]):
        def __setitem__(self, part: Part, view: memoryview) -> None:
            raise MemoryError

    blocks = Blocks(16 * MiB, MiB, time.monotonic)
    one = info("a", MiB)
    fetch = Fetch(one, ((ident_of(one), 0, MiB),), demanded=False)
    assert blocks.ahead(fetch) is None
    blocks.landed(fetch, [memoryview(bytes(MiB))])
    before = blocks.counters()
    read, blocks._read = blocks._read, Starved()
    with pytest.raises(MemoryError):
        blocks.find(fetch.parts[0], MiB)
    blocks._read = read
    assert blocks.counters() == before
    assert blocks.find(fetch.parts[0], MiB) is not None
    blocks.clear()
    assert (blocks.counters().resident_bytes, blocks.counters().fresh_bytes) == (0, 0)


def test_a_fetch_that_found_no_room_for_its_store_is_no_attempt() -> None:
    """A reader that joined it as its last attempt waits for room, and has its bytes."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(info("a", 8 * MiB), nothing_follows)
        gone = Fetch(file.info, ((ident_of(file.info), 0, 4 * MiB),), demanded=True)
        gone.missed = True
        assert gone.give_up()
        views = file._collect([(gone, 0, 100, 300)], Deadline.after(time.monotonic, PATIENCE), 1)
        assert b"".join(views) == contents("a", 100, 200)


def test_a_block_that_a_stream_passed_as_it_waited_for_the_caches_writer_goes_as_soon_as_that_has_it() -> None:
    """Else memory fills up with blocks that nobody reads again, and has no room for buffers that come back."""

    class Slow(FakeCache):
        def __init__(self) -> None:
            super().__init__()
            self.gate = threading.Event()

        def put(self, key: BlockKey, data: memoryview) -> None:
            assert self.gate.wait(PATIENCE)
            super().put(key, data)

    store, cache = FakeStore(), Slow()
    size = 8 * BLOCK
    with reading(store, cache) as files:
        try:
            stream(files.open(info("a", size), nothing_follows), 0, size)
        finally:
            cache.gate.set()
        until(lambda: len(cache.blocks) == 8 and not files.blocks._flights)
        ident = ident_of(info("a", size))
        assert [at for at in range(8) if files.blocks.known((ident, at * BLOCK, BLOCK))] == [6, 7]


def test_a_block_that_waits_for_the_caches_writer_keeps_its_room_and_holds_up_no_reader() -> None:
    """On a slow disk each fetching thread held one that was evicted already, and that nobody counted."""

    class Slow(FakeCache):
        def __init__(self) -> None:
            super().__init__()
            self.gate = threading.Event()
            self.waiting: list[BlockKey] = []

        def put(self, key: BlockKey, data: memoryview) -> None:
            self.waiting.append(key)
            assert self.gate.wait(PATIENCE)
            super().put(key, data)

    store, cache = FakeStore(), Slow()
    with reading(store, cache, memory=16 * PIECE, threads=20) as files:
        readers = [started(check, files.open(info(f"file-{number}", PIECE), nothing_follows), 0, PIECE) for number in range(20)]
        try:
            until(lambda: len(cache.waiting) + sum(map(len, files.blocks._queues.values())) == 20)
            assert len(cache.waiting) == 16
            until(lambda: sum(not reader.is_alive() for reader in readers) == 16)
        finally:
            cache.gate.set()
        ended(*readers)
        until(lambda: len(cache.blocks) == 20)
