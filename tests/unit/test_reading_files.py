"""Open files over a store in memory: bytes, requests, what is shared, and what failures do."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from optfs.cache.protocol import BlockKey
from optfs.credentials.protocol import AwsCredential
from optfs.errors import DeadlineExceeded, OptfsError, OutOfMemory, ReadDenied, ServiceError, ServiceUnavailable, VersionGone
from optfs.reading.blocks import FAILURE_HOLDS
from optfs.reading.fetches import Fetch
from optfs.reading.files import ATTEMPTS, ident_of
from optfs.reading.readahead import BLOCK, PIECE
from optfs.reading.spares import SPARES
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress
from optfs.stores.retry import RetryingStore
from optfs.values import Deadline, KiB, MiB, ObjectInfo
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
from tests.support.stores import HeldSource

BIG = info("big", 64 * MiB + 12345)


def _retrying(store: FakeStore) -> RetryingStore:
    source = HeldSource(store.root, lambda: AwsCredential("key", "secret", None, None))
    return RetryingStore(store, source, StoreCounters(), pause=lambda _seconds: None)


class BufferWatch(FakeStore):
    """Fails, and knows which of the buffers that it was to fill are still there."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self._kind = kind
        self.buffers: list[weakref.ref[memoryview]] = []

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fail, with a cause, as stores do."""
        self.buffers.append(weakref.ref(buffer))
        try:
            raise ConnectionResetError
        except ConnectionResetError as error:
            raise self._kind(info.key) from error


def test_a_small_file_comes_whole_in_one_request_of_its_exact_size() -> None:
    """However little of it is asked for."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(info("small", 300 * KiB + 1), nothing_follows)
        check(file, 300 * KiB - 7, 100)
        check(file, 0, 4)
        check(file, 0, MiB)
        assert file.read(300 * KiB + 1, 10) == []
    assert store.requests == [("small", 0, 300 * KiB + 1)]


def test_an_empty_file_needs_no_request() -> None:
    """There is nothing to fetch."""
    store = FakeStore()
    with reading(store) as files:
        assert files.open(info("empty", 0), nothing_follows).read(0, 100) == []
    assert store.requests == []


@pytest.mark.parametrize("step", [128 * KiB, MiB, 5 * MiB, 100 * MiB])
def test_a_stream_fetches_each_block_once_and_nothing_else(step: int) -> None:
    """Its requests are the file's blocks, the last of its exact length; all is used."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        stream(file, 0, BIG.size, step)
        file.close()
        assert files.close(PATIENCE)
        counters = files.counters()
    blocks = [("big", begin, min(BLOCK, BIG.size - begin)) for begin in range(0, BIG.size, BLOCK)]
    assert sorted(store.requests) == blocks
    assert (counters.read_bytes, counters.fetched_bytes) == (BIG.size, BIG.size)
    assert (counters.unused_bytes, counters.fresh_bytes) == (0, 0)


def test_blocks_that_a_stream_passed_are_given_up() -> None:
    """A stream holds its window, not the memory's limit."""
    with reading(FakeStore()) as files:
        file = files.open(info("long", 300 * MiB), nothing_follows)
        stream(file, 0, 300 * MiB, 4 * MiB)
        assert files.counters().resident_bytes <= (4 + SPARES) * BLOCK


def test_first_bytes_of_a_block_are_handed_out_before_the_rest_has_arrived() -> None:
    """A stream's first MiB waits for one MiB."""
    store = FakeStore()
    store.partial = MiB
    store.gate.clear()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 0, MiB)
        late = started(check, file, MiB, 1)
        assert not store.gate.is_set()
        assert late.is_alive()
        store.gate.set()
        ended(late)


def test_views_stay_as_they_are_while_buffers_are_used_again() -> None:
    """What a reader still holds is never overwritten."""
    with reading(FakeStore(), memory=64 * MiB) as files:
        file = files.open(info("long", 200 * MiB), nothing_follows)
        kept = [(offset, file.read(offset, MiB)) for offset in range(0, 200 * MiB, MiB)]
        for offset, views in kept:
            assert b"".join(views) == contents("long", offset, MiB)
            assert all(view.readonly for view in views)


