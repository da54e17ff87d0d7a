"""A page of ListObjectsV2, from XML or from what botocore's client made of that. Pure.

From XML by ElementTree, with times cut by hand: botocore's parser takes ten times the CPU, most of it for timestamps. Facts from Amazon's API
reference: with `encoding-type=url` keys and prefixes are encoded as in a form (a space may be `+`); ETags stand in quotes; times are
`2026-11-01T00:00:00.000Z`.
"""

import io
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from optfs.errors import InvalidResponse
from optfs.stores.entries import parse_time
from optfs.values import ListPage, MiB, ObjectInfo

PAGE_LIMIT = 32 * MiB  # a page of 1000 keys of 1024 bytes, each byte as %XX, is below 4 MiB


def parse_listing(body: bytes) -> ListPage:
    """Return the page.

    Raises:
        InvalidResponse: it isn't a ListBucketResult, or lacks something.

    """
    _check_plain(body)
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - it declares no entities
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: of its encoding
        raise no_listing(str(error)) from error
    namespace, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise no_listing(f"<{name}>")
    ns = namespace + "}" if namespace else ""
    encoded = (root.findtext(ns + "EncodingType") or "").lower() == "url"
    try:
        objects = [_object(item, ns, encoded) for item in root.iterfind(ns + "Contents")]
        prefixes = [_name(item.findtext(ns + "Prefix"), encoded) for item in root.iterfind(ns + "CommonPrefixes")]
    except (KeyError, ValueError) as error:
        raise incomplete(error) from error
    continuation = _continuation(root.findtext(ns + "IsTruncated") == "true", root.findtext(ns + "NextContinuationToken"))
    return ListPage(tuple(objects), tuple(prefixes), continuation)


def _check_plain(body: bytes) -> None:
    """Refuse a document type: S3 sends none, and expat lets entities make a hundred times as much of a body."""
    if b"<!DOCTYPE" in body:
        raise no_listing("a document type")


def check_listing(body: bytes) -> None:
    """Look at a body's outermost element only: botocore takes any XML without known elements, a web page for example, for an empty listing.

    Raises:
        InvalidResponse: it isn't a ListBucketResult.

    """
    _check_plain(body)
    try:
        _, root = next(ElementTree.iterparse(io.BytesIO(body), ("start",)))  # noqa: S314 - see `parse_listing`
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise no_listing(str(error)) from error
    name = root.tag.rpartition("}")[2]
    if name != "ListBucketResult":
        raise no_listing(f"<{name}>")


def from_parsed(parsed: Mapping[str, Any]) -> ListPage:
    """Return the page that `list_objects_v2` of botocore's client tells, names still encoded.

    Raises:
        InvalidResponse: it lacks something.

    """
    encoded = str(parsed.get("EncodingType", "")).lower() == "url"
    try:
        objects = [
            ObjectInfo(_name(item["Key"], encoded), item["Size"], item["LastModified"].timestamp(), _version(item["ETag"]), "aws")
            for item in parsed.get("Contents", ())
        ]
        prefixes = [_name(item.get("Prefix"), encoded) for item in parsed.get("CommonPrefixes", ())]
    except (KeyError, ValueError, OverflowError) as error:
        raise incomplete(error) from error
    return ListPage(tuple(objects), tuple(prefixes), _continuation(bool(parsed.get("IsTruncated")), parsed.get("NextContinuationToken")))


def no_listing(detail: str) -> InvalidResponse:
    """Return the exception for a body that is none."""
    return InvalidResponse("the answer isn't a listing of S3; is a proxy or a sign-in page in between?", detail=detail)


def incomplete(error: Exception) -> InvalidResponse:
    """Return the exception for a listing whose entries lack something, or hold what can't be."""
    return InvalidResponse("S3 sent a listing with incomplete entries", detail=repr(error)[:200])


def _continuation(truncated: bool, token: str | None) -> str | None:
    if truncated and not token:
        raise InvalidResponse("S3 sent a part of a listing and no way to get the rest")
    return token if truncated else None


def _object(item: ElementTree.Element, ns: str, encoded: bool) -> ObjectInfo:
    fields = {child.tag: child.text for child in item}
    key = _name(fields[ns + "Key"], encoded)
    size = int(fields[ns + "Size"] or "")
    return ObjectInfo(key, size, parse_time(fields[ns + "LastModified"] or ""), _version(fields[ns + "ETag"] or ""), "aws")


def _version(tag: str) -> str:
    return tag.removeprefix("W/").strip('"')


def _name(text: str | None, encoded: bool) -> str:
    if not text:
        raise ValueError("an empty name")
    if encoded and ("%" in text or "+" in text):
        return unquote_plus(text, errors="surrogateescape")
    return text
