"""Memory under open files: what is fetched ahead, what makes room for what, and the bound that all keeps to; see also `test_reading_room`."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optfs.errors import AccessDenied, OptfsError, ServiceUnavailable
from optfs.reading.blocks import FRESH, Refusal
from optfs.reading.files import Files, OpenFile, ident_of
from optfs.reading.readahead import BLOCK
from optfs.values import KiB, MiB, ObjectInfo
from tests.support.reading import (
    PATIENCE,
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


def test_files_of_a_walk_are_fetched_before_they_are_read_and_few_in_vain() -> None:
    """A folder among others, read in order: the next files are there, and its end is respected."""
    store = FakeStore()
    tree = [info(f"date={date}/part-{at:04}", 100 * KiB) for date in range(3) for at in range(200)]
    with reading(store) as files:
        for at in range(200):
            file = files.open(tree[at], lambda count, at=at: tree[at + 1 : at + 1 + count])  # type: ignore[misc]  # mypy can't type defaults of lambdas
            check(file, 0, MiB)
            file.close()
        assert files.close(PATIENCE)
        counters = files.counters()
    assert len(store.requests) == len(set(store.requests)) <= 220
    assert counters.unused_bytes + counters.fresh_bytes <= 20 * 100 * KiB


def test_a_file_opened_but_not_read_fetches_nothing() -> None:
    """What the kernel's page cache answers needs no walk."""
    store = FakeStore()
    tree = [info(f"part-{at:04}", 100 * KiB) for at in range(50)]
    with reading(store) as files:
        for at in range(20):
            files.open(tree[at], lambda count, at=at: tree[at + 1 : at + 1 + count]).close()  # type: ignore[misc]  # as above
    assert store.requests == []


def test_abandoned_fetches_ahead_make_room_after_a_while() -> None:
    """Memory full of blocks that nobody read doesn't end readahead for good."""
    store, clock = FakeStore(), HandClock()
    with reading(store, memory=16 * MiB, clock=clock) as files:
        block = files.block
        for at in range(64):
            files.fetcher.ahead(info(f"abandoned-{at}", block), ((("aws", f"abandoned-{at}", "1"), 0, block),))
        until(lambda: files.counters().fresh_bytes == 16 * MiB)
        late = info("late", block)
        part = (("aws", "late", "1"), 0, block)
        assert files.fetcher.ahead(late, (part,)) is Refusal.NO_ROOM
        clock.now += FRESH + 1
        assert files.fetcher.ahead(late, (part,)) is not Refusal.NO_ROOM
        assert files.counters().unused_bytes == block


