"""Google Cloud Storage by google-cloud-storage's own client: what `gcs` does, for networks that only the SDK gets through.

The client makes the requests and reads the listings; requests, which it uses, sends. One hook, the session's adapter, does the rest:

- It adds the bearer token of the exchange, so that google-auth neither looks for a credential nor refreshes one.
- It refuses what the client would send on its own account (a bucket's metadata, say), and any other server than the endpoint.
- It raises errors before the client sees them, which would follow redirects.

Neither ~/.netrc, nor ~/.config/gcloud, nor a metadata server is looked at. No lock of its own.
"""

import io
import json
import ssl
import time
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import requests.adapters
import urllib3
import urllib3.exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Blob, Client

from optfs.answers import POOLS
from optfs.credentials.protocol import CredentialSource, GcpCredential
from optfs.errors import OptfsError
from optfs.stores.counters import RequestKind, StoreCounters
from optfs.stores.entries import check_below
from optfs.stores.exchange import Exchange, Exchanges, Read, receive, unasked
from optfs.stores.gcs import ENDPOINT, FIELDS, PAGE_LIMIT, PAGE_OBJECTS
from optfs.stores.gcs_answers import check_members, check_prefix, check_read, current_credential, failure, no_listing
from optfs.stores.network import find_proxy, safe_server, server, tls_context
from optfs.stores.protocol import Progress
from optfs.stores.receiver import NETWORK_ERRORS, Receiver
from optfs.stores.transport import CONNECTIONS
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo, encode_name

_CLIENT = "google-cloud-storage"


