"""S3 as the export's users may see it: ListObjectsV2 and GetObject below the account's prefix, path-style; all else is denied.

Where the services aren't `strict`, HEAD and listings above the prefix are allowed, as other programs to mount a bucket ask for them.

Facts from Amazon's API reference (ListObjectsV2, GetObject, Error responses). Keys with `encoding-type=url` are encoded as S3 does it:
a space is a plus sign, a slash stays.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

from optfs.demo import signature
from optfs.demo.api_server import S3_BUCKET, Account
from optfs.demo.issuer import Expired, Issuer, Refused
from optfs.demo.objects import Bucket, Version
from optfs.demo.ranges import Unsatisfiable, resolve
from optfs.demo.traffic import Request, Response, Service
from optfs.values import encode_name

REGION = "us-east-1"
SKEW = 15 * 60  # seconds that a client's clock may be off
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(slots=True)
class Paging:
    """How many entries a page of a listing holds at most; tests change it while the services run."""

    size: int = 1000


class _Refusal(Exception):
    """An error that S3 answers with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class S3Handler:
    """Answers from one bucket."""

    service: Service = "s3"

    def __init__(self, bucket: Bucket, account: Account, issuer: Issuer, paging: Paging, *, strict: bool = True) -> None:
        self._bucket = bucket
        self._account = account
        self._issuer = issuer
        self._paging = paging
        self._strict = strict

    def classify(self, request: Request) -> None:
        """Tell listings and gets of objects from all else."""
        bucket, _, key = request.path.lstrip("/").partition("/")
        if bucket != S3_BUCKET or request.method != "GET":
            request.key = key
            return
        if key:
            request.kind, request.key = "get", key
        elif request.query.get("list-type") == "2":
            request.kind, request.key = "list", request.query.get("prefix", "")

    def answer(self, request: Request) -> Response:
        """Return the answer to a request, signed or not."""
        try:
            self._authenticate(request)
            self._authorize(request)
            if request.method == "HEAD" and not request.key:
                return Response(200)
            return self._list(request) if request.kind == "list" else self._get(request)
        except _Refusal as refusal:
            return error(refusal.status, refusal.code, str(refusal))

    def _authorize(self, request: Request) -> None:
        """Raise _Refusal for all but listings and gets below the account's prefix."""
        if not self._strict and (request.kind != "other" or request.method == "HEAD"):
            return
        if request.kind == "other" or not request.key.startswith(self._account.prefix):
            raise _Refusal(403, "AccessDenied", "Access Denied")

    def _authenticate(self, request: Request) -> None:
        """Raise _Refusal for a request that isn't signed with good keys."""
        if "authorization" not in request.headers:
            raise _Refusal(403, "AccessDenied", "Access Denied")
        try:
            authorization = signature.parse(request.headers["authorization"])
            signed_at = signature.moment(request)
            keys = self._issuer.keys(authorization.access_key)
        except signature.Malformed as fault:
            raise _Refusal(400, "AuthorizationHeaderMalformed", f"Malformed: {fault}") from fault
        except Refused as fault:
            raise _Refusal(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.") from fault
        except Expired as fault:
            raise _Refusal(400, "ExpiredToken", "The provided token has expired.") from fault
        if (authorization.region, authorization.service) != (REGION, "s3"):
            raise _Refusal(400, "AuthorizationHeaderMalformed", f"The region or service is wrong; expecting '{REGION}'")
        if request.headers.get("x-amz-security-token") != keys.session_token:
            raise _Refusal(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
        if abs(signed_at - self._issuer.clock()) > SKEW:
            raise _Refusal(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
        if not signature.verify(request, authorization, keys.secret_key):
            message = "The request signature we calculated does not match the signature you provided."
            raise _Refusal(403, "SignatureDoesNotMatch", message)

    def _list(self, request: Request) -> Response:
        query = request.query
        try:
            asked = int(query.get("max-keys", "1000"))
            page = self._bucket.list_page(
                request.key,
                delimiter=query.get("delimiter", ""),
                continuation=query.get("continuation-token"),
                start_after=query.get("start-after", ""),
                limit=min(asked, 1000, self._paging.size),
            )
        except ValueError:
            raise _Refusal(400, "InvalidArgument", "max-keys or continuation-token is incorrect") from None
        by_url = query.get("encoding-type") == "url"
        show = _by_url if by_url else escape
        parts = [XML, f'<ListBucketResult xmlns="{NAMESPACE}"><Name>{S3_BUCKET}</Name>', f"<Prefix>{show(request.key)}</Prefix>"]
        if page.continuation is not None:
            parts.append(f"<NextContinuationToken>{page.continuation}</NextContinuationToken>")
        parts.append(f"<KeyCount>{len(page.objects) + len(page.prefixes)}</KeyCount><MaxKeys>{asked}</MaxKeys>")
        parts += [f"<{name}>{show(query[key])}</{name}>" for key, name in _ECHOED.items() if key in query]
        if "continuation-token" in query:
            parts.append(f"<ContinuationToken>{escape(query['continuation-token'])}</ContinuationToken>")
        if by_url:
            parts.append("<EncodingType>url</EncodingType>")
        parts.append(f"<IsTruncated>{'true' if page.continuation is not None else 'false'}</IsTruncated>")
        parts += [_contents(version, show) for version in page.objects]
        parts += [f"<CommonPrefixes><Prefix>{show(prefix)}</Prefix></CommonPrefixes>" for prefix in page.prefixes]
        parts.append("</ListBucketResult>")
        return _xml(200, "".join(parts))

    def _get(self, request: Request) -> Response:
        version = self._bucket.get(request.key)
        if version is None:
            raise _Refusal(404, "NoSuchKey", "The specified key does not exist.")
        tag = f'"{version.etag}"'
        wanted = request.headers.get("if-match", "*")
        if wanted not in {"*", tag, version.etag}:
            raise _Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        headers = {
            "x-amz-request-id": _request_id(),
            "Content-Type": "application/octet-stream",
            "ETag": tag,
            "Last-Modified": formatdate(version.mtime, usegmt=True),
            "Accept-Ranges": "bytes",
            "x-amz-server-side-encryption": "aws:kms",
        }
        try:
            part = resolve(request.range, version.size)
        except Unsatisfiable:
            raise _Refusal(416, "InvalidRange", "The requested range is not satisfiable") from None
        if part is None:
            return Response(200, headers, version.part(0, version.size))
        start, length = part
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{version.size}"
        return Response(206, headers, version.part(start, length))


_ECHOED = {"delimiter": "Delimiter", "start-after": "StartAfter"}


def error(status: int, code: str, message: str) -> Response:
    """Return an error of S3."""
    request_id = _request_id()
    body = f"{XML}<Error><Code>{code}</Code><Message>{escape(message)}</Message><RequestId>{request_id}</RequestId></Error>"
    response = _xml(status, body)
    response.headers["x-amz-request-id"] = request_id
    return response


def _xml(status: int, body: str) -> Response:
    headers = {"x-amz-request-id": _request_id(), "Content-Type": "application/xml"}
    return Response(status, headers, memoryview(encode_name(body)))


def _request_id() -> str:
    return uuid.uuid4().hex[:16].upper()


def _by_url(text: str) -> str:
    return quote_plus(encode_name(text), safe="/")


def _contents(version: Version, show: Callable[[str], str]) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(version.mtime)) + f".{round(version.mtime * 1000) % 1000:03d}Z"
    return (
        f"<Contents><Key>{show(version.key)}</Key><LastModified>{moment}</LastModified><ETag>&quot;{version.etag}&quot;</ETag>"
        f"<Size>{version.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
