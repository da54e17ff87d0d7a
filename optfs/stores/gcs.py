"""Google Cloud Storage by the direct carrier: the JSON API's list of objects and media, with a bearer token, sent by urllib3.

Rules:

- Nothing else is ever asked for: no metadata of the bucket or of one object.
- Each read names the version's generation, so that Google itself answers 404 when it is gone.
- `Accept-Encoding: gzip` on media keeps Google from unpacking objects that are stored packed, so that lengths and ranges are those of
  the stored bytes; nothing is unpacked here either.
- What answers mean: `gcs_answers`.

Facts from Google's reference (Objects: list, Objects: get, Transcoding of gzip-compressed files). No lock of its own.
"""

import json
import time
from collections.abc import Callable
from urllib.parse import quote

from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import CredentialSource, GcpCredential
from optfs.errors import OptfsError
from optfs.stores.counters import StoreCounters
from optfs.stores.entries import check_below, parse_time
from optfs.stores.gcs_answers import check_members, check_prefix, check_read, current_credential, failure, no_listing
from optfs.stores.protocol import Progress
from optfs.stores.ranges import range_header
from optfs.stores.transport import Transport
from optfs.values import AccountRoot, Deadline, ListPage, MiB, ObjectInfo, encode_name

ENDPOINT = "https://storage.googleapis.com"
PAGE_OBJECTS = 1000  # the most that Google promises
PAGE_LIMIT = 32 * MiB  # a page of 1000 names of 1024 bytes, each escaped, is below 8 MiB
FIELDS = "items(name,size,updated,generation),prefixes,nextPageToken"


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
            timeout: `--timeout`, seconds; see `Receiver`.
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
        check_below(self._root, prefix)
        query = {"prefix": prefix, "maxResults": str(PAGE_OBJECTS), "fields": FIELDS}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["pageToken"] = continuation
        credential = current_credential(self._source, deadline)
        target = f"{self._objects}?" + "&".join(f"{name}={_encode(value)}" for name, value in query.items()) + self._billed
        response = self._transport.get("list", target, {**_authorization(credential), "Accept-Encoding": "identity"}, deadline)
        if response.status != 200:
            raise self._failure(response, credential, deadline, None)
        return check_prefix(parse_listing(self._transport.body(response, PAGE_LIMIT, deadline)), prefix)

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        credential = current_credential(self._source, deadline)
        target = f"{self._objects}/{_encode(info.key)}?alt=media&generation={_encode(info.version)}{self._billed}"
        asked = {**_authorization(credential), "Range": range_header(start, len(buffer)), "Accept-Encoding": "gzip"}
        response = self._transport.get("get", target, asked, deadline)
        if response.status not in {200, 206}:
            raise self._failure(response, credential, deadline, info)
        try:
            check_read(response.status, response.headers, info, start, len(buffer))
        except OptfsError:
            response.close()
            raise
        self._transport.fill(response, buffer, progress, deadline)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _failure(self, response: BaseHTTPResponse, credential: GcpCredential, deadline: Deadline, info: ObjectInfo | None) -> OptfsError:
        body = self._transport.error_body(response, deadline)
        return failure(
            response.status,
            response.headers,
            body,
            root=self._root,
            credential=credential,
            billed=bool(self._billed),
            info=info,
            now=self._wall_clock(),
        )


def parse_listing(body: bytes) -> ListPage:
    """Return a page of a list of objects.

    Raises:
        InvalidResponse: it isn't one, or lacks something.

    """
    try:
        answer = json.loads(body)
        check_members(answer)
        objects = tuple(
            ObjectInfo(item["name"], int(item["size"]), parse_time(item["updated"]), str(int(item["generation"])), "gcp")
            for item in answer.get("items", ())
        )
        prefixes = tuple(str(prefix) for prefix in answer.get("prefixes", ()))
        continuation = answer.get("nextPageToken")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise no_listing(error) from error
    return ListPage(objects, prefixes, str(continuation) if continuation else None)


def _authorization(credential: GcpCredential) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential.token}"}


def _encode(text: str) -> str:
    return quote(encode_name(text), safe="-_.~")
