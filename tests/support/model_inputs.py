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
    *("a", "b", "a b", "a/b", "A", "=", "=a", "a=", "a=b", "latest", "_SUCCESS", "_metadata", "42"),
    *("experiment=42", "event=42", "other=42", "date=42", OLD_DAY, DAY, "date=2026-02-30", "date=latest", "type=decisions", "decisions"),
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


names = st.sampled_from(ODD_NAMES) | st.sampled_from(ODD_NAMES[:24]) | _arbitrary_name()
"""One component of a key or of a path."""


@st.composite
def keys(draw: st.DrawFn) -> str:
    """Draw a key below the account's prefix; not the empty one."""
    parts: list[str] = []
    if draw(st.booleans()):
        parts.append(draw(st.sampled_from(["type=decisions", "type=events"]) | names))
        parts.append(draw(st.sampled_from([OLD_DAY, DAY, NEXT_DAY]) | names))
    parts += draw(st.lists(names, min_size=0 if parts else 1, max_size=3))
    key = "/".join(parts) + ("/" if draw(st.integers(0, 9)) == 0 else "")
    while len(key.encode("utf-8", "surrogateescape")) > KEY_LIMIT:
        key = key.rpartition("/")[0] if "/" in key else key[:200]
    return key or "a"


lengths = st.sampled_from([0, 1, 511, 512, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 5 * PIECE]) | st.integers(0, 3000)

offsets = st.sampled_from([0, 1, 4095, 4096, PIECE - 1, PIECE, 3 * PIECE, 5 * PIECE, 6 * PIECE]) | st.integers(0, 6 * PIECE)

counts = st.sampled_from([1, 4096, PIECE, PIECE + 1, 8 * PIECE]) | st.integers(0, 2 * PIECE)


def content(seed: int, length: int) -> bytes:
    """Return bytes that follow from the seed, and of which no two seeds share a stretch."""
    return random.Random(seed).randbytes(length)
