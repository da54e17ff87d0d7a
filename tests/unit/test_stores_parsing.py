"""Listings and headers of stores, and what is not one."""

import contextlib
import dataclasses
import json
import time
from email.utils import formatdate

import pytest

from optfs.errors import InvalidResponse, OptfsError, VersionGone
from optfs.stores import gcs, gcs_answers
from optfs.stores.entries import parse_time
from optfs.stores.ranges import check_range, gone, looks_like_html, range_header, retry_after
from optfs.stores.s3_listing import parse_listing
from optfs.values import ObjectInfo

NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
INFO = ObjectInfo("v1/account_id=1/p", 100, 0.0, "e", "aws")


def entry(key: str, *, size: str = "5", tag: str = "&quot;abc-2&quot;", moment: str = "2026-11-01T00:00:01.500Z") -> str:
    """Return one object of a listing."""
    return f"<Contents><Key>{key}</Key><LastModified>{moment}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"


def listing(body: str, *, ns: str = NS) -> bytes:
    """Return a listing."""
    return f'<?xml version="1.0"?><ListBucketResult {ns}>{body}</ListBucketResult>'.encode()


@pytest.mark.parametrize("ns", [NS, ""])
def test_a_page_of_s3(ns: str) -> None:
    """Encoded names are decoded, ETags lose their quotes, times are seconds; with the namespace or without."""
    body = "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t/+=</NextContinuationToken>"
    prefixes = "<CommonPrefixes><Prefix>a%2Fb+c/</Prefix></CommonPrefixes>"
    page = parse_listing(listing(body + entry("x+y%2Bz%253A%E9") + prefixes, ns=ns))
    assert page.objects == (ObjectInfo("x y+z%3A\udce9", 5, 1793491201.5, "abc-2", "aws"),)
    assert page.prefixes == ("a/b c/",)
    assert page.continuation == "t/+="


def test_names_that_arent_encoded_are_left_alone() -> None:
    """Emulators may ignore the wish for encoding; they say so by leaving EncodingType out."""
    assert parse_listing(listing(entry("a+b%3A"))).objects[0].key == "a+b%3A"


def test_the_last_page_has_no_continuation() -> None:
    """Whatever else it holds."""
    assert parse_listing(listing("<IsTruncated>false</IsTruncated>")).continuation is None
    assert parse_listing(listing("")) == parse_listing(listing("<KeyCount>0</KeyCount>"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"<html></html>",
        b"<Error><Code>X</Code></Error>",
        b"\x00\xff",
        listing("<IsTruncated>true</IsTruncated>"),
        listing("<Contents><Key>a</Key></Contents>"),
        listing(entry("", size="1")),
        listing(entry("a", size="")),
        listing(entry("a", size="x")),
        listing(entry("a", moment="yesterday")),
        listing("<CommonPrefixes></CommonPrefixes>"),
        listing(entry("a"))[:-30],
    ],
)
def test_what_is_no_listing_of_s3_is_refused(body: bytes) -> None:
    """A page is never taken in part."""
    with pytest.raises(InvalidResponse):
        parse_listing(body)


def test_a_page_of_gcs() -> None:
    """Sizes and generations are numbers in strings."""
    item = {"name": "a/\u00e9", "size": "5", "updated": "2026-11-01T00:00:01.500Z", "generation": "1700000000000001"}
    page = gcs.parse_listing(json.dumps({"items": [item], "prefixes": ["a/"], "nextPageToken": "t"}).encode())
    assert page.objects == (ObjectInfo("a/\u00e9", 5, 1793491201.5, "1700000000000001", "gcp"),)
    assert page.prefixes == ("a/",)
    assert page.continuation == "t"
    assert gcs.parse_listing(b"{}").continuation is None


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html>", b'{"items": [{"name": "a"}]}', b'{"items": 5}', b'{"items": ["a"]}'])
def test_what_is_no_listing_of_gcs_is_refused(body: bytes) -> None:
    """A page is never taken in part."""
    with pytest.raises(InvalidResponse):
        gcs.parse_listing(body)


@pytest.mark.parametrize("seconds", [0, 951782400, 1709164799, 1793491201, 4102444800])
def test_times_are_those_of_the_calendar(seconds: int) -> None:
    """Leap days and the epoch included; fractions may be missing."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    assert parse_time(text + "Z") == seconds
    assert parse_time(text + ".25Z") == seconds + 0.25


@pytest.mark.parametrize("text", ["", "2026-11-01", "2026-11-01T00:00:00+01:00", "2026-13-01T00:00:00Z", "2026-11-01 00:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Also other zones than UTC, which stores don't use."""
    with pytest.raises(ValueError, match=r"time|day|month|int|float|isoformat"):
        parse_time(text)


