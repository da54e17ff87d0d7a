"""What the model tests are fed: keys of every awkward kind, contents of awkward lengths, places to read at. Hypothesis strategies only."""

import random

from hypothesis import strategies as st

from optfs.values import KiB, decode_name

PIECE = 128 * KiB
"""The grain of reads in large files; the lengths around it are the awkward ones."""

KEY_LIMIT = 1024 - 64
"""Longest key below the account's prefix, bytes: both services allow 1024 in all."""

OLD_DAY, DAY, NEXT_DAY = "date=2026-10-01", "date=2026-11-01", "date=2026-11-02"

ODD_NAMES = (
    *("a", "b", "a b", "a/b", "A", "=", "=a", "a=", "a=b", "latest", "_SUCCESS", "_metadata"),
    *("experiment=42", "event=42", "other=42", OLD_DAY, DAY, "date=2026-02-30", "date=latest", "type=decisions", "decisions"),
    *(
        "caf\u00e9",
        "cafe\u0301",
        "x%2Fy",
        "x%252Fy",
        "x+y",
        "line\nbreak",
        "\r",
        "\t",
        "\x01",
        "\x7f",
        "a.",
        "a ",
        " a",
        "...",
        ".a",
        "~",
        "*?[a]",
    ),
    *("\\", "'\"", "<&>", "&amp;", "#", "?a=b&c", "%", "%00", ";", ":", "\u202e", "\U0001f600", "\uffff", "\ufeff", "\u2028", "\u00a0"),
    *("n" * 255, "n" * 256, "\u00e9" * 127 + "n", "\u00e9" * 128, "bad\udcff\udc80", ".", "..", "", "nul\0"),
)
"""Components of keys. Several can't be shown; `a/b` is two."""


def _arbitrary_name() -> st.SearchStrategy[str]:
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), max_size=12)
    return texts | st.binary(max_size=8).map(lambda raw: decode_name(raw.replace(b"/", b"-")))


COMMON_NAMES = ("a", "b", "42", "experiment=42", "event=42", "latest", "_SUCCESS", "date=42")
"""Few, so that they meet: as a file and a folder, as a name and a short name, as two short names."""

names = st.sampled_from(COMMON_NAMES) | st.sampled_from(ODD_NAMES) | _arbitrary_name()
"""One component of a key or of a path."""

dates = st.sampled_from([f"type=decisions/{day}/" for day in (OLD_DAY, DAY, NEXT_DAY)])


def _fit(key: str) -> str:
    while len(key.encode("utf-8", "surrogateescape")) > KEY_LIMIT:
        key = key.rpartition("/")[0] if "/" in key else key[:200]
    return key or "a"


_below = st.lists(names, min_size=1, max_size=3).map("/".join)
_odd_below = st.tuples(_below, st.sampled_from(["", "", "", "/", "//", "/b"])).map("".join)

keys = (
    st.tuples(dates, st.sampled_from(["_SUCCESS", "experiment=42/part-0", "event=42/part-0", "a", "42/a"])).map("".join)
    | st.tuples(dates, _odd_below).map("".join).map(_fit)
    | st.tuples(st.sampled_from(["type=decisions/", "type=events/", "a/"]), _odd_below).map("".join).map(_fit)
    | _odd_below.map(_fit)
)
"""A key below the account's prefix; not the empty one."""


HEADS = ("", "type=decisions/", f"type=decisions/{OLD_DAY}/", f"type=decisions/{OLD_DAY}/experiment=42/", "other/")
"""A folder of each kind: names are found in different ways in each."""


def odd_keys(head: str) -> list[str]:
    """Return keys with each odd name in that folder, as a file, or as a folder with a file in it, or (when two names meet) as both."""
    return [f"{head}{name}{'/part-0' if number % 3 or '=4' in name else ''}" for number, name in enumerate(ODD_NAMES) if head + name]


lengths = st.sampled_from([0, 1, 511, 512, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 5 * PIECE]) | st.integers(0, 3000)

offsets = st.sampled_from([0, 1, 4095, 4096, PIECE - 1, PIECE, 3 * PIECE, 5 * PIECE, 6 * PIECE]) | st.integers(0, 6 * PIECE)

counts = st.sampled_from([1, 4096, PIECE, PIECE + 1, 8 * PIECE]) | st.integers(0, 2 * PIECE)


def content(seed: int, length: int) -> bytes:
    """Return bytes that follow from the seed, and of which no two seeds share a stretch."""
    return random.Random(seed).randbytes(length)