def test_readers_of_one_block_share_one_request() -> None:
    """However many come while it is on its way."""
    store = FakeStore()
    store.gate.clear()
    with reading(store) as files:
        threads = [started(check, files.open(info("small", MiB), nothing_follows), at * KiB, KiB) for at in range(16)]
        until(lambda: len(store.requests) == 1)
        store.gate.set()
        ended(*threads)
    assert len(store.requests) == 1


def test_random_reads_fetch_the_pieces_they_touch_adjacent_ones_by_one_request() -> None:
    """Pieces in memory are left out."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 20 * MiB + 5, 10)
        check(file, 30 * MiB - 10, 300 * KiB)  # crosses no block, touches four pieces
        check(file, 20 * MiB - 1, 2)  # crosses into a block; the second piece is there
        check(file, BIG.size - 8, 8)
    assert store.requests == [
        ("big", 20 * MiB, PIECE),
        ("big", 30 * MiB - PIECE, 4 * PIECE),
        ("big", 20 * MiB - PIECE, PIECE),
        ("big", 64 * MiB, 12345),
    ]


def test_a_piece_in_the_middle_splits_a_run_in_two() -> None:
    """What is there isn't fetched again."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 40 * MiB + 2 * PIECE, 1)
        check(file, 40 * MiB, 5 * PIECE)
    assert sorted(store.requests[1:]) == [("big", 40 * MiB, 2 * PIECE), ("big", 40 * MiB + 3 * PIECE, 2 * PIECE)]


def test_two_reads_in_a_row_elsewhere_become_a_stream_of_runs_and_blocks() -> None:
    """From there on nothing is fetched twice."""
    store = FakeStore()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        stream(file, 21 * MiB, BIG.size)
    covered = sorted((start, start + length) for _, start, length in store.requests)
    assert covered[0][0] == 21 * MiB
    assert covered[-1][1] == BIG.size
    assert all(one[1] == other[0] for one, other in pairwise(covered))
    assert len(covered) <= 16


def test_a_demand_overtakes_fetches_ahead_and_takes_its_own_out_of_their_queue() -> None:
    """A block that is queued ahead is fetched at once when a reader comes, and once."""
    store = FakeStore()
    store.gated = lambda _info, start: start == BLOCK  # what is fetched ahead first holds the only thread for such
    store.gate.clear()
    with reading(store, threads=3) as files:
        file = files.open(BIG, nothing_follows)
        stream(file, 0, 2 * MiB)
        until(lambda: ("big", BLOCK, BLOCK) in store.requests)
        assert ("big", 2 * BLOCK, BLOCK) not in store.requests
        check(file, 2 * BLOCK, MiB)
        store.gate.set()
    assert store.requests.count(("big", 2 * BLOCK, BLOCK)) == 1


def test_closing_a_file_cancels_what_is_queued_ahead_of_it() -> None:
    """What runs goes on; the others are never asked for, and their room is free."""
    store = FakeStore()
    store.gated = lambda _info, start: start == BLOCK
    store.gate.clear()
    with reading(store, threads=3) as files:
        file = files.open(BIG, nothing_follows)
        stream(file, 0, 2 * MiB)
        until(lambda: ("big", BLOCK, BLOCK) in store.requests)
        file.close()
        assert files.counters().resident_bytes <= 2 * BLOCK
        store.gate.set()
        assert files.close(PATIENCE)
    assert len(store.requests) == 2


def test_a_failure_is_the_answer_for_a_moment_and_then_tried_anew() -> None:
    """The kernel asks for every page of a failed readahead: one request, many answers."""
    store, clock = FakeStore(), HandClock()
    store.fail = lambda _info, _start: ServiceUnavailable("down")
    with reading(store, clock=clock) as files:
        file = files.open(info("small", MiB), nothing_follows)
        for _ in range(20):
            with pytest.raises(ServiceUnavailable, match="down"):
                file.read(0, 4 * KiB)
        assert len(store.requests) == 1
        store.fail = lambda _info, _start: None
        clock.now += FAILURE_HOLDS + 0.01
        check(file, 0, 4 * KiB)


