"""Google Cloud Storage: pages of a listing by the JSON API, and ranged media GETs of one generation.

Rules:

- Nothing but these two requests: no metadata of the bucket, which needs more than the right to read objects.
- `Accept-Encoding: gzip` is sent and nothing is decoded, so that an object stored with `Content-Encoding: gzip` comes as it is stored, with
  the length that the listing shows; without it Google would decompress it on the way.
- A project is billed (`userProject`) only when the user names one.

Facts from Google's reference of the JSON API (objects.list, objects.get, errors' `reason`) and of transcoding. No lock.
"""

import json
import time
from typing import Any
from urllib.parse import quote, urlencode

from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import CredentialSource, GcpCredential
from optfs.errors import AccessDenied, AccessError, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import RequestKind, StoreCounters
from optfs.stores.protocol import Progress
from optfs.stores.ranges import check_range, gone, looks_like_html, range_header, retry_after
from optfs.stores.rejection import RejectedCredential
from optfs.stores.s3_listing import parse_time
from optfs.stores.transport import Transport
from optfs.values import AccountRoot, Deadline, ListPage, MiB, ObjectInfo, encode_name

ENDPOINT = "https://storage.googleapis.com"
PAGE = 1000
FIELDS = "items(name,size,updated,generation),prefixes,nextPageToken"
LONGEST_LISTING = 16 * MiB

_BUSY_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "backendError", "quotaExceeded"}


class GcsStore:
    """One account's objects in one bucket; see `stores.protocol.Store`."""

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
    ) -> None:
        """Prepare; sends nothing.

        Args:
            root: bucket and prefix.
            source: the tokens that requests carry.
            counters: where requests are counted.
            endpoint_url: another address than Google's.
            user_project: the project that is billed for requests, or None.
            timeout: `--timeout`, seconds.
            user_agent: the User-Agent header.

        Raises:
            ConfigError: the endpoint's URL can't be used.

        """
        self._root = root
        self._source = source
        self._project = user_project
        self._bucket = f"/storage/v1/b/{quote(root.bucket, safe='')}/o"
        self._transport = Transport(endpoint_url or ENDPOINT, timeout=timeout, user_agent=user_agent, counters=counters)

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see the protocol."""
        query = {"prefix": encode_name(prefix), "maxResults": PAGE, "fields": FIELDS}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["pageToken"] = continuation
        response = self._get("list", self._target(self._bucket, query), {}, deadline)
        body = self._transport.body(response, LONGEST_LISTING, deadline)
        if response.status != 200:
            raise InvalidResponse(f"GCS answered a listing with status {response.status}", detail=_upload_id(response))
        return parse_page(body)

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see the protocol."""
        target = self._target(f"{self._bucket}/{quote(encode_name(info.key), safe='')}", {"alt": "media", "generation": info.version})
        headers = {"Range": range_header(start, len(buffer)), "Accept-Encoding": "gzip"}
        response = self._get("get", target, headers, deadline, info)
        try:
            check_range(response.status, response.headers, info, start, len(buffer))
            generation = response.headers.get("x-goog-generation")
            if generation is not None and generation != info.version:
                raise gone(info, f"generation {generation[:40]}")
        except OptfsError:
            response.close()
            raise
        self._transport.fill(response, buffer, progress, deadline)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _target(self, path: str, query: dict[str, Any]) -> str:
        if self._project is not None:
            query["userProject"] = self._project
        return f"{path}?{urlencode(query)}"

    def _get(
        self, kind: RequestKind, target: str, headers: dict[str, str], deadline: Deadline, info: ObjectInfo | None = None
    ) -> BaseHTTPResponse:
        """Send a request and return an answer that tells of no error, its body unread."""
        credential = self._source.current(deadline.check("a request to GCS"))
        if not isinstance(credential, GcpCredential):
            raise AccessError("these credentials aren't for GCS")
        response = self._transport.get(kind, target, {**headers, "Authorization": f"Bearer {credential.token}"}, deadline)
        if response.status in (200, 206):
            return response
        raise self._error(response, credential, info, deadline)

    def _error(self, response: BaseHTTPResponse, credential: GcpCredential, info: ObjectInfo | None, deadline: Deadline) -> OptfsError:
        status = response.status
        body = self._transport.error_body(response, deadline)
        reason = _reason(body)
        detail = f"status {status}, {reason or 'no reason'}, {_upload_id(response)}"
        if status == 401:
            return RejectedCredential("GCS refuses the token", credential, detail=detail)
        if status in (408, 429) or status >= 500 or (status == 403 and reason in _BUSY_REASONS):
            wait = retry_after(response.headers, time.time())
            return ServiceUnavailable("GCS is overloaded or failing; try again later", detail=detail, retry_after=wait)
        if status == 403:
            return AccessDenied("GCS refuses access; check that the token's user may read the export", detail=detail)
        if status == 400 and reason == "required":
            return AccessDenied("the bucket bills who reads; give --gcs-user-project", detail=detail)
        if info is not None and status in (404, 410, 412, 416):
            return gone(info, detail)
        if status == 404:
            return ServiceError(f"there is no bucket {self._root.bucket} at that address; check --gcs-endpoint-url", detail=detail)
        if looks_like_html(body):
            return InvalidResponse("a web page came instead of GCS's answer; is a proxy or a sign-in page in between?", detail=detail)
        return InvalidResponse(f"GCS answered with status {status}", detail=detail)


def parse_page(body: bytes) -> ListPage:
    """Return a page of objects.list.

    Raises:
        InvalidResponse: it isn't one, or lacks something.

    """
    try:
        page = json.loads(body)
        if not isinstance(page, dict):
            raise TypeError("no JSON object")
        objects = tuple(
            ObjectInfo(item["name"], int(item["size"]), parse_time(item["updated"]), str(item["generation"]), "gcp")
            for item in page.get("items", ())
        )
        prefixes = tuple(str(prefix) for prefix in page.get("prefixes", ()))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidResponse(
            "the answer isn't a listing of GCS; is a proxy or a sign-in page in between?", detail=repr(error)[:200]
        ) from error
    token = page.get("nextPageToken")
    return ListPage(objects, prefixes, str(token) if token else None)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["errors"][0]["reason"])[:80]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return ""


def _upload_id(response: BaseHTTPResponse) -> str:
    return f"upload id {response.headers.get('X-GUploader-UploadID', '-')[:80]}"
