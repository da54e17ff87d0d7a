"""Looks into the block cache: once for each fetch, by few threads, and none at a disk that hangs; what that gives late."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockKey
from optfs.errors import Abandoned, DeadlineExceeded, OutOfMemory, ServiceError
from optfs.reading import lookups as reading_lookups
from optfs.reading.blocks import Blocks, Refusal
from optfs.reading.fetches import Fetch, Part
from optfs.reading.files import Files, ident_of
from optfs.reading.lookups import Lookups
from optfs.reading.readahead import BLOCK, PIECE
from optfs.values import Deadline, MiB
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


class HangingCache(FakeCache):
    """A block cache on a disk that doesn't answer until `gate` is set; then, with `starve`, there is no memory for what it has."""

    def __init__(self, *, starve: bool = False) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.asked = threading.Event()
        self.gets = 0
        self._starve = starve

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Wait, and return a block that was put."""
        self.gets += 1
        self.asked.set()
        assert self.gate.wait(PATIENCE)
        if self._starve:
            raise MemoryError
        return super().get(key, into)


def part_of(key: str) -> Part:
    """Return what names the whole of an object of 1000 bytes."""
    return (ident_of(info(key, 1000)), 0, 1000)


def hold(cache: FakeCache, key: str) -> None:
    """Have an object of 1000 bytes be in the block cache."""
    cache.blocks[BlockKey(f"s3://bucket/{key}", "1", 1000, 0, 1000)] = contents(key, 0, 1000)


def lookups_of(files: Files) -> Lookups:
    """Return what knows whether the cache's disk hangs."""
    lookups = files.fetcher._lookups
    assert lookups is not None
    return lookups


def test_a_cache_disk_that_hangs_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it doesn't give in time comes from the store, also what was to be fetched ahead; until it answers nothing else waits for it."""
    monkeypatch.setattr(reading_lookups, "PATIENCE", 0.05)
    store, cache = FakeStore(), HangingCache()
    hold(cache, "held")
    with reading(store, cache) as files:
        try:
            stream(files.open(info("big", 5 * BLOCK), nothing_follows), 0, 5 * BLOCK)
            readers = [started(check, files.open(info(f"file-{number}", 1000), nothing_follows), 0, 1000) for number in range(20)]
            ended(*readers)
            check(files.open(info("held", 1000), nothing_follows), 0, 1000)
            assert ("held", 0, 1000) in store.requests
        finally:
            cache.gate.set()
        until(lambda: not lookups_of(files).hangs())
        requests = len(store.requests)
        files.blocks.clear()
        check(files.open(info("held", 1000), nothing_follows), 0, 1000)
        assert len(store.requests) == requests


def test_a_cache_disk_is_asked_again_as_soon_as_it_has_answered() -> None:
    """Also by who fetches ahead: a stream on its way notices, though it waits for nothing. Meanwhile it is tried now and then, and nobody waits."""
    store, cache, clock = FakeStore(), HangingCache(), HandClock()
    with reading(store, cache, clock=clock) as files:
        try:
            assert files.fetcher.ahead(info("late", 1000), (part_of("late"),)) is not Refusal.NO_ROOM
            assert cache.asked.wait(PATIENCE)
            assert not lookups_of(files).hangs()
            clock.now += reading_lookups.PATIENCE
            assert lookups_of(files).hangs()
            for name in ("a", "b", "c"):
                check(files.open(info(name, 1000), nothing_follows), 0, 1000)
            until(lambda: cache.gets == 2)
            clock.now += reading_lookups.TRY_AGAIN
            for name in ("d", "e"):
                check(files.open(info(name, 1000), nothing_follows), 0, 1000)
            until(lambda: cache.gets == 3)
            assert files.fetcher.ahead(info("f", 1000), (part_of("f"),)) is not Refusal.NO_ROOM
            until(lambda: len(store.requests) == 6)
        finally:
            cache.gate.set()
        until(lambda: not lookups_of(files).hangs())
        hold(cache, "held")
        assert files.fetcher.ahead(info("held", 1000), (part_of("held"),)) is not Refusal.NO_ROOM
        until(lambda: files.blocks.find(part_of("held"), 0) is not None)
    assert sorted(key for key, _, _ in store.requests) == ["a", "b", "c", "d", "e", "f", "late"]


@contextmanager
def hanging(files: Files, cache: HangingCache, *keys: str) -> Iterator[None]:
    """Have the looks for some objects hang that are fetched ahead, until the end."""
    try:
        for key in keys:
            assert files.fetcher.ahead(info(key, 1000), (part_of(key),)) is not Refusal.NO_ROOM
        until(lambda: cache.gets == len(keys))
        yield
    finally:
        cache.gate.set()