def test_a_failure_ahead_is_silent_and_no_answer_to_a_reader() -> None:
    """The reader tries for itself, at once."""
    store, clock = FakeStore(), HandClock()
    failures = [ServiceUnavailable("down")]
    store.fail = lambda _info, start: failures.pop() if start == BLOCK and failures else None
    with reading(store, clock=clock) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 0, MiB)
        until(lambda: not failures)
        stream(file, MiB, BIG.size)
    assert store.requests.count(("big", BLOCK, BLOCK)) == 2


def test_a_reader_that_joined_a_fetch_ahead_tries_for_itself_when_that_fails() -> None:
    """It had no say in when that began."""
    store = FakeStore()
    failures = [ServiceUnavailable("down")]
    store.fail = lambda _info, start: failures.pop() if start == BLOCK and failures else None
    store.gated = lambda _info, start: start == BLOCK
    store.gate.clear()
    with reading(store) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 0, MiB)
        until(lambda: ("big", BLOCK, BLOCK) in store.requests)
        with ThreadPoolExecutor(1) as one:
            joined = one.submit(check, file, BLOCK, MiB)
            until(lambda: (flight := files.blocks.flight((("aws", "big", "1"), BLOCK, BLOCK))) is not None and flight.demanded)
            store.gate.set()
            joined.result(PATIENCE)
    assert store.requests.count(("big", BLOCK, BLOCK)) == 2


def test_bytes_that_arrived_before_a_failure_are_handed_out_and_no_others() -> None:
    """A read is whole or an error."""
    store = FakeStore()
    store.partial = 100 * KiB
    store.fail = lambda _info, _start: VersionGone("overwritten")
    store.gate.clear()
    with reading(store) as files:
        file = files.open(info("small", MiB), nothing_follows)
        check(file, 0, 100 * KiB)
        with ThreadPoolExecutor(1) as one:
            waiting = one.submit(file.read, 0, 100 * KiB + 1)
            store.gate.set()
            with pytest.raises(VersionGone):
                waiting.result(PATIENCE)


def test_what_is_cached_of_a_version_that_is_gone_is_still_read() -> None:
    """Only what isn't there is an error."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        stream(files.open(BIG, nothing_follows), 0, 5 * MiB)
        until(lambda: len(cache.blocks) >= 2)
    store.fail = lambda _info, _start: VersionGone("overwritten")
    with reading(store, cache) as files:
        file = files.open(BIG, nothing_follows)
        check(file, 0, MiB)
        check(file, 5 * MiB, 10)
        with pytest.raises(VersionGone):
            file.read(60 * MiB, 10)


def test_versions_are_kept_apart_in_memory_and_cache() -> None:
    """A new version of the same name and size is fetched anew."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        check(files.open(info("same", MiB, "1"), nothing_follows), 0, 10)
        check(files.open(info("same", MiB, "2"), nothing_follows), 0, 10)
        until(lambda: len(cache.blocks) == 2)
    assert len(store.requests) == 2


def test_a_reader_whose_worker_is_stuck_fails_at_its_deadline_and_the_next_at_once() -> None:
    """A store that never answers costs a program one timeout, not one a page."""
    store = FakeStore()
    store.gate.clear()
    clock = HandClock()
    with reading(store, timeout=30.0, clock=clock) as files:
        file = files.open(info("small", MiB), nothing_follows)
        with ThreadPoolExecutor(1) as one:
            waiting = one.submit(file.read, 0, 10)
            until(lambda: len(store.requests) == 1)
            clock.now += 31
            with pytest.raises(DeadlineExceeded):
                waiting.result(PATIENCE)
        with pytest.raises(DeadlineExceeded):
            file.read(0, 10)
        assert len(store.requests) == 1


