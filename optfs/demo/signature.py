"""Verification of AWS Signature Version 4 in the Authorization header, as Amazon's "Authenticating Requests" describes it for S3.

The canonical request is built from what came over the wire, decoded and encoded anew, so that a client that signs something else than
what it sends is refused.
"""

import calendar
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from urllib.parse import quote, unquote_plus, unquote_to_bytes

from optfs.demo.traffic import Request

ALGORITHM = "AWS4-HMAC-SHA256"
UNRESERVED = "-_.~"


class Malformed(ValueError):
    """The header is none of this algorithm's, or lacks something."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """The parts of the header."""

    access_key: str
    date: str
    region: str
    service: str
    signed: tuple[str, ...]
    signature: str


def parse(header: str) -> Authorization:
    """Return the parts of an Authorization header; Malformed if it isn't one of this algorithm."""
    matched = re.fullmatch(
        ALGORITHM + r"\s+Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request,\s*SignedHeaders=([^,]+),\s*Signature=([0-9a-f]{64})",
        header,
    )
    if matched is None:
        raise Malformed("the Authorization header")
    return Authorization(matched[1], matched[2], matched[3], matched[4], tuple(matched[5].split(";")), matched[6])


def moment(request: Request) -> float:
    """Return when a request was signed, seconds since the epoch; Malformed without a valid x-amz-date."""
    try:
        return calendar.timegm(time.strptime(request.headers.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ"))
    except ValueError as error:
        raise Malformed("x-amz-date") from error


def verify(request: Request, authorization: Authorization, secret_key: str) -> bool:
    """Return whether a request carries the signature of `secret_key`, over everything that must be signed."""
    must = {"host", *(name for name in request.headers if name.startswith("x-amz-"))}
    if not must <= set(authorization.signed) or list(authorization.signed) != sorted(authorization.signed):
        return False
    payload = request.headers.get("x-amz-content-sha256", "")
    if payload not in {"UNSIGNED-PAYLOAD", hashlib.sha256(request.body).hexdigest()}:
        return False
    date = request.headers.get("x-amz-date", "")
    if not date.startswith(authorization.date):
        return False
    scope = f"{authorization.date}/{authorization.region}/{authorization.service}/aws4_request"
    canonical = hashlib.sha256(_canonical(request, authorization.signed, payload).encode()).hexdigest()
    key = ("AWS4" + secret_key).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, "\n".join([ALGORITHM, date, scope, canonical]).encode(), "sha256").hex()
    return hmac.compare_digest(expected, authorization.signature)


def _canonical(request: Request, signed: tuple[str, ...], payload: str) -> str:
    query = []
    for item in request.raw_query.split("&"):
        if item:
            name, _, value = item.partition("=")
            query.append((_encode_parameter(name), _encode_parameter(value)))
    return "\n".join(
        [
            request.method,
            quote(unquote_to_bytes(request.raw_path), safe="/" + UNRESERVED),
            "&".join(f"{name}={value}" for name, value in sorted(query)),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed),
            "",
            ";".join(signed),
            payload,
        ]
    )


def _encode_parameter(text: str) -> str:
    return quote(unquote_plus(text, errors="surrogateescape").encode("utf-8", "surrogateescape"), safe=UNRESERVED)