class BadSector(HangingCache):
    """A block cache whose disk answers for all blocks but some; each look for one of those hangs."""

    def __init__(self, *bad: str) -> None:
        super().__init__()
        self._bad = bad
        self.well = 0  # looks for the others

    def get(self, key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        """Return a block that was put, if it is well."""
        if key.uri.removeprefix("s3://bucket/") in self._bad:
            return super().get(key, into)
        self.well += 1
        return FakeCache.get(self, key, into)


def test_one_block_that_hangs_takes_no_other_out_of_the_cache() -> None:
    """The disk answers for the others: what is cached stays readable without a network."""
    store, cache, clock = FakeStore(), BadSector("bad"), HandClock()
    for name in ("new", "held", "other"):
        hold(cache, name)
    with reading(store, cache, clock=clock) as files:
        with hanging(files, cache, "bad"):
            clock.now += reading_lookups.PATIENCE
            assert lookups_of(files).hangs()
            check(files.open(info("new", 1000), nothing_follows), 0, 1000)
            until(lambda: not lookups_of(files).hangs())
            store.fail = lambda _info, _start: ServiceError("no network")
            for name in ("held", "other"):
                check(files.open(info(name, 1000), nothing_follows), 0, 1000)
        until(lambda: lookups_of(files)._stuck == 0)
        assert lookups_of(files)._running == {}


def test_a_block_that_hangs_while_others_are_found_is_no_disk_that_hangs() -> None:
    """Before it is noticed, too: readers may be slow. And the hanging block's own reader is no try of the disk."""
    store, cache, clock = FakeStore(), BadSector("bad"), HandClock()
    for name in ("a", "b", "c"):
        hold(cache, name)
    with reading(store, cache, clock=clock) as files, hanging(files, cache, "bad"):
        clock.now += reading_lookups.PATIENCE
        check(files.open(info("bad", 1000), nothing_follows), 0, 1000)
        assert lookups_of(files)._tried_at < clock.now
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)
        until(lambda: not lookups_of(files).hangs())
        assert files.fetcher.ahead(info("b", 1000), (part_of("b"),)) is not Refusal.NO_ROOM
        until(lambda: files.blocks.find(part_of("b"), 0) is not None)
    cache, clock = BadSector("bad"), HandClock()
    hold(cache, "a")
    with reading(store, cache, clock=clock) as files, hanging(files, cache, "bad"):
        clock.now += reading_lookups.PATIENCE / 2
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)
        clock.now += reading_lookups.PATIENCE
        assert not lookups_of(files).hangs()


def test_many_blocks_that_hang_are_a_disk_that_hangs() -> None:
    """Though others were found meanwhile, in the kernel's page cache perhaps: each more that hangs takes a thread."""
    bad = [f"bad-{number}" for number in range(reading_lookups.MOST_HANGING + 1)]
    store, cache, clock = FakeStore(), BadSector(*bad), HandClock()
    hold(cache, "a")
    with reading(store, cache, clock=clock) as files, hanging(files, cache, *bad):
        clock.now += reading_lookups.PATIENCE / 2
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)
        clock.now += reading_lookups.PATIENCE
        assert lookups_of(files).hangs()
        assert not lookups_of(files).may_try()


def test_what_is_not_in_the_cache_does_not_tell_that_its_disk_answers() -> None:
    """The kernel knows that there is no such file; each look for one that there is would hang again."""
    store, cache, clock = FakeStore(), BadSector("bad"), HandClock()
    with reading(store, cache, clock=clock) as files, hanging(files, cache, "bad"):
        clock.now += reading_lookups.PATIENCE
        assert lookups_of(files).hangs()
        check(files.open(info("new", 1000), nothing_follows), 0, 1000)
        until(lambda: cache.well == 1 and len(lookups_of(files)._running) == 1)
        assert lookups_of(files).hangs()


def test_a_disk_that_began_to_hang_while_a_reader_waited_for_room_is_not_waited_for() -> None:
    """Its time may be over by then, though the store would answer."""
    store, cache, clock = FakeStore(), HangingCache(), HandClock()
    with reading(store, cache, clock=clock) as files:
        try:
            assert files.fetcher.ahead(info("late", 1000), (part_of("late"),)) is not Refusal.NO_ROOM
            assert cache.asked.wait(PATIENCE)
            real = Blocks.demand

            def demand(blocks: Blocks, fetch: Fetch, deadline: Deadline, let_go: Callable[[], None]) -> Fetch | None:
                clock.now += reading_lookups.PATIENCE
                return real(blocks, fetch, deadline, let_go)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Blocks, "demand", demand)
                check(files.open(info("a", 1000), nothing_follows), 0, 1000)
            assert ("a", 0, 1000) in store.requests
        finally:
            cache.gate.set()


