"""Amazon S3 by the direct carrier: ListObjectsV2 and ranged GetObject, signed by botocore, sent by urllib3.

Rules:

- Nothing else is ever asked for: no HeadBucket, GetBucketLocation, HEAD, or listing above the account's prefix. The export's policy
  denies them.
- Each read carries `If-Match` with the version's ETag, so that S3 itself refuses another version (412).
- Addresses and signatures: `s3_requests`. What answers mean: `s3_answers`, `s3_listing`.

Facts from Amazon's API reference (ListObjectsV2, GetObject). No lock of its own.
"""

import time
from collections.abc import Callable
from urllib.parse import quote

from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import AwsCredential, CredentialSource
from optfs.errors import OptfsError
from optfs.stores.counters import StoreCounters
from optfs.stores.entries import check_below, check_page
from optfs.stores.protocol import Progress
from optfs.stores.ranges import range_header
from optfs.stores.s3_answers import check_read, failure
from optfs.stores.s3_listing import PAGE_LIMIT, parse_listing
from optfs.stores.s3_requests import PAGE_KEYS, Signer, address, current_credential
from optfs.stores.transport import Transport
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo, encode_name


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
            timeout: `--timeout`, seconds; see `Receiver`.
            user_agent: the User-Agent header.
            wall_clock: seconds since the epoch, for signatures.

        Raises:
            ConfigError: the endpoint's URL is unusable.

        """
        self._root = root
        self._source = source
        self._signer = Signer(wall_clock)
        self._base, self._path, _ = address(root, endpoint_url)
        self._transport = Transport(self._base, timeout=timeout, user_agent=user_agent, counters=counters)

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`."""
        check_below(self._root, prefix)
        query = {"encoding-type": "url", "list-type": "2", "max-keys": str(PAGE_KEYS), "prefix": prefix}
        if delimiter is not None:
            query["delimiter"] = delimiter
        if continuation is not None:
            query["continuation-token"] = continuation
        credential = current_credential(self._source, deadline)
        target = f"{self._path or '/'}?" + "&".join(f"{name}={_encode(value)}" for name, value in sorted(query.items()))
        response = self._transport.get("list", target, self._signer.signed(self._base + target, {}, credential), deadline)
        if response.status != 200:
            raise self._failure(response, credential, deadline, None)
        return check_page(parse_listing(self._transport.body(response, PAGE_LIMIT, deadline)), prefix, "S3")

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        credential = current_credential(self._source, deadline)
        target = f"{self._path}/{_encode(info.key, safe='/')}"
        asked = {"Range": range_header(start, len(buffer)), "If-Match": f'"{info.version}"', "Accept-Encoding": "identity"}
        response = self._transport.get("get", target, self._signer.signed(self._base + target, asked, credential), deadline)
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

    def _failure(self, response: BaseHTTPResponse, credential: AwsCredential, deadline: Deadline, info: ObjectInfo | None) -> OptfsError:
        body = self._transport.error_body(response, deadline)
        return failure(response.status, response.headers, body, root=self._root, credential=credential, signer=self._signer, info=info)


def _encode(text: str, safe: str = "") -> str:
    return quote(encode_name(text), safe=safe + "-_.~")