def test_what_arrives_for_a_stream_that_was_closed_makes_room_at_once() -> None:
    """As what had arrived before. `head` and then the whole file: the first one's last blocks took half of the memory for ten seconds."""
    store, clock = FakeStore(), HandClock()
    size = 64 * MiB
    with reading(store, memory=16 * MiB, clock=clock) as files:
        block = files.block
        head = files.open(info("big", size), nothing_follows)
        store.gated = lambda _info, start: start >= 4 * block
        store.gate.clear()
        stream(head, 0, 4 * block, block // 4)
        until(lambda: any(start >= 4 * block for _, start, _ in store.requests))
        head.close()
        store.gate.set()
        until(lambda: not files.blocks._flights)
        assert files.counters().fresh_bytes >= block
        for at in range(15):
            other = info(f"other-{at}", block)
            assert files.fetcher.ahead(other, ((ident_of(other), 0, block),)) is not Refusal.NO_ROOM
            until(lambda: not files.blocks._flights)


def test_a_stream_after_closed_ones_fetches_no_block_twice() -> None:
    """What they left unread goes before the block that it is in the middle of; else each of its requests fetched that again."""
    store, clock = FakeStore(), HandClock()
    with reading(store, memory=16 * MiB, clock=clock) as files:
        block = files.block
        for name in ("a", "b", "c"):
            head = files.open(info(name, 64 * MiB), nothing_follows)
            stream(head, 0, 12 * block, block // 4)
            until(lambda: not files.blocks._flights)
            head.close()
        assert files.counters().fresh_bytes >= 8 * block
        whole = files.open(info("whole", 64 * MiB), nothing_follows)
        for offset in range(block // 2, 63 * block, block):  # each request lies on two blocks
            check(whole, offset, block)
            until(lambda: not files.blocks._flights)
    requests = [(start, length) for key, start, length in store.requests if key == "whole" and length == block]
    assert len(requests) == len(set(requests))


@pytest.mark.parametrize("also", ["opened after it", "open beside it", "opened now and then"])
def test_what_a_closed_stream_left_is_fetched_once_for_another_one(also: str) -> None:
    """Though small files take room all the while: what the other one counts on is its own by then."""
    store, clock = FakeStore(), HandClock()
    with reading(store, memory=16 * MiB, clock=clock) as files:
        block = files.block
        big = info("big", 64 * MiB)

        def read(file: OpenFile, start: int, stop: int) -> None:
            for offset in range(start, stop, block // 4):
                check(file, offset, block // 4)
                until(lambda: not files.blocks._flights)

        def small(number: int) -> None:
            read(files.open(info(f"small-{number}", block // 2), nothing_follows), 0, block // 4)

        for number in range(32):
            small(number)
        first, second = files.open(big, nothing_follows), files.open(big, nothing_follows)
        read(first, 0, 2 * block)
        if also == "open beside it":
            read(second, 0, 2 * block)
        first.close()
        for at in range(0 if also == "opened after it" else 2, 40):
            read(second, at * block, (at + 1) * block)
            small(100 + at)
            if also == "opened now and then" and at % 8 == 7:
                third = files.open(big, nothing_follows)
                read(third, at * block, (at + 1) * block + block // 4)
                third.close()
    starts = [start for key, start, length in store.requests if key == "big" and length == block]
    assert len(starts) - len(set(starts)) <= 1


def test_what_a_closed_stream_fetched_ahead_stays_for_a_reader_that_came_for_it_meanwhile() -> None:
    """Another program that reads the same file."""
    store = FakeStore()
    big = info("big", 64 * MiB)
    with reading(store, memory=16 * MiB) as files:
        part = (ident_of(big), 0, files.block)
        store.gate.clear()
        assert files.fetcher.ahead(big, (part,)) is not Refusal.NO_ROOM
        files.blocks.abandon(part)
        reader = started(check, files.open(big, nothing_follows), 0, 1000)
        flight = files.blocks.flight(part)
        assert flight is not None
        until(lambda: flight.demanded)
        store.gate.set()
        ended(reader)
        until(lambda: not files.blocks._flights)
        assert files.blocks.find(part, 0) is not None
        assert part in files.blocks._read


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12 * MiB), st.integers(1, 2 * MiB), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([2 * MiB, 8 * MiB, 32 * MiB]),
)
def test_any_reads_return_the_right_bytes_within_the_bound_on_memory(reads: list[tuple[int, int, int, bool]], memory: int) -> None:
    """Blocks, buffers being filled and buffers kept never pass it, whatever is read in which order, and all of it adds up at the end."""
    store = FakeStore()
    sizes = [100, 3 * MiB, 9 * MiB + 1, 12 * MiB]
    peaks: list[int] = []
    with reading(store, memory=memory) as files:

        def measure(_info: ObjectInfo, _start: int) -> OptfsError | None:
            peaks.append(files.counters().resident_bytes)
            return AccessDenied("no") if len(peaks) % 17 == 16 else None

        store.fail = measure
        opened = [files.open(info(f"file-{at}", size), nothing_follows) for at, size in enumerate(sizes)]
        for number, offset, length, sequential in reads:
            file = opened[number]
            for at in range(3 if sequential else 1):
                try:
                    views = file.read(offset + at * length, length)
                except AccessDenied:
                    continue
                size = max(0, min(length, file.info.size - offset - at * length))
                assert b"".join(views) == contents(file.info.key, offset + at * length, size)
        for file in opened:
            file.close()
        peaks.append(files.counters().resident_bytes)
        assert max(peaks) <= memory
        assert files.close(PATIENCE)
        assert (files.counters().resident_bytes, files.counters().fresh_bytes) == (0, 0)


def test_reads_after_the_end_fail_and_do_not_hang() -> None:
    """A mount that ends answers."""
    with reading(FakeStore()) as files:
        file = files.open(info("small", MiB), nothing_follows)
        assert files.close(PATIENCE)
        with pytest.raises(ServiceUnavailable):
            file.read(0, 1)


def test_threads_of_one_handle_read_a_stream_out_of_order() -> None:
    """Four at a time, in any order among them: each block is still fetched once, and ahead of them."""
    store = FakeStore()
    with reading(store) as files, ThreadPoolExecutor(4) as readers:
        file = files.open(BIG, nothing_follows)
        check(file, 0, MiB)
        for first in range(1, 61, 4):
            for done in [readers.submit(check, file, (first + at) * MiB, MiB) for at in (2, 0, 3, 1)]:
                done.result(PATIENCE)
        assert files.close(PATIENCE)
    assert len(store.requests) == len(set(store.requests)) >= 16
    assert {length for _, _, length in store.requests} <= {BLOCK, 12345}


def fill_ahead(files: Files, name: str) -> int:
    """Fetch blocks ahead that nobody will read, until there is no room; return how many."""
    for at in range(1000):
        part = (("aws", f"{name}-{at}", "1"), 0, files.block)
        if files.fetcher.ahead(info(f"{name}-{at}", files.block), (part,)) is Refusal.NO_ROOM:
            return at
    raise AssertionError("memory has no bound")


def test_a_reader_takes_the_room_of_fetches_ahead_that_have_not_begun() -> None:
    """Memory full of what is only queued holds up nobody."""
    store = FakeStore()
    store.gated = lambda info, _start: info.key.startswith("queued")
    store.gate.clear()
    with reading(store, memory=8 * MiB, threads=3) as files:
        assert fill_ahead(files, "queued") >= 12  # three quarters
        check(files.open(info("wanted", files.block), nothing_follows), 0, MiB)


def test_a_reader_takes_the_room_of_what_was_fetched_ahead_last() -> None:
    """What was fetched ahead first is wanted next."""
    with reading(FakeStore(), memory=8 * MiB) as files:
        count = fill_ahead(files, "ahead")
        until(lambda: files.counters().fresh_bytes == count * files.block)
        check(files.open(info("wanted", files.block), nothing_follows), 0, MiB)
        known = [files.blocks.known((("aws", f"ahead-{at}", "1"), 0, files.block)) for at in range(count)]
        assert known.count(False) == 1
        assert known[0]


def test_what_had_no_room_ahead_of_a_stream_is_fetched_ahead_once_there_is() -> None:
    """A stream whose blocks had no room doesn't leave them for the reader to wait for."""
    store, clock = FakeStore(), HandClock()
    with reading(store, memory=8 * MiB, clock=clock) as files:
        block = files.block
        count = fill_ahead(files, "ahead")
        until(lambda: files.counters().fresh_bytes == count * block)
        file = files.open(info("stream", 6 * MiB), nothing_follows)
        store.partial = 4 * KiB
        store.gated = lambda info, start: info.key == "stream" and start == 0  # a block in flight can't be evicted
        store.gate.clear()
        check(file, 0, 1000)  # takes one room, and finds none for the block behind
        assert ("stream", block, block) not in store.requests
        clock.now += FRESH + 1
        check(file, 1000, 1000)
        until(lambda: ("stream", block, block) in store.requests)


def test_a_stream_at_its_end_leaves_its_share_to_others_at_once() -> None:
    """Files that were read to their ends often stay open for a while; the clock stands still."""
    size = 2 * BLOCK
    with reading(FakeStore(), memory=256 * MiB, clock=HandClock()) as files:
        other, whole = files.open(BIG, nothing_follows), files.open(info("whole", size), nothing_follows)
        stream(whole, 0, size - MiB)
        assert files.cap(other) == 64 * MiB
        check(whole, size - MiB, MiB)
        assert files.cap(other) == 128 * MiB


def test_a_fetch_ahead_that_a_reader_joined_is_used() -> None:
    """Its bytes aren't counted as fetched for nothing, and are as easily given up as others that were read."""
    store = FakeStore()
    store.partial = 4 * KiB
    store.gate.clear()
    small = info("small", MiB)
    with reading(store) as files:
        assert files.fetcher.ahead(small, ((("aws", "small", "1"), 0, MiB),)) is not Refusal.NO_ROOM
        until(lambda: len(store.requests) == 1)
        check(files.open(small, nothing_follows), 0, 1000)
        store.gate.set()
        until(lambda: files.counters().misses == 1)
        assert files.counters().fresh_bytes == 0