class GcsSdkStore:
    """One account's prefix of one bucket; implements `stores.protocol.Store`. Arguments and errors are those of `GcsStore`."""

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
        self._root = root
        self._source = source
        self._counters = counters
        self._wall_clock = wall_clock
        self._billed = bool(user_project)
        self._user_agent = user_agent
        base = (endpoint_url or ENDPOINT).rstrip("/")
        scheme, host, _ = self._server = safe_server(base)
        self._receiver = Receiver(host, timeout=timeout, counters=counters)
        self._exchanges: Exchanges[GcpCredential] = Exchanges()
        proxy = find_proxy(scheme, host)
        self._session = requests.Session()
        self._session.trust_env = False  # ~/.netrc, and what `network` has looked at
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.proxies = {} if proxy is None else {"https": proxy.url}
        adapter = _Adapter(self._send, tls_context() if scheme == "https" else None)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)  # both, so that nothing passes by the hook
        self._client = Client(project=None, credentials=AnonymousCredentials(), _http=self._session, client_options={"api_endpoint": base})
        self._bucket = self._client.bucket(root.bucket, user_project=user_project)

    @property
    def root(self) -> AccountRoot:
        """The bucket and the account's prefix."""
        return self._root

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Return one page; see `Store`."""
        check_below(self._root, prefix)
        exchange = self._exchange(deadline, None)
        with self._exchanges.entered(exchange):
            try:
                listing = self._client.list_blobs(
                    self._bucket,
                    prefix=encode_name(prefix),
                    delimiter=delimiter,
                    page_token=continuation,
                    page_size=PAGE_OBJECTS,
                    fields=FIELDS,
                    timeout=exchange.wait,
                    retry=None,
                )
                page = next(listing.pages)
                objects = tuple(_object(blob) for blob in page)
                prefixes = tuple(str(name) for name in page.prefixes)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise no_listing(error) from error
        return check_prefix(ListPage(objects, prefixes, listing.next_page_token or None), prefix)

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Fill `buffer`; see `Store`."""
        exchange = self._exchange(deadline, Read(info, start, buffer, progress))
        blob = _Object(info.key, self._bucket, generation=int(info.version))
        with self._exchanges.entered(exchange):
            blob.download_to_file(
                io.BytesIO(),  # stays empty: the hook fills the buffer
                start=start,
                end=start + len(buffer) - 1,
                raw_download=True,
                timeout=exchange.wait,
                checksum=None,
                retry=None,
            )

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def _exchange(self, deadline: Deadline, read: Read | None) -> Exchange[GcpCredential]:
        return Exchange(current_credential(self._source, deadline), deadline, self._receiver.wait(deadline), read)

    def _send(self, request: requests.PreparedRequest, send: Callable[[], requests.Response]) -> requests.Response:
        """Send a request of the client's by `send`; return its answer as the client is to see it."""
        exchange = self._exchanges.current(_CLIENT)
        url = request.url or ""
        if request.method != "GET" or server(url) != self._server or not self._is_wanted(urlsplit(url).path, exchange.kind):
            raise unasked(_CLIENT)
        request.headers["User-Agent"] = self._user_agent
        request.headers["Authorization"] = f"Bearer {exchange.credential.token}"
        if exchange.read is None:
            request.headers["Accept-Encoding"] = "identity"
        self._counters.request(exchange.kind)
        try:
            answer = send()
        except (requests.RequestException, *NETWORK_ERRORS) as error:
            raise self._receiver.translate(_cause(error), exchange.deadline) from error
        self._counters.status(answer.status_code)
        body = receive(answer.raw, exchange, self._receiver, limit=PAGE_LIMIT, check_read=check_read, failure=self._failure)
        if exchange.read is None:
            check_members(json.loads(body))
        answer.raw = urllib3.HTTPResponse(io.BytesIO(body), preload_content=False)
        return answer

    def _is_wanted(self, path: str, kind: RequestKind) -> bool:
        objects = f"/storage/v1{self._bucket.path}/o"
        return path == objects if kind == "list" else path.startswith(f"/download{objects}/")

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes, exchange: Exchange[GcpCredential]) -> OptfsError:
        return failure(
            status,
            headers,
            body,
            root=self._root,
            credential=exchange.credential,
            billed=self._billed,
            info=None if exchange.read is None else exchange.read.info,
            now=self._wall_clock(),
        )


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends what the hook lets through, once, and trusts what the direct carrier trusts."""

    def __init__(
        self, hook: Callable[[requests.PreparedRequest, Callable[[], requests.Response]], requests.Response], context: ssl.SSLContext | None
    ) -> None:
        super().__init__(pool_connections=1, pool_maxsize=CONNECTIONS, max_retries=urllib3.Retry(total=False))
        self._hook = hook
        self._context = context

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request; its body is left unread."""
        return self._hook(request, lambda: super(_Adapter, self).send(request, *arguments, **options))

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        """Return what a connection is chosen by."""
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context, "cert_reqs": "CERT_REQUIRED"}

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*arguments, **settings)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, *arguments: Any, **settings: Any) -> Any:
        """Make the pool of connections through a proxy."""
        manager = super().proxy_manager_for(*arguments, **settings)
        manager.pool_classes_by_scheme = POOLS
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:  # noqa: ARG002 - the context knows what is trusted
        """Demand a certificate."""
        conn.cert_reqs = "CERT_REQUIRED"


class _Object(Blob):  # type: ignore[misc]  # google-cloud-storage has no types here
    """A blob whose name may hold bytes that aren't UTF-8."""

    @property
    def path(self) -> str:
        """The path in the API."""
        return f"{self.bucket.path}/o/{quote(encode_name(self.name), safe='-_.~')}"


def _object(blob: Any) -> ObjectInfo:
    return ObjectInfo(blob.name, int(blob.size), blob.updated.timestamp(), str(int(blob.generation)), "gcp")


def _cause(error: Exception) -> Exception:
    """Return urllib3's own error below one of requests'."""
    cause = error.args[0] if isinstance(error, requests.RequestException) and error.args else error
    cause = getattr(cause, "reason", cause) if isinstance(cause, urllib3.exceptions.MaxRetryError) else cause
    return cause if isinstance(cause, Exception) else error
