"""Amazon S3: ListObjectsV2 and ranged GetObject, signed by botocore, sent by urllib3.

Rules:

- Nothing else is ever asked for: no HeadBucket, GetBucketLocation, HEAD, or listing above the account's prefix. The export's policy
  denies them.
- Each read carries `If-Match` with the version's ETag, so that S3 itself refuses another version (412).
- Requests are signed with the service's time: when S3 says that this computer's clock is wrong, the difference is taken from its Date
  header, once for all requests that follow.
- Virtual-host style at AWS (path style only for a bucket with dots, which the wildcard certificate doesn't cover), path style elsewhere.

Facts from Amazon's API reference (ListObjectsV2, GetObject, Error responses, Signature Version 4).

Lock order: `_lock` is a leaf.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from botocore.auth import EMPTY_SHA256_HASH, S3SigV4Auth
from botocore.awsrequest import AWSRequest
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

logger = logging.getLogger(__name__)

REGION = "us-east-1"  # of the export's bucket, says Optimizely's documentation
PAGE_KEYS = 1000  # the most that S3 gives
PAGE_LIMIT = 32 * MiB  # a page of 1000 keys of 1024 bytes, each byte as %XX, is below 4 MiB
SAME_CLOCK = 60.0  # seconds; a correction smaller than this wouldn't change S3's mind, whose limit is 15 minutes

_REJECTED = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired", "SignatureDoesNotMatch"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_BUSY = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
_ELSEWHERE = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


class S3Store:
    """One account's prefix of one bucket; implements `stores.protocol.Store`."""

    def __init__(
        self,
        root: AccountRoot,
        source: CredentialSource,
        counters: StoreCounters,
        *,
        endpoint_url: str | None,
        timeout: float,
        user_agent: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            root: bucket and prefix.
            source: of AwsCredentials.
            counters: where requests are counted.
            endpoint_url: None: AWS itself.
            timeout: `--timeout`, seconds; see `Transport`.
            user_agent: the User-Agent header.
            wall_clock: seconds since the epoch, for signatures.

        Raises:
            ConfigError: the endpoint's URL is unusable.

        """
        self._root = root
        self._source = source
        self._wall_clock = wall_clock
        if endpoint_url is not None:
            self._base, self._path = endpoint_url.rstrip("/"), f"/{root.bucket}"
        elif "." in root.bucket:
            self._base, self._path = f"https://s3.{REGION}.amazonaws.com", f"/{root.bucket}"
        else:
            self._base, self._path = f"https://{root.bucket}.s3.{REGION}.amazonaws.com", ""
        self._transport = Transport(self._base, timeout=timeout, user_agent=user_agent, counters=counters)
        self._lock = threading.Lock()
        self._clock_offset = 0.0  # guarded by _lock; S3's time minus this computer's, seconds

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`."""
        if not prefix.startswith(self._root.prefix):
            raise ValueError("a listing must stay below the account's prefix")
        query = {"encoding-type": "url", "list-type": "2", "max-keys": str(PAGE_KEYS), "prefix": prefix}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["continuation-token"] = continuation
        credential = self._credential(deadline)
        target = f"{self._path or '/'}?" + "&".join(f"{name}={_encode(value)}" for name, value in sorted(query.items()))
        response = self._transport.get("list", target, self._signed(target, {}, credential), deadline)
        if response.status != 200:
            raise self._failure(response, credential, deadline, None)
        body = self._transport.body(response, PAGE_LIMIT, deadline)
        page = parse_listing(body)
        if not all(info.key.startswith(prefix) for info in page.objects):
            raise InvalidResponse("S3 listed other keys than asked for")
        return page

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        tag = f'"{info.version}"'
        credential = self._credential(deadline)
        target = f"{self._path}/{_encode(info.key, safe='/')}"
        asked = {"Range": range_header(start, len(buffer)), "If-Match": tag, "Accept-Encoding": "identity"}
        response = self._transport.get("get", target, self._signed(target, asked, credential), deadline)
        if response.status not in {200, 206}:
            raise self._failure(response, credential, deadline, info)
        try:
            check_range(response.status, response.headers, info, start, len(buffer))
            got = response.headers.get("ETag", tag)
            if got.removeprefix("W/").strip('"') != info.version:
                raise gone(info, f"ETag {got[:80]} instead of {tag}")
        except OptfsError as error:
            response.close()
            error.detail = f"{error.detail}; request {_request_id(response.headers)}"
            raise
        self._transport.fill(response, buffer, progress, deadline)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _credential(self, deadline: Deadline) -> AwsCredential:
        credential = self._source.current(deadline.check("a request to S3"))
        if not isinstance(credential, AwsCredential):
            raise AccessError("the credential that is held isn't for S3; check the provider")
        return credential

    def _signed(self, target: str, headers: dict[str, str], credential: AwsCredential) -> dict[str, str]:
        """Return `headers` and those that sign them."""
        with self._lock:
            offset = self._clock_offset
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._wall_clock() + offset))
        request = AWSRequest("GET", self._base + target, headers=headers)
        request.headers["X-Amz-Date"] = stamp
        request.headers["X-Amz-Content-SHA256"] = EMPTY_SHA256_HASH
        if credential.session_token is not None:
            request.headers["X-Amz-Security-Token"] = credential.session_token
        request.context["timestamp"] = stamp
        # Not add_auth: it reads the computer's own clock, and writes the session token into botocore's debug log.
        auth = S3SigV4Auth(credential, "s3", REGION)  # type: ignore[arg-type]  # it reads the two keys only, named alike
        signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        names = auth.signed_headers(auth.headers_to_sign(request))
        request.headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, Signature={signature}"
        )
        return dict(request.headers.items())

    def _failure(self, response: BaseHTTPResponse, credential: AwsCredential, deadline: Deadline, info: ObjectInfo | None) -> OptfsError:
        """Return the exception for an answer that isn't the wanted one; `info` is what was read, None for a listing."""
        body = self._transport.error_body(response, deadline)
        status, headers = response.status, response.headers
        told = _parse_error(body)
        detail = f"status {status}, code {told.code or '-'}, request {_request_id(headers)}"
        bucket = self._root.bucket
        if told.code in _REJECTED:
            return RejectedCredential("S3 doesn't accept the credential", credential, detail=detail)
        if told.code in _SKEWED:
            return self._correct_clock(headers, detail)
        if status in {408, 429, 500, 502, 503, 504} or told.code in _BUSY:
            wait = retry_after(headers, self._wall_clock())
            return ServiceUnavailable("S3 is overloaded or has a failure; try again later", detail=detail, retry_after=wait)
        if status in {301, 307} or told.code in _ELSEWHERE:
            region = headers.get("x-amz-bucket-region") or told.region or "another region"
            return ServiceError(f"the bucket {bucket} is in {region}, not in {REGION}; check the endpoint's URL", detail=detail)
        if looks_like_html(body) or 300 <= status < 400:
            return InvalidResponse("the answer isn't S3's; is a proxy or a sign-in page in between?", detail=detail)
        if told.code == "NoSuchBucket":
            return AccessDenied(f"there is no bucket {bucket}; check the account and the provider", detail=detail)
        if info is not None and status in {404, 412, 416}:
            return gone(info, detail)
        if status in {401, 403}:
            return AccessDenied(
                f"S3 denies access to {bucket}/{self._root.prefix}; check the account and the token's rights", detail=detail
            )
        if 400 <= status < 500:
            return ServiceError(f"S3 refused a request ({told.code or status})", detail=detail)
        return InvalidResponse(f"S3 answered with the unexpected status {status}", detail=detail)

    def _correct_clock(self, headers: Mapping[str, str], detail: str) -> OptfsError:
        """Take the service's time from now on; return the exception that asks for another try, or says that it didn't help."""
        advice = "this computer's clock is wrong, and S3 refuses requests because of it; set the clock"
        try:
            offset = parsedate_to_datetime(headers.get("Date", "")).timestamp() - self._wall_clock()
        except (ValueError, OverflowError):
            return AccessDenied(advice, detail=detail)
        with self._lock:
            changed = abs(offset - self._clock_offset) > SAME_CLOCK
            if changed:
                self._clock_offset = offset
        if not changed and abs(offset) <= SAME_CLOCK:
            return AccessDenied(advice, detail=detail)
        if changed:
            logger.warning("this computer's clock is %.0f s off; requests are signed with S3's time", -offset)
        return ServiceUnavailable(advice, detail=detail, retry_after=0.0)


class _Told(NamedTuple):
    """What the body of an error says."""

    code: str
    region: str


def _parse_error(body: bytes) -> _Told:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat limits the expansion of entities itself since 2.4.1
    except (ElementTree.ParseError, ValueError):
        return _Told("", "")
    found = {child.tag.rpartition("}")[2]: (child.text or "")[:80] for child in root}
    return _Told(found.get("Code", ""), found.get("Region", ""))


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("x-amz-request-id", "-")[:80]


def _encode(text: str, safe: str = "") -> str:
    return quote(encode_name(text), safe=safe + "-_.~")
