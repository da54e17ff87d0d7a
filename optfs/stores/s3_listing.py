"""A page of ListObjectsV2, from XML. Pure.

ElementTree and times cut by hand: botocore's parser takes ten times the CPU, most of it for timestamps. Facts from Amazon's API
reference: with `encoding-type=url` keys and prefixes are encoded as in a form (a space may be `+`); ETags stand in quotes; times are
`2026-11-01T00:00:00.000Z`.
"""

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from optfs.errors import InvalidResponse
from optfs.values import ListPage, MiB, ObjectInfo

PAGE_LIMIT = 32 * MiB  # a page of 1000 keys of 1024 bytes, each byte as %XX, is below 4 MiB


def parse_listing(body: bytes) -> ListPage:
    """Return the page.

    Raises:
        InvalidResponse: it isn't a ListBucketResult, or lacks something.

    """
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat limits the expansion of entities itself since 2.4.1
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidResponse("the answer isn't a listing of S3; is a proxy or a sign-in page in between?", detail=str(error)) from error
    namespace, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise InvalidResponse("the answer isn't a listing of S3; is a proxy or a sign-in page in between?", detail=f"<{name}>")
    ns = namespace + "}" if namespace else ""
    encoded = (root.findtext(ns + "EncodingType") or "").lower() == "url"
    try:
        objects = [_object(item, ns, encoded) for item in root.iterfind(ns + "Contents")]
        prefixes = [_name(item.findtext(ns + "Prefix"), encoded) for item in root.iterfind(ns + "CommonPrefixes")]
    except (KeyError, ValueError) as error:
        raise InvalidResponse("S3 sent a listing with incomplete entries", detail=repr(error)) from error
    continuation = None
    if root.findtext(ns + "IsTruncated") == "true":
        continuation = root.findtext(ns + "NextContinuationToken")
        if not continuation:
            raise InvalidResponse("S3 sent a part of a listing and no way to get the rest")
    return ListPage(tuple(objects), tuple(prefixes), continuation)


def check_prefix(page: ListPage, prefix: str) -> ListPage:
    """Return the page; InvalidResponse where it holds another key than one below `prefix`."""
    if not all(info.key.startswith(prefix) for info in page.objects):
        raise InvalidResponse("S3 listed other keys than asked for")
    return page


def _object(item: ElementTree.Element, ns: str, encoded: bool) -> ObjectInfo:
    fields = {child.tag: child.text for child in item}
    key = _name(fields[ns + "Key"], encoded)
    size = int(fields[ns + "Size"] or "")
    return ObjectInfo(key, size, parse_time(fields[ns + "LastModified"] or ""), (fields[ns + "ETag"] or "").strip('"'), "aws")


def _name(text: str | None, encoded: bool) -> str:
    if not text:
        raise ValueError("an empty name")
    if encoded and ("%" in text or "+" in text):
        return unquote_plus(text, errors="surrogateescape")
    return text


def parse_time(text: str) -> float:
    """Return seconds since the epoch of a time as stores write it: `2026-11-01T00:00:00[.000]Z`, in UTC.

    Raises:
        ValueError: it isn't one.

    """
    if len(text) < 20 or text[10] != "T" or text[-1] != "Z":
        raise ValueError(f"not a time: {text[:40]!r}")
    return _midnight(text[:10]) + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + float(text[17:-1])


@lru_cache(maxsize=4096)  # a listing repeats few days; a few years' fit
def _midnight(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