def test_what_a_look_gave_at_last_stays_what_readers_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the store's worker has just begun, and only then says which buffer it fills: it is empty."""
    monkeypatch.setattr(reading_lookups, "PATIENCE", 0.05)
    store, cache = FakeStore(), HangingCache()
    store.gate.clear()
    hold(cache, "held")
    begun, overtaken = threading.Event(), threading.Event()
    fill, overtake = Fetch.fill, Fetch.overtake

    def late_fill(fetch: Fetch, view: memoryview) -> None:
        begun.set()
        assert overtaken.wait(PATIENCE)
        fill(fetch, view)

    def told_overtake(fetch: Fetch, view: memoryview) -> None:
        overtake(fetch, view)
        overtaken.set()

    monkeypatch.setattr(Fetch, "fill", late_fill)
    monkeypatch.setattr(Fetch, "overtake", told_overtake)
    with reading(store, cache) as files:
        reader = started(check, files.open(info("held", 1000), nothing_follows), 0, 1000)
        assert begun.wait(PATIENCE)
        cache.gate.set()
        ended(reader)
        until(lambda: len(store.requests) == 1)
        check(files.open(info("held", 1000), nothing_follows), 0, 1000)
        assert files.counters().read_bytes == 2000


def test_a_cache_disk_that_hangs_leaves_threads_that_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may begin to hang under a stream of cached blocks, all of whose fetches ahead look for them at that moment."""
    monkeypatch.setattr(reading_lookups, "ASIDE", 1)
    store, cache, clock = FakeStore(), HangingCache(), HandClock()
    with reading(store, cache, clock=clock, threads=4) as files:
        try:
            for number in range(12):
                assert files.fetcher.ahead(info(f"ahead-{number}", 1000), (part_of(f"ahead-{number}"),)) is not Refusal.NO_ROOM
            until(lambda: cache.gets == 2)  # a thread that fetches, and one that looks: others are kept for readers
            clock.now += reading_lookups.PATIENCE
            assert files.fetcher.ahead(info("new", 1000), (part_of("new"),)) is not Refusal.NO_ROOM
            until(lambda: [key for key, _, _ in store.requests] == ["new"])
            for name in ("a", "ahead-0", "ahead-11"):
                check(files.open(info(name, 1000), nothing_follows), 0, 1000)
            assert [key for key, _, _ in store.requests] == ["new", "a", "ahead-0", "ahead-11"]
        finally:
            cache.gate.set()


def test_what_is_fetched_ahead_is_looked_for_once_though_a_reader_comes_for_it() -> None:
    """A stream from the cache would read each block twice that it catches up with."""
    store, cache = FakeStore(), HangingCache()
    for name in ("held", "other"):
        hold(cache, name)
    with reading(store, cache) as files:
        assert files.fetcher.ahead(info("held", 1000), (part_of("held"),)) is not Refusal.NO_ROOM
        assert cache.asked.wait(PATIENCE)
        readers = [started(check, files.open(info("held", 1000), nothing_follows), 0, 1000)]
        flight = files.blocks.flight(part_of("held"))
        assert flight is not None
        until(lambda: flight.asked_at < float("inf"))
        readers.append(started(check, files.open(info("other", 1000), nothing_follows), 0, 1000))
        until(lambda: cache.gets >= 2)  # looks come in order: the first reader's has come by then
        cache.gate.set()
        ended(*readers)
    assert cache.gets == 2
    assert store.requests == []


def test_threads_that_fetch_look_again_and_again() -> None:
    """Whether they found something, or nothing, or failed: each turn to look is given back."""
    store, cache = FakeStore(), FakeCache()
    for name in ("ahead-0", "ahead-3"):
        hold(cache, name)

    def get(key: BlockKey, into: Buffer | None = None) -> bytes | Buffer | None:
        if key.uri.endswith("5"):
            raise MemoryError
        return real(key, into)

    real = cache.get
    cache.get = get  # type: ignore[method-assign]
    with reading(store, cache) as files:
        for number in range(3 * reading_lookups.ASIDE):
            assert files.fetcher.ahead(info(f"ahead-{number}", 1000), (part_of(f"ahead-{number}"),)) is not Refusal.NO_ROOM
        assert files.blocks.wait_idle(Deadline.after(time.monotonic, PATIENCE))
        aside = lookups_of(files).aside
        until(lambda: aside._value == reading_lookups.ASIDE)


def test_what_a_slow_cache_disk_gives_at_last_is_read_while_the_store_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that had to spin up: what it holds is readable without a network, and the store's failure is nobody's answer."""
    monkeypatch.setattr(reading_lookups, "PATIENCE", 0.05)
    store, cache = FakeStore(), HangingCache()
    store.gate.clear()
    store.fail = lambda _info, _start: ServiceError("no network")
    hold(cache, "held")
    with reading(store, cache) as files:
        reader = started(check, files.open(info("held", 1000), nothing_follows), 0, 1000)
        until(lambda: bool(store.requests))
        cache.gate.set()
        ended(reader)
        assert files.counters().read_bytes == 1000
        store.gate.set()
        assert files.blocks.wait_idle(Deadline.after(time.monotonic, PATIENCE))
        check(files.open(info("held", 1000), nothing_follows), 0, 1000)
        assert len(store.requests) == 1