def test_ten_thousand_keys_take_little_time() -> None:
    """Within a bound that only a parser of another kind would miss."""
    body = listing("<EncodingType>url</EncodingType>" + "".join(entry(f"v1/date%3D2026-11-{n % 28 + 1:02}/{n}") for n in range(10_000)))
    began = time.thread_time()
    assert len(parse_listing(body).objects) == 10_000
    assert time.thread_time() - began < 2.0


def headers(length: int, content_range: str | None = None, **more: str) -> dict[str, str]:
    """Return headers of an answer."""
    return {"Content-Length": str(length), **({"Content-Range": content_range} if content_range else {}), **more}


def test_right_answers_are_taken() -> None:
    """A part, the whole by 206, and the whole by 200."""
    assert range_header(10, 5) == "bytes=10-14"
    check_range(206, headers(5, "bytes 10-14/100"), INFO, 10, 5)
    check_range(206, headers(5, "bytes 10-14/*"), INFO, 10, 5)
    check_range(206, headers(100, "bytes 0-99/100"), INFO, 0, 100)
    check_range(200, headers(100), INFO, 0, 100)


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (206, headers(5, "bytes 11-15/100"), InvalidResponse),
        (206, headers(5, "bytes 10-15/100"), InvalidResponse),
        (206, headers(5, "bytes 10-14/101"), VersionGone),
        (206, headers(6, "bytes 10-14/100"), InvalidResponse),
        (206, headers(5), InvalidResponse),
        (206, headers(5, "items 10-14/100"), InvalidResponse),
        (206, {"Content-Range": "bytes 10-14/100"}, InvalidResponse),
        (206, {"Content-Range": "bytes 10-14/100", "Transfer-Encoding": "chunked"}, InvalidResponse),
        (200, headers(100), InvalidResponse),
        (200, headers(5), InvalidResponse),
        (204, headers(5), InvalidResponse),
    ],
)
def test_wrong_answers_are_refused_before_a_byte_is_read(status: int, answer: dict[str, str], error: type[OptfsError]) -> None:
    """Other bytes, another length, another size, or none of it told."""
    with pytest.raises(error):
        check_range(status, answer, INFO, 10, 5)


def test_a_name_cannot_break_the_line_that_tells_of_it() -> None:
    """Whoever can write keys could forge a line of the log."""
    told = gone(ObjectInfo("v1/account_id=1/a/p\n2026-11-01 forged \udce9", 1, 0.0, "e", "aws"), "status 404").message
    assert told.isprintable()
    assert told.startswith(r"'p\n2026-11-01 forged \udce9' was changed or deleted")


def test_pauses_that_services_ask_for() -> None:
    """In seconds or as a date; what is neither is no wish."""
    assert retry_after({"Retry-After": "12"}, 0.0) == 12.0
    assert retry_after({"Retry-After": formatdate(1_000_030, usegmt=True)}, 1_000_000.0) == 30.0
    assert retry_after({"Retry-After": formatdate(999_000, usegmt=True)}, 1_000_000.0) == 0.0
    for value in ({}, {"Retry-After": "soon"}, {"Retry-After": "-5"}, {"Retry-After": "\u00b2"}):
        assert retry_after(value, 0.0) is None


def test_a_date_without_a_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever this computer is."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        asked = retry_after({"Retry-After": "Mon, 12 Jan 1970 13:47:10 -0000"}, 1_000_000.0)
    time.tzset()
    assert asked == 30.0


def test_web_pages_are_told_from_answers() -> None:
    """By their beginning."""
    assert looks_like_html(b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>")
    assert looks_like_html(b"<HTML>")
    assert not looks_like_html(b'<?xml version="1.0"?><Error/>')
    assert not looks_like_html(b'{"error": "<html>"}')


@pytest.mark.parametrize(
    ("more", "believed"),
    [
        ({}, True),
        ({"X-Goog-Stored-Content-Encoding": "identity"}, True),
        ({"Content-Encoding": "gzip", "X-Goog-Stored-Content-Encoding": "gzip"}, True),
        ({"Content-Encoding": "gzip", "X-Goog-Stored-Content-Encoding": "identity"}, False),
    ],
)
def test_what_a_proxy_packs_is_not_the_object(more: dict[str, str], *, believed: bool) -> None:
    """An object that is stored packed is shown as it is stored."""
    told = {"Content-Length": "5", "Content-Range": "bytes 10-14/100", "X-Goog-Generation": "7", **more}
    with contextlib.nullcontext() if believed else pytest.raises(InvalidResponse):
        gcs_answers.check_read(206, told, dataclasses.replace(INFO, version="7"), 10, 5)
