"""S3: ListObjectsV2 and ranged GETs, signed by botocore's SigV4 signer, sent by urllib3.

Rules:

- Nothing but these two requests: the export's credentials may be refused HeadBucket, GetBucketLocation, HEAD and a list of the root.
- A read names its version (`If-Match`), a listing its prefix below the account's.
- An endpoint of the user's own is addressed path style, Amazon's by the bucket's host name. Region us-east-1, where the export is.
- The server's clock counts: when it says that ours is off, the difference is kept and the request signed once more.

Facts from Amazon's S3 API reference (error codes, headers, encoding-type) and the Signature Version 4 documentation.

Lock: `_skew_lock` guards `_skew`, a leaf.
"""

import datetime
import threading
import time
from email.utils import parsedate_to_datetime
from urllib.parse import quote
from xml.etree import ElementTree

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import AwsCredential, CredentialSource
from optfs.errors import AccessDenied, AccessError, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress
from optfs.stores.ranges import check_range, gone, looks_like_html, range_header, retry_after
from optfs.stores.rejection import RejectedCredential
from optfs.stores.s3_listing import parse_listing
from optfs.stores.transport import Transport
from optfs.values import AccountRoot, Deadline, ListPage, MiB, ObjectInfo, encode_name

REGION = "us-east-1"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LONGEST_LISTING = 16 * MiB  # 1000 keys of 1024 bytes, three times as long when encoded, and the rest of each entry
PAGE = 1000

_REJECTED = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired"}
_BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException"}