def test_a_read_of_many_ranges_waits_for_a_cache_disk_that_hangs_once() -> None:
    """It waits for one after the other; a third of its time for each, and the third would have none left."""
    store, cache = FakeStore(), HangingCache()
    with reading(store, cache, memory=2 * MiB, timeout=1.5) as files:
        try:
            assert files.block == PIECE
            check(files.open(info("a", 16 * MiB), nothing_follows), 3 * MiB, 8 * PIECE)
            assert len(store.requests) == 8
        finally:
            cache.gate.set()


def test_who_has_no_time_left_asks_no_store_for_what_the_cache_is_asked_for() -> None:
    """It has waited for room, say, and the disk was asked a moment ago."""
    store, cache = FakeStore(), HangingCache()
    with reading(store, cache) as files:
        try:
            file = files.open(info("a", 1000), nothing_follows)
            deadline = Deadline.after(time.monotonic, 0.05)
            sources = file._sources(0, 1000, deadline)
            with pytest.raises(DeadlineExceeded):
                file._collect(sources, deadline, 1)
            assert store.requests == []
        finally:
            cache.gate.set()


def test_a_look_that_fails_as_its_reader_gives_up_waiting_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't said that the read took longer than --timeout: only the disk's time was over."""
    monkeypatch.setattr(reading_lookups, "PATIENCE", 0.05)
    store, cache = FakeStore(), HangingCache()
    real = Fetch.wait

    def wait(fetch: Fetch, upto: int, deadline: Deadline) -> memoryview:
        try:
            return real(fetch, upto, deadline)
        except DeadlineExceeded:
            if fetch.begin():
                files.fetcher._fail(fetch, OutOfMemory("there is no memory for it"))
            cache.gate.set()
            raise

    monkeypatch.setattr(Fetch, "wait", wait)
    with reading(store, cache) as files:
        check(files.open(info("a", 1000), nothing_follows), 0, 1000)


def test_who_waits_for_a_cache_disk_that_hangs_can_be_killed() -> None:
    """And its own time is over when it is over."""
    store, cache = FakeStore(), HangingCache()
    store.gate.clear()
    with reading(store, cache, timeout=0.2) as files:
        try:
            with pytest.raises(DeadlineExceeded):
                files.open(info("a", 1000), nothing_follows).read(0, 1000)
            with pytest.raises(Abandoned):
                files.open(info("b", 1000), nothing_follows).read(0, 1000, lambda: True)
        finally:
            cache.gate.set()


def test_a_look_that_finds_no_memory_does_not_end_what_a_worker_has_begun() -> None:
    """A fetch ahead that a reader came for: the memory's account would be wrong from then on."""
    cache = HangingCache(starve=True)
    fetch = Fetch(info("a", 1000), ((ident_of(info("a", 1000)), 0, 1000),), demanded=False)
    with reading(FakeStore(), cache) as files:
        assert files.blocks.ahead(fetch) is None
        look = started(files.fetcher._look, fetch.ticket)
        assert cache.asked.wait(PATIENCE)
        assert fetch.begin()
        cache.gate.set()
        ended(look)
        assert not fetch.failed
        files.blocks.landed(fetch, [memoryview(bytes(1000))])
        assert files.counters().resident_bytes == 1000


def test_a_look_and_a_worker_fill_buffers_of_their_own() -> None:
    """A fetch ahead that a reader comes for is in both's hands at once; what the look left over is kept as long as somebody may need it."""
    fetch = Fetch(info("a", 1000), ((ident_of(info("a", 1000)), 0, 1000),), demanded=False)
    fetch.spare = spare = bytearray(1000)
    look = fetch.take_buffer()
    assert look is spare
    assert fetch.take_buffer() is not spare
    fetch.keep_buffer(look)
    assert fetch.take_buffer() is spare
    assert fetch.begin()
    fetch.keep_buffer(look)
    assert fetch.take_buffer() is not spare
