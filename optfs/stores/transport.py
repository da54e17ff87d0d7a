"""The direct carrier: one pool of kept-alive connections of urllib3 to one host.

Rules:

- A kept-alive connection that the server closed while it was idle costs one repetition, at once, on a fresh connection.
- Redirects are answers like others; nothing follows them, since credentials mustn't go where a redirect points.
- How long is waited, and how bodies are read: `receiver`; heads: `optfs.answers`. Which servers, proxies and certificates: `network`.

`Transport` has no lock of its own; the pool's are urllib3's.
"""

import queue
from urllib.parse import unquote

import urllib3
import urllib3.exceptions
import urllib3.util
from urllib3.response import BaseHTTPResponse

from optfs.answers import POOLS
from optfs.stores.counters import RequestKind, StoreCounters
from optfs.stores.network import find_proxy, safe_server, tls_context
from optfs.stores.receiver import NETWORK_ERRORS, Receiver
from optfs.values import Deadline

CONNECTIONS = 48  # kept alive: the 36 threads that fetch, and some of those that list


class Transport(Receiver):
    """GET requests to one scheme, host and port. Any thread may call any method."""

    def __init__(self, base: str, *, timeout: float, user_agent: str, counters: StoreCounters) -> None:
        """Prepare for requests to `base`; nothing is sent.

        Args:
            base: scheme, host and port: `https://host[:port]`, or http on loopback.
            timeout: `--timeout`, seconds; see `Receiver`.
            user_agent: the User-Agent header.
            counters: where requests, answers and bytes are counted.

        Raises:
            ConfigError: the URL, a proxy's or the CA bundle is unusable.

        """
        scheme, host, port = safe_server(base)
        super().__init__(host, timeout=timeout, counters=counters)
        self._headers = {"User-Agent": user_agent}
        self._manager = _manager(scheme, host)
        self._pool = self._manager.connection_from_host(host, port, scheme)

    def get(self, kind: RequestKind, target: str, headers: dict[str, str], deadline: Deadline) -> BaseHTTPResponse:
        """Send one GET and return the answer, whatever its status, with its body unread.

        Args:
            kind: what to count it as.
            target: path and query, percent-encoded.
            headers: besides User-Agent and Host.
            deadline: for the answer's headers.

        Raises:
            ServiceUnavailable: no answer; Stalled where there was only silence.
            ServiceError: the server's certificate can't be verified.
            DeadlineExceeded: no time was left.

        """
        try:
            try:
                return self._send(kind, target, headers, deadline)
            except urllib3.exceptions.ProtocolError:
                # Most likely a kept-alive connection that the server closed as the request was on its way. All idle ones are as old.
                self._drop_idle()
                return self._send(kind, target, headers, deadline)
        except NETWORK_ERRORS as error:
            raise self.translate(error, deadline) from error

    def close(self) -> None:
        """Close idle connections."""
        self._manager.clear()

    def _send(self, kind: RequestKind, target: str, headers: dict[str, str], deadline: Deadline) -> BaseHTTPResponse:
        wait = self.wait(deadline)
        self._counters.request(kind)
        response = self._pool.urlopen(
            "GET",
            target,
            headers={**self._headers, **headers},
            timeout=urllib3.Timeout(connect=wait, read=wait),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )
        self._counters.status(response.status)
        return response

    def _drop_idle(self) -> None:
        """Close the connections that wait in the pool; it makes new ones as they are needed."""
        waiting = self._pool.pool
        while waiting is not None:
            try:
                connection = waiting.get(block=False)
            except queue.Empty:
                return
            if connection is not None:
                connection.close()


def _manager(scheme: str, host: str) -> urllib3.PoolManager:
    """Return connections made directly, or through the environment's proxy."""
    manager = _plain_manager(scheme, host)
    manager.pool_classes_by_scheme = POOLS
    return manager


def _plain_manager(scheme: str, host: str) -> urllib3.PoolManager:
    if scheme == "http":
        return urllib3.PoolManager(maxsize=CONNECTIONS, block=False)
    context = tls_context()
    proxy = find_proxy(scheme, host)
    if proxy is None:
        return urllib3.PoolManager(maxsize=CONNECTIONS, block=False, ssl_context=context)
    login = urllib3.util.make_headers(proxy_basic_auth=unquote(proxy.auth)) if proxy.auth else None
    return urllib3.ProxyManager(proxy._replace(auth=None).url, maxsize=CONNECTIONS, block=False, ssl_context=context, proxy_headers=login)
