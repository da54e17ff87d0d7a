"""The bucket lists in the order of bytes, by pages of any size, and gives each put a version of its own."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.demo.objects import Bucket, FilePart
from optfs.values import encode_name

KEYS = st.lists(st.text(alphabet="ab/é\U0001f600\udcff", min_size=1, max_size=6), unique=True, max_size=12)


def pages(bucket: Bucket, prefix: str, delimiter: str, limit: int) -> tuple[list[str], list[str]]:
    """Return the keys and the common prefixes of all pages."""
    keys: list[str] = []
    prefixes: list[str] = []
    token: str | None = None
    for _ in itertools.count():
        page = bucket.list_page(prefix, delimiter=delimiter, continuation=token, limit=limit)
        assert len(page.objects) + len(page.prefixes) <= limit
        keys += [version.key for version in page.objects]
        prefixes += page.prefixes
        token = page.continuation
        if token is None:
            return keys, prefixes
    raise AssertionError


@given(keys=KEYS, prefix=st.sampled_from(["", "a", "a/", "b", "é"]), limit=st.integers(1, 5))
def test_pages_join_to_the_whole_listing(keys: list[str], prefix: str, limit: int) -> None:
    """Whatever the page size, with or without a delimiter, pages hold what a plain filter of all keys does, in order and once."""
    bucket = Bucket()
    for key in keys:
        bucket.put(key, b"")
    below = sorted((key for key in keys if key.startswith(prefix)), key=encode_name)
    assert pages(bucket, prefix, "", limit) == (below, [])
    files = [key for key in below if "/" not in key[len(prefix) :]]
    folders = {key[: key.index("/", len(prefix)) + 1] for key in below if "/" in key[len(prefix) :]}
    assert pages(bucket, prefix, "/", limit) == (files, sorted(folders, key=encode_name))


def test_each_put_is_a_new_version() -> None:
    """The same content put again has another tag and a greater generation; reading gives the newest."""
    bucket = Bucket()
    first, second = bucket.put("k", b"same"), bucket.put("k", b"same")
    assert first.generation < second.generation
    assert first.etag != second.etag
    assert len(first.etag) == 32
    assert bucket.get("k") == second
    assert bucket.keys() == ["k"]


def test_a_deleted_object_is_gone() -> None:
    """Neither listings nor gets show it, and a second deletion is an error."""
    bucket = Bucket()
    bucket.put("k", b"")
    bucket.put("l", b"")
    bucket.delete("k")
    assert bucket.keys() == ["l"]
    assert bucket.get("k") is None
    with pytest.raises(KeyError):
        bucket.delete("k")


def test_a_listing_can_start_after_a_key() -> None:
    """The key itself is not listed."""
    bucket = Bucket()
    for key in ("a", "b", "c"):
        bucket.put(key, b"")
    assert [version.key for version in bucket.list_page("", start_after="a").objects] == ["b", "c"]


def test_unknown_tokens_are_refused() -> None:
    """A token that was never given is an error, not an empty page."""
    for token in ("", "x", "1x"):
        with pytest.raises(ValueError, match=r"."):
            Bucket().list_page("", continuation=token)


def test_a_file_becomes_an_object(tmp_path: Path) -> None:
    """It has the file's size; its content stays on the disk."""
    (tmp_path / "f").write_bytes(b"12345")
    version = Bucket().put("v1/f", tmp_path / "f")
    assert version.size == 5
    assert version.part(1, 3) == FilePart(tmp_path / "f", 1, 3)
