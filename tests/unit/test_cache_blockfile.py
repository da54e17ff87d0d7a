"""The name and the header of a block's file."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.cache import blockfile
from optfs.cache.blockfile import GRAIN, STEP
from optfs.cache.protocol import BlockKey
from tests.support.caches import block_key, content

KEY = BlockKey("gs://bucket/v1/account_id=1/event=caf\udce9", "1700000000000001", 5000, 1000, 300)
OTHERS = [
    replace(KEY, uri="gs://bucket/v1/account_id=1/event=caf"),
    replace(KEY, version="1700000000000002"),
    replace(KEY, size=5001),
    replace(KEY, start=1001),
    replace(KEY, length=301),
]


def header_of(key: BlockKey, data: bytes) -> bytes:
    """Return the header, which is the last piece that is written."""
    *_, (offset, header) = blockfile.pieces(key, memoryview(data))
    assert offset == 0
    return bytes(header)


def test_a_block_is_written_in_pieces_that_make_its_file() -> None:
    """Header and block, without a gap; the header comes last, so that a file that lacks a piece has none."""
    key = replace(KEY, size=10 * STEP, length=2 * STEP + 5)
    data = content(key)
    pieces = list(blockfile.pieces(key, memoryview(data)))
    assert [len(piece) for _, piece in pieces[:-1]] == [STEP, STEP, 5]
    file = bytearray()
    for offset, piece in sorted(pieces, key=lambda each: each[0]):
        assert offset == len(file)
        file += piece
    own = blockfile.identity(key)
    begin = blockfile.header_length(key, own)
    assert blockfile.header_matches(bytes(file[:begin]), own)
    assert file[begin:] == data
    assert blockfile.data_matches(bytes(file[:begin]), own, 0, data)


def test_header_fits_its_own_key_and_data_only() -> None:
    """A header matches the key and the data it was made for, and no other key."""
    header, own = header_of(KEY, content(KEY)), blockfile.identity(KEY)
    assert len(header) == blockfile.header_length(KEY, own)
    assert blockfile.header_matches(header, own)
    assert blockfile.data_matches(header, own, 0, content(KEY))
    assert not blockfile.data_matches(header, own, 0, content(KEY)[:-1] + b"!")
    assert [blockfile.header_matches(header, blockfile.identity(other)) for other in OTHERS] == [False] * len(OTHERS)


def test_every_changed_byte_of_a_header_shows() -> None:
    """Whichever byte of a header changes, the header or the data no longer matches."""
    data = content(KEY)
    header = header_of(KEY, data)
    for at in range(len(header)):
        changed = bytearray(header)
        changed[at] ^= 0x10
        assert not blockfile.header_matches(bytes(changed), blockfile.identity(KEY)), at
    assert not blockfile.header_matches(header[:-1], blockfile.identity(KEY))


def test_each_grain_of_a_block_is_checked_by_itself() -> None:
    """Any run of grains matches where it belongs and nowhere else; the last grain is shorter."""
    key = replace(KEY, length=3 * GRAIN + 5)
    data, own = content(key), blockfile.identity(key)
    header = header_of(key, data)
    for first in range(4):
        for last in range(first, 4):
            run = data[first * GRAIN : (last + 1) * GRAIN]
            assert [blockfile.data_matches(header, own, at, run) for at in range(5)] == [at == first for at in range(5)]
            assert not blockfile.data_matches(header, own, first, run[:-1] + bytes([run[-1] ^ 1]))


def test_names_differ_with_each_part_of_the_identity() -> None:
    """Two blocks never share a file."""
    assert len({blockfile.block_name(key) for key in [KEY, *OTHERS]}) == 1 + len(OTHERS)


def test_a_name_shows_nothing_of_the_object() -> None:
    """Names hold digits, not the names of events."""
    assert re.fullmatch(r"[0-9a-f]{32}-1000-300", blockfile.block_name(KEY))


def test_the_key_comes_back_from_a_file() -> None:
    """`verify` learns from the file alone what it holds."""
    assert blockfile.parse_key(header_of(KEY, content(KEY)) + content(KEY)) == KEY


@pytest.mark.parametrize("raw", [b"", b"x" * 10, b"x" * 1000, header_of(KEY, b"")[:60]])
def test_what_is_no_block_file_has_no_key(raw: bytes) -> None:
    """Rubbish and files cut within the header give None, no exception."""
    assert blockfile.parse_key(raw) is None


def test_name_comes_back_parsed() -> None:
    """A name tells the object's id and the range."""
    key = block_key(3)
    assert blockfile.parse_name(blockfile.block_name(key)) == (blockfile.object_id(key.uri, key.version, key.size), key.start, key.length)


@pytest.mark.parametrize(
    "name", ["", "cache.db", "../x", "a" * 32, "a" * 32 + "-1-0", "a" * 32 + "-01-5", "a" * 32 + "-1-5.tmp", "A" * 32 + "-1-5"]
)
def test_other_names_are_no_blocks(name: str) -> None:
    """Only what `block_name` makes is a block's name."""
    assert blockfile.parse_name(name) is None


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_union_counts_each_byte_once(ranges: list[tuple[int, int]]) -> None:
    """Overlapping ranges are counted once."""
    assert blockfile.union_length(ranges) == len({byte for start, length in ranges for byte in range(start, start + length)})