@pytest.mark.log_errors
def test_an_unforeseen_exception_ends_the_read_with_an_error() -> None:
    """A bug in a store is logged, and no reader hangs."""
    store = FakeStore()

    def bug(_info: ObjectInfo, _start: int) -> OptfsError | None:
        raise ValueError("a bug")

    store.fail = bug
    with reading(store) as files, pytest.raises(ServiceError, match="see the log"):
        files.open(info("small", MiB), nothing_follows).read(0, 10)


@pytest.mark.parametrize("kind", [VersionGone, MemoryError], ids=lambda kind: kind.__name__)
def test_a_failed_read_keeps_no_buffer_alive(kind: type[Exception]) -> None:
    """Its error is remembered for a while, as that of up to a thousand parts; the frames that raised it held blocks of 4 MiB."""
    store = BufferWatch(kind)
    tries = _retrying(store)
    gc.disable()  # nor may a buffer wait for a collection of cycles
    try:
        with reading(store, through=tries) as files:
            for number in range(50):
                file = files.open(info(f"gone-{number}", 300 * KiB), nothing_follows)
                with pytest.raises(OptfsError):
                    file.read(0, 10)
                file.close()
            until(lambda: not any(buffer() for buffer in store.buffers))
        assert len(store.buffers) >= 50
    finally:
        gc.enable()


def test_versions_that_are_gone_are_told_before_their_readers_hear_of_it() -> None:
    """Also by a fetch ahead, for which nobody waits; other failures aren't told."""
    told: list[str] = []
    store = FakeStore()
    failures = {"gone": VersionGone, "gone-too": VersionGone, "denied": ReadDenied, "failing": ServiceUnavailable}
    store.fail = lambda info, _start: failures[info.key](info.key)
    with reading(store, gone=lambda info: told.append(info.key)) as files:
        with pytest.raises(VersionGone):
            files.open(info("gone", MiB), nothing_follows).read(0, 10)
        assert told == ["gone"]
        with pytest.raises(ServiceUnavailable):
            files.open(info("failing", MiB), nothing_follows).read(0, 10)
        with pytest.raises(ReadDenied):
            files.open(info("denied", MiB), nothing_follows).read(0, 10)
        assert told == ["gone", "denied"], "S3 may deny what is missing"
        ahead = info("gone-too", MiB)
        assert isinstance(files.fetcher.ahead(ahead, ((ident_of(ahead), 0, MiB),)), Fetch)
        until(lambda: told == ["gone", "denied", "gone-too"])


