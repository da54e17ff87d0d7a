"""Amazon S3 by boto3's own client: what `s3` does, for networks that only the SDK gets through.

botocore's client makes the requests and parses the listings; its HTTP session sends. One hook, `before-send`, does the rest:

- It signs, by the code of the direct carrier: botocore's own signer, and its debug log after it, write the session token down.
- It refuses what the client would send on its own account (HeadBucket to look for a region, say), and any other server than the bucket's.
- It raises errors before botocore sees them, which would try again or look for the bucket elsewhere.

Nothing is read from ~/.aws, and no credential is looked for. Names in listings are decoded here, not by botocore, so that those that
aren't valid UTF-8 are kept. No lock of its own.
"""

import contextlib
import io
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore
import botocore.config
import botocore.session
import urllib3
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool, AWSPreparedRequest, AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError

from optfs.answers import with_answers
from optfs.credentials.protocol import AwsCredential, CredentialSource
from optfs.errors import OptfsError, ServiceError
from optfs.stores.counters import StoreCounters
from optfs.stores.entries import check_below, check_page
from optfs.stores.exchange import Exchange, Exchanges, Read, receive, unasked
from optfs.stores.network import find_proxy, safe_server, server, tls_context
from optfs.stores.protocol import Progress
from optfs.stores.ranges import range_header
from optfs.stores.receiver import Receiver
from optfs.stores.s3_answers import check_read, failure
from optfs.stores.s3_listing import PAGE_LIMIT, check_listing, from_parsed, incomplete, no_listing
from optfs.stores.s3_requests import PAGE_KEYS, REGION, Signer, address, current_credential
from optfs.stores.transport import CONNECTIONS
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo

_CLIENT = "boto3"
_EVENTS = {"list": "before-send.s3.ListObjectsV2", "get": "before-send.s3.GetObject"}
_NOT_FROM_HOME = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


