"""Google Cloud Storage: the JSON API's list of objects and media, with a bearer token, sent by urllib3.

Rules:

- Nothing else is ever asked for: no metadata of the bucket or of one object.
- Each read names the version's generation, so that Google itself answers 404 when it is gone.
- `Accept-Encoding: gzip` on media keeps Google from unpacking objects that are stored packed, so that lengths and ranges are those of
  the stored bytes; nothing is unpacked here either.

Facts from Google's reference (Objects: list, Objects: get, Transcoding of gzip-compressed files, HTTP status and error codes).
No lock of its own.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import quote

from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import CredentialSource, GcpCredential
from optfs.errors import AccessDenied, AccessError, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress
from optfs.stores.ranges import check_range, gone, looks_like_html, range_header, retry_after
from optfs.stores.rejection import RejectedCredential
from optfs.stores.s3_listing import parse_time
from optfs.stores.transport import Transport
from optfs.values import AccountRoot, Deadline, ListPage, MiB, ObjectInfo, encode_name

ENDPOINT = "https://storage.googleapis.com"
PAGE_OBJECTS = 1000  # the most that Google promises
PAGE_LIMIT = 32 * MiB  # a page of 1000 names of 1024 bytes, each escaped, is below 8 MiB
FIELDS = "items(name,size,updated,generation),prefixes,nextPageToken"

_BUSY = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError"})


class GcsStore:
    """One account's prefix of one bucket; implements `stores.protocol.Store`."""

    def __init__(
        self,
        root: AccountRoot,
        source: CredentialSource,
        counters: StoreCounters,
        *,
        endpoint_url: str | None,
        user_project: str | None,
        timeout: float,
        user_agent: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            root: bucket and prefix.
            source: of GcpCredentials.
            counters: where requests are counted.
            endpoint_url: None: Google itself.
            user_project: the project that requests are billed to; None: not asked for.
            timeout: `--timeout`, seconds; see `Transport`.
            user_agent: the User-Agent header.
            wall_clock: seconds since the epoch, for Retry-After with a date.

        Raises:
            ConfigError: the endpoint's URL is unusable.

        """
        self._root = root
        self._source = source
        self._wall_clock = wall_clock
        self._billed = f"&userProject={_encode(user_project)}" if user_project else ""
        self._objects = f"/storage/v1/b/{_encode(root.bucket)}/o"
        base = (endpoint_url or ENDPOINT).rstrip("/")
        self._transport = Transport(base, timeout=timeout, user_agent=user_agent, counters=counters)

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`."""
        if not prefix.startswith(self._root.prefix):
            raise ValueError("a listing must stay below the account's prefix")
        query = {"prefix": prefix, "maxResults": str(PAGE_OBJECTS), "fields": FIELDS}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["pageToken"] = continuation
        credential = self._credential(deadline)
        target = f"{self._objects}?" + "&".join(f"{name}={_encode(value)}" for name, value in query.items()) + self._billed
        response = self._transport.get("list", target, {**_authorization(credential), "Accept-Encoding": "identity"}, deadline)
        if response.status != 200:
            raise self._failure(response, credential, deadline, None)
        page = parse_listing(self._transport.body(response, PAGE_LIMIT, deadline))
        if not all(info.key.startswith(prefix) for info in page.objects):
            raise InvalidResponse("Google Cloud Storage listed other objects than asked for")
        return page

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        credential = self._credential(deadline)
        target = f"{self._objects}/{_encode(info.key)}?alt=media&generation={_encode(info.version)}{self._billed}"
        asked = {**_authorization(credential), "Range": range_header(start, len(buffer)), "Accept-Encoding": "gzip"}
        response = self._transport.get("get", target, asked, deadline)
        if response.status not in {200, 206}:
            raise self._failure(response, credential, deadline, info)
        try:
            check_range(response.status, response.headers, info, start, len(buffer))
            got = response.headers.get("X-Goog-Generation", info.version)
            if got != info.version:
                raise gone(info, f"generation {got[:40]} instead of {info.version}")
        except OptfsError as error:
            response.close()
            error.detail = f"{error.detail}; upload id {_request_id(response.headers)}"
            raise
        self._transport.fill(response, buffer, progress, deadline)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _credential(self, deadline: Deadline) -> GcpCredential:
        credential = self._source.current(deadline.check("a request to Google Cloud Storage"))
        if not isinstance(credential, GcpCredential):
            raise AccessError("the credential that is held isn't for Google Cloud Storage; check the provider")
        return credential

    def _failure(self, response: BaseHTTPResponse, credential: GcpCredential, deadline: Deadline, info: ObjectInfo | None) -> OptfsError:
        """Return the exception for an answer that isn't the wanted one; `info` is what was read, None for a listing."""
        body = self._transport.error_body(response, deadline)
        status, headers = response.status, response.headers
        told = _parse_error(body)
        detail = f"status {status}, reason {told.reason or '-'}, upload id {_request_id(headers)}"
        bucket = self._root.bucket
        if status == 401:
            return RejectedCredential("Google Cloud Storage doesn't accept the credential", credential, detail=detail)
        if status in {408, 429, 500, 502, 503, 504} or told.reason in _BUSY:
            wait = retry_after(headers, self._wall_clock())
            return ServiceUnavailable(
                "Google Cloud Storage is overloaded or has a failure; try again later", detail=detail, retry_after=wait
            )
        if looks_like_html(body) or 300 <= status < 400:
            return InvalidResponse("the answer isn't Google Cloud Storage's; is a proxy or a sign-in page in between?", detail=detail)
        if told.reason in {"userProjectMissing", "required"} and not self._billed:
            return AccessDenied(f"the bucket {bucket} wants a project to bill; set --gcs-user-project", detail=detail)
        if info is not None and status in {404, 412, 416}:
            return gone(info, detail)
        if status == 404:
            return AccessDenied(f"there is no bucket {bucket}; check the account and the provider", detail=detail)
        if status == 403:
            message = f"Google Cloud Storage denies access to {bucket}/{self._root.prefix}; check the account and the token's rights"
            return AccessDenied(message, detail=detail)
        if 400 <= status < 500:
            return ServiceError(f"Google Cloud Storage refused a request ({told.reason or status})", detail=detail)
        return InvalidResponse(f"Google Cloud Storage answered with the unexpected status {status}", detail=detail)


def parse_listing(body: bytes) -> ListPage:
    """Return a page of a list of objects.

    Raises:
        InvalidResponse: it isn't one, or lacks something.

    """
    try:
        answer = json.loads(body)
        objects = tuple(
            ObjectInfo(item["name"], int(item["size"]), parse_time(item["updated"]), str(int(item["generation"])), "gcp")
            for item in answer.get("items", ())
        )
        prefixes = tuple(str(prefix) for prefix in answer.get("prefixes", ()))
        continuation = answer.get("nextPageToken")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = "the answer isn't a listing of Google Cloud Storage; is a proxy or a sign-in page in between?"
        raise InvalidResponse(message, detail=repr(error)[:200]) from error
    return ListPage(objects, prefixes, str(continuation) if continuation else None)


class _Told(NamedTuple):
    """What the body of an error says."""

    reason: str


def _parse_error(body: bytes) -> _Told:
    try:
        return _Told(str(json.loads(body)["error"]["errors"][0]["reason"])[:80])
    except (ValueError, KeyError, TypeError, IndexError):
        return _Told("")


def _authorization(credential: GcpCredential) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential.token}"}


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("X-GUploader-UploadID", "-")[:200]


def _encode(text: str) -> str:
    return quote(encode_name(text), safe="-_.~")