def test_a_read_that_succeeds_at_the_second_try_keeps_no_buffer_alive() -> None:
    """Nor what the first one failed by."""
    store = FakeStore()
    buffers: list[weakref.ref[memoryview]] = []
    real = store.read_into

    def read_into(info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        buffers.append(weakref.ref(buffer))
        if len(buffers) % 2:
            raise ServiceUnavailable(info.key)
        real(info, start, buffer, progress, deadline)

    store.read_into = read_into  # type: ignore[method-assign]  # only this one's
    tries = _retrying(store)
    gc.disable()
    try:
        with reading(store, through=tries) as files:
            for number in range(10):
                check(files.open(info(f"file-{number}", 300 * KiB), nothing_follows), 0, 300 * KiB)
            files.blocks.clear()
            until(lambda: not any(buffer() for buffer in buffers))
        assert len(buffers) == 20
    finally:
        gc.enable()


@pytest.mark.log_errors
def test_a_cache_that_finds_no_memory_leaves_the_accounts_right() -> None:
    """The block has landed by then: its room isn't given back twice."""

    class Full(FakeCache):
        def put(self, key: BlockKey, data: memoryview) -> None:
            raise MemoryError

    with reading(FakeStore(), Full()) as files:
        for number in range(10):
            check(files.open(info(f"file-{number}", 4 * MiB), nothing_follows), 0, 10)
        until(lambda: files.counters().resident_bytes == 40 * MiB)
        check(files.open(info("file-0", 4 * MiB), nothing_follows), 0, 4 * MiB)


def test_without_memory_a_read_tries_again_and_says_so() -> None:
    """As often as readers try; then another one finds memory, for which nothing is held against a file."""
    store = FakeStore()
    left = ATTEMPTS

    def starve(_info: ObjectInfo, _start: int) -> OptfsError | None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise MemoryError
        return None

    store.fail = starve
    with reading(store) as files:
        file = files.open(info("small", MiB), nothing_follows)
        with pytest.raises(OutOfMemory, match="--memory"):
            file.read(0, 10)
        assert len(store.requests) == ATTEMPTS
        check(file, 0, MiB)
        left = 1
        check(files.open(info("other", MiB), nothing_follows), 0, MiB)


def test_a_second_mount_reads_a_stream_from_the_cache_without_a_request() -> None:
    """Blocks, each as it was fetched."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        stream(files.open(BIG, nothing_follows), 0, BIG.size)
        until(lambda: sum(map(len, cache.blocks.values())) == BIG.size)
    fetched = len(store.requests)
    with reading(store, cache) as files:
        stream(files.open(BIG, nothing_follows), 0, BIG.size)
        assert files.close(PATIENCE)
        counters = files.counters()
    assert len(store.requests) == fetched
    assert (counters.disk_bytes, counters.fetched_bytes) == (BIG.size, 0)


def test_random_reads_are_cut_out_of_cached_blocks() -> None:
    """A stream before makes random reads free; of the disk, too, they take no more than the pieces they touch."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        stream(files.open(BIG, nothing_follows), 0, BIG.size)
        until(lambda: sum(map(len, cache.blocks.values())) == BIG.size)
    fetched = len(store.requests)
    with reading(store, cache) as files:
        file = files.open(BIG, nothing_follows)
        check(file, BIG.size - 8, 8)
        check(file, 30 * MiB - 10, 300 * KiB)
        check(file, 28 * MiB, 10)
        assert files.counters().disk_bytes <= 8 * PIECE
    assert len(store.requests) == fetched


def test_a_random_read_of_a_whole_block_finds_it_in_the_cache() -> None:
    """Such is a file's end where its last block is short: a Parquet footer."""
    store, cache = FakeStore(), FakeCache()
    big = info("big", BLOCK + 300 * KiB)
    with reading(store, cache) as files:
        stream(files.open(big, nothing_follows), 0, big.size)
    with reading(FakeStore(), cache) as files:
        check(files.open(big, nothing_follows), BLOCK, 300 * KiB)
        assert files.counters().misses == 0


def test_a_stream_is_made_of_what_random_reads_left_in_the_cache() -> None:
    """Reads that came out of order were cached by pieces; a later stream asks for blocks, and fetched them again."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        file = files.open(BIG, nothing_follows)
        for offset in reversed(range(0, BIG.size, MiB)):
            check(file, offset, MiB)
        until(lambda: sum(map(len, cache.blocks.values())) == BIG.size)
    fetched = len(store.requests)
    with reading(store, cache) as files:
        stream(files.open(BIG, nothing_follows), 0, BIG.size)
    assert len(store.requests) == fetched


def test_cached_pieces_and_missing_ones_make_one_read() -> None:
    """Only the missing are fetched, adjacent ones by one request."""
    store, cache = FakeStore(), FakeCache()
    with reading(store, cache) as files:
        check(files.open(BIG, nothing_follows), 40 * MiB + 2 * PIECE, 1)
        until(lambda: len(cache.blocks) == 1)
    with reading(store, cache) as files:
        check(files.open(BIG, nothing_follows), 40 * MiB, 5 * PIECE)
        until(lambda: len(cache.blocks) == 5)
        assert files.counters().disk_bytes == PIECE
    assert store.requests[1:] == [("big", 40 * MiB, 2 * PIECE), ("big", 40 * MiB + 3 * PIECE, 2 * PIECE)]
