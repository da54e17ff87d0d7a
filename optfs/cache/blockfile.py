"""One block as bytes: the name of its file, and the header that makes the file describe itself. Pure.

A file is a header and the block's bytes, nothing after::

    magic "optfsblk" | u16 format | u16 0 | u32 header's length | u64 object's size | u64 start | u64 length | u32 uri's length |
    u32 version's length | uri | version | XXH3-64 of each `GRAIN` of the block (8 each) | XXH3-64 of all that comes before (8)

Rules: all numbers are little-endian. Everything but the checksums follows from the `BlockKey`, so a reader compares instead of parsing;
only `verify` parses. Who wants a few bytes of a block reads and checks the grains they lie in, not all of it. XXH3 guards against torn and
damaged files, not against forgery: the folder belongs to the user alone.

The name is `<XXH3-128 of uri, version and size>-<start>-<length>`: all blocks of one version sort together, the bytes that are held can
be told from names alone, and no name of an experiment or an event shows. Its first digit is the shard (subfolder).
"""

import re
import struct
from collections.abc import Iterator

import xxhash

from optfs.buffers import Buffer
from optfs.cache.protocol import BlockKey
from optfs.values import KiB, MiB, decode_name, encode_name

SHARDS = "0123456789abcdef"
"""Subfolders: few, as each costs a descriptor and a file system block, and 5,000 names in one are no burden."""

_MAGIC = b"optfsblk"
_FORMAT = 1
_FIXED = struct.Struct("<8sHHIQQQII")
GRAIN = 128 * KiB
"""What has a checksum of its own, bytes: what the reading layer asks for at least."""
STEP = MiB
"""How much of a block is summed, and written before the processor's cache has lost it: eight streams were 3 % faster than with 4 MiB."""
_DIGEST = 8
_NAME = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,18})-([1-9][0-9]{0,18})", re.ASCII)
MAX_HEADER = 64 * 1024
"""A uri is at most some 1,100 bytes; what claims more is damage."""


def object_id(uri: str, version: str, size: int) -> str:
    """Return the 32 hex digits that the names of all blocks of this version start with."""
    return xxhash.xxh3_128_hexdigest(b"\0".join((encode_name(uri), encode_name(version), str(size).encode())))


def block_name(key: BlockKey) -> str:
    """Return the name of the block's file."""
    return f"{object_id(key.uri, key.version, key.size)}-{key.start}-{key.length}"


def parse_name(name: str) -> tuple[str, int, int] | None:
    """Return (object id, start, length), or None if this isn't the name of a block."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None


def identity(key: BlockKey) -> bytes:
    """Return the part of the header that follows from the key."""
    uri, version = encode_name(key.uri), encode_name(key.version)
    length = _FIXED.size + len(uri) + len(version) + _checksums_length(key)
    return _FIXED.pack(_MAGIC, _FORMAT, 0, length, key.size, key.start, key.length, len(uri), len(version)) + uri + version


def header_length(key: BlockKey, key_identity: bytes) -> int:
    """Return the header's length, bytes; `key_identity`: what `identity` made of the key."""
    return len(key_identity) + _checksums_length(key)


def pieces(key: BlockKey, data: memoryview) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield all of the file in pieces, each with its offset: the block's, and then the header, whose checksums are known by then."""
    body = identity(key)
    offset = header_length(key, body)
    for at in range(0, len(data), STEP):
        piece = data[at : at + STEP]
        body += _checksums(piece)
        yield offset + at, piece
    yield 0, body + xxhash.xxh3_64_digest(body)


def header_matches(header: bytes, key_identity: bytes) -> bool:
    """Tell whether a header is intact and of this key."""
    return header.startswith(key_identity) and xxhash.xxh3_64_digest(header[:-_DIGEST]) == header[-_DIGEST:]


def data_matches(header: bytes, key_identity: bytes, first: int, data: bytes | Buffer) -> bool:
    """Tell whether `data`, whole grains of the block from number `first` on, are those that the header was made for."""
    found = _checksums(data)
    at = len(key_identity) + first * _DIGEST
    return header[at : at + len(found)] == found


def _checksums(data: memoryview | bytes | Buffer) -> bytes:
    view = memoryview(data)
    return b"".join(xxhash.xxh3_64_digest(view[at : at + GRAIN]) for at in range(0, len(view), GRAIN))


def _checksums_length(key: BlockKey) -> int:
    return (-(-key.length // GRAIN) + 1) * _DIGEST


def parse_key(start_of_file: bytes) -> BlockKey | None:
    """Return the key that a file claims to hold, from its first `MAX_HEADER` bytes, or None where that makes no sense."""
    if len(start_of_file) < _FIXED.size:
        return None
    magic, version_of_format, _, _, size, start, length, uri_length, version_length = _FIXED.unpack_from(start_of_file)
    end = _FIXED.size + uri_length + version_length
    if magic != _MAGIC or version_of_format != _FORMAT or end > len(start_of_file):
        return None
    uri = start_of_file[_FIXED.size : _FIXED.size + uri_length]
    return BlockKey(decode_name(uri), decode_name(start_of_file[_FIXED.size + uri_length : end]), size, start, length)


def union_length(ranges: list[tuple[int, int]]) -> int:
    """Return how many bytes the ranges (start, length) cover, counting overlaps once."""
    covered = end = 0
    for start, length in sorted(ranges):
        covered += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return covered