class S3SdkStore:
    """One account's prefix of one bucket; implements `stores.protocol.Store`. Arguments and errors are those of `S3Store`."""

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
        self._root = root
        self._source = source
        self._counters = counters
        self._signer = Signer(wall_clock)
        where = address(root, endpoint_url)
        scheme, host, _ = self._server = safe_server(where.base)
        self._receiver = Receiver(host, timeout=timeout, counters=counters)
        self._exchanges: Exchanges[AwsCredential] = Exchanges()
        proxy = find_proxy(scheme, host)
        self._http = _Session(_Waits(self._exchanges), tls_context() if scheme == "https" else None, None if proxy is None else proxy.url)
        self._client = _client(where.service, user_agent, path_style=bool(where.path))
        self._client.meta.events.register("before-send.s3", self._send)

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`."""
        check_below(self._root, prefix)
        asked: dict[str, Any] = {"Prefix": _Name(prefix), "MaxKeys": PAGE_KEYS, "EncodingType": "url"}
        if delimiter is not None:
            asked["Delimiter"] = delimiter
        if continuation is not None:
            asked["ContinuationToken"] = continuation
        with self._exchanges.entered(self._exchange(deadline, None)), _told():
            try:
                parsed = self._client.list_objects_v2(Bucket=self._root.bucket, **asked)
            except ValueError as error:
                raise incomplete(error) from error
        return check_page(from_parsed(parsed), prefix, "S3")

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        with self._exchanges.entered(self._exchange(deadline, Read(info, start, buffer, progress))), _told():
            self._client.get_object(
                Bucket=self._root.bucket, Key=_Name(info.key), Range=range_header(start, len(buffer)), IfMatch=f'"{info.version}"'
            )

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()
        self._client.close()

    def _exchange(self, deadline: Deadline, read: Read | None) -> Exchange[AwsCredential]:
        return Exchange(current_credential(self._source, deadline), deadline, self._receiver.wait(deadline), read)

    def _send(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse:
        """Send a request of the client's; return its answer as the client is to see it."""
        exchange = self._exchanges.current(_CLIENT)
        if event_name != _EVENTS[exchange.kind] or server(request.url) != self._server:
            raise unasked(_CLIENT)
        prepared: Any = request.headers  # text, or ASCII as bytes
        headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in prepared.items()}
        headers.pop("x-amz-checksum-mode", None)  # a range has no checksum
        # A request of its own, as botocore's debug log has got hold of the client's. Streamed, so that the session leaves the body unread.
        signed: Any = self._signer.signed(request.url, headers, exchange.credential)
        sent = AWSPreparedRequest(request.method, request.url, signed, request.body, stream_output=True)
        self._counters.request(exchange.kind)
        try:
            answer = self._http.send(sent)
        except BotoCoreError as error:
            raise self._receiver.translate(error.kwargs.get("error", error), exchange.deadline) from error
        self._counters.status(answer.status_code)
        answer.raw.enforce_content_length = True  # botocore's session leaves that to its client
        body = receive(answer.raw, exchange, self._receiver, limit=PAGE_LIMIT, check_read=check_read, failure=self._failure)
        if exchange.read is None:
            check_listing(body)
        headers_aside: Any = {}  # nothing in them is wanted any more, and botocore stumbles over a bad Last-Modified
        return AWSResponse(request.url, answer.status_code, headers_aside, urllib3.HTTPResponse(io.BytesIO(body), preload_content=False))

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes, exchange: Exchange[AwsCredential]) -> OptfsError:
        info = None if exchange.read is None else exchange.read.info
        return failure(status, headers, body, root=self._root, credential=exchange.credential, signer=self._signer, info=info)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise what a failure of botocore's own means."""
    try:
        yield
    except (ResponseParserError, ClientError) as error:  # the latter: a listing that breaks off, which botocore takes for a failure of S3
        raise no_listing(repr(error)[:200]) from error
    except BotoCoreError as error:
        raise ServiceError("boto3 doesn't take a request; --carrier direct may help", detail=repr(error)[:200]) from error


class _Name(str):
    """A key that botocore encodes as it is, valid UTF-8 or not."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        """Return its bytes."""
        return super().encode(encoding, errors)


class _Waits(urllib3.Timeout):
    """How long the exchange under way may wait; urllib3 takes a clone for each request."""

    def __init__(self, exchanges: Exchanges[AwsCredential]) -> None:
        super().__init__()
        self._exchanges = exchanges

    def clone(self) -> urllib3.Timeout:
        """Return the waits of one request."""
        wait = self._exchanges.current(_CLIENT).wait
        return urllib3.Timeout(connect=wait, read=wait)


class _Session(URLLib3Session):
    """botocore's HTTP session, whose waits are each request's own, and which trusts what the direct carrier trusts."""

    def __init__(self, waits: _Waits, context: ssl.SSLContext | None, proxy: str | None) -> None:
        self._waits = waits
        self._context = context
        super().__init__(proxies={"https": proxy} if proxy else None, max_pool_connections=CONNECTIONS)
        self._pool_classes_by_scheme = {"http": with_answers(AWSHTTPConnectionPool), "https": with_answers(AWSHTTPSConnectionPool)}
        manager: urllib3.PoolManager = self._manager  # type: ignore[attr-defined]  # the stubs leave private attributes out
        manager.pool_classes_by_scheme = self._pool_classes_by_scheme

    def _get_pool_manager_kwargs(self, **extra: Any) -> dict[str, Any]:
        given = super()._get_pool_manager_kwargs(**extra)  # type: ignore[misc]  # the stubs leave private methods out
        return {**given, "timeout": self._waits, "ssl_context": self._context}

    def _setup_ssl_cert(self, conn: Any, url: str, verify: Any) -> None:  # noqa: ARG002 - the context knows what is trusted
        conn.cert_reqs = "CERT_REQUIRED"


def _client(endpoint_url: str, user_agent: str, *, path_style: bool) -> Any:
    config = botocore.config.Config(
        signature_version=botocore.UNSIGNED,  # the hook signs
        parameter_validation=False,  # what S3 refuses is S3's to say
        use_fips_endpoint=False,  # whatever the environment says: the endpoint is known
        use_dualstack_endpoint=False,
        user_agent=user_agent,
        retries={"total_max_attempts": 1, "mode": "standard"},
        defaults_mode="legacy",  # type: ignore[arg-type]  # the stubs are wrong: it is a mode's name. Another one may ask the instance's metadata for the region
        s3={"addressing_style": "path" if path_style else "virtual"},
    )
    session = botocore.session.Session(session_vars=_NOT_FROM_HOME)
    session.register_component("data_loader", Loader([Loader.BUILTIN_DATA_PATH], include_default_search_paths=False))
    return session.create_client("s3", region_name=REGION, endpoint_url=endpoint_url, verify=True, config=config)