class S3Store:
    """One account's objects in one bucket; see `stores.protocol.Store`."""

    def __init__(
        self,
        root: AccountRoot,
        source: CredentialSource,
        counters: StoreCounters,
        *,
        endpoint_url: str | None,
        timeout: float,
        user_agent: str,
    ) -> None:
        """Prepare; sends nothing.

        Args:
            root: bucket and prefix.
            source: the credentials that requests are signed with.
            counters: where requests are counted.
            endpoint_url: another address than Amazon's, path style.
            timeout: `--timeout`, seconds.
            user_agent: the User-Agent header.

        Raises:
            ConfigError: the endpoint's URL can't be used.

        """
        self._root = root
        self._source = source
        if endpoint_url is None:
            base, self._path = f"https://{root.bucket}.s3.{REGION}.amazonaws.com", "/"
        else:
            base, self._path = endpoint_url.rstrip("/"), f"/{root.bucket}/"
        self._base = base
        self._transport = Transport(base, timeout=timeout, user_agent=user_agent, counters=counters)
        self._skew_lock = threading.Lock()
        self._skew = 0.0  # seconds that the server's clock is ahead of ours; guarded by _skew_lock

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see the protocol."""
        query = {"encoding-type": "url", "list-type": "2", "max-keys": str(PAGE), "prefix": prefix}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["continuation-token"] = continuation
        text = "&".join(f"{name}={quote(encode_name(value), safe='-_.~')}" for name, value in sorted(query.items()))
        path = self._path if self._path == "/" else self._path.rstrip("/")
        response = self._get("list", f"{path}?{text}", {}, deadline)
        if response.status != 200:
            raise InvalidResponse(f"S3 answered a listing with status {response.status}", detail=_request_id(response))
        return parse_listing(self._transport.body(response, LONGEST_LISTING, deadline))

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see the protocol."""
        headers = {"Range": range_header(start, len(buffer)), "If-Match": f'"{info.version}"'}
        target = self._path + quote(encode_name(info.key), safe="-_.~/")
        response = self._get("get", target, headers, deadline, info)
        try:
            check_range(response.status, response.headers, info, start, len(buffer))
            tag = response.headers.get("ETag")
            if tag is not None and tag.removeprefix("W/").strip('"') != info.version:
                raise gone(info, f"ETag {tag[:80]}")
        except OptfsError:
            response.close()
            raise
        self._transport.fill(response, buffer, progress, deadline)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _get(self, kind: str, target: str, headers: dict[str, str], deadline: Deadline, info: ObjectInfo | None = None) -> BaseHTTPResponse:
        """Send a signed request and return an answer that tells of no error, its body unread."""
        for again in (True, False):
            credential = self._source.current(deadline.check("a request to S3"))
            if not isinstance(credential, AwsCredential):
                raise AccessError("these credentials aren't for S3")
            signed = self._sign(target, headers, credential)
            response = self._transport.get("list" if kind == "list" else "get", target, signed, deadline)
            if response.status in (200, 206):
                return response
            error = self._error(response, credential, info, deadline)
            if again and isinstance(error, _Skewed):
                self._learn_skew(response)
                continue
            raise error
        raise AssertionError("the second round returns or raises")

    def _sign(self, target: str, headers: dict[str, str], credential: AwsCredential) -> dict[str, str]:
        request = AWSRequest("GET", self._base + target, headers={**headers, "X-Amz-Content-SHA256": EMPTY_SHA256})
        keys = Credentials(credential.access_key, credential.secret_key, credential.session_token)
        with self._skew_lock:
            skew = self._skew
        _Signer(keys, skew).add_auth(request)
        return {name: value if isinstance(value, str) else value.decode("ascii") for name, value in request.headers.items()}

    def _learn_skew(self, response: BaseHTTPResponse) -> None:
        try:
            server = parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
        except ValueError:
            return
        with self._skew_lock:
            self._skew = server - time.time()

    def _error(self, response: BaseHTTPResponse, credential: AwsCredential, info: ObjectInfo | None, deadline: Deadline) -> OptfsError:
        status = response.status
        body = self._transport.error_body(response, deadline)
        code = _code(body)
        detail = f"status {status}, {code or 'no code'}, {_request_id(response)}"
        if code in _SKEWED:
            return _Skewed("S3 says that this computer's clock is wrong; set it", detail=detail)
        if code in _REJECTED or status == 401:
            return RejectedCredential("S3 refuses the credentials", credential, detail=detail)
        if code in _BUSY or status in (408, 429) or status >= 500:
            wait = retry_after(response.headers, time.time())
            return ServiceUnavailable("S3 is overloaded or failing; try again later", detail=detail, retry_after=wait)
        if status == 403:
            return AccessDenied("S3 refuses access; check that the token's user may read the export", detail=detail)
        if info is not None and status in (404, 412, 416):
            return gone(info, detail)
        if code == "NoSuchBucket" or status == 404:
            return ServiceError(f"there is no bucket {self._root.bucket} at that address; check --s3-endpoint-url", detail=detail)
        if 300 <= status < 400:
            region = response.headers.get("x-amz-bucket-region", "unknown")
            return ServiceError(f"S3 redirects to another address (region {region}); check --s3-endpoint-url", detail=detail)
        if looks_like_html(body):
            return InvalidResponse("a web page came instead of S3's answer; is a proxy or a sign-in page in between?", detail=detail)
        return InvalidResponse(f"S3 answered with status {status}", detail=detail)


class _Skewed(AccessError):
    """Our clock and the server's differ by more than 15 minutes."""


class _Signer(S3SigV4Auth):
    """botocore's signer, by a clock that may be ahead of ours."""

    def __init__(self, credentials: Credentials, skew: float) -> None:
        super().__init__(credentials, "s3", REGION)
        self._skew = skew

    def add_auth(self, request: AWSRequest) -> None:
        """Sign, by the server's clock; the same steps as botocore's, whose clock is fixed."""
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self._skew)
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)  # type: ignore[attr-defined]  # the stubs leave out what is not public
        canonical_request = self.canonical_request(request)
        string_to_sign = self.string_to_sign(request, canonical_request)
        signature = self.signature(string_to_sign, request)
        self._inject_signature_to_request(request, signature)  # type: ignore[attr-defined]  # the stubs leave out what is not public


def _code(body: bytes) -> str:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat limits the expansion of entities itself since 2.4.1
    except (ElementTree.ParseError, ValueError):
        return ""
    return next((child.text or "" for child in root if child.tag.rpartition("}")[2] == "Code"), "")[:80]


def _request_id(response: BaseHTTPResponse) -> str:
    return f"request {response.headers.get('x-amz-request-id', '-')[:80]}"
