"""HTTP for the stores: one pool of kept-alive connections to one host, bodies read straight into the caller's buffer, deadlines that hold.

Rules:

- A wait for the network never outlives the deadline: the socket's timeout is at most what remains, and the deadline is looked at after
  each piece that arrives, so a body that trickles can't outlive it either.
- A connection on which nothing arrives for a third of `--timeout` counts as stalled (`Stalled`), so that a fresh one can be tried in time.
- A kept-alive connection that the server closed while it was idle costs one repetition, at once, on a fresh connection.
- Redirects are answers like others; nothing follows them, since credentials mustn't go where a redirect points.
- A connection goes back to the pool only after its whole body was read.

urllib3 keeps the connections. Bodies are read from the file below urllib3's response: its own `read1` costs 2.3 times the CPU over TLS,
where data come in records of 16 KiB. `Transport` has no lock of its own; the pool's are urllib3's.
"""

import http.client
import ipaddress
import os
import queue
import ssl
import urllib.request
from urllib.parse import unquote, urlsplit

import urllib3
import urllib3.exceptions
from urllib3.response import BaseHTTPResponse

from optfs.errors import ConfigError, DeadlineExceeded, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import RequestKind, StoreCounters
from optfs.stores.protocol import Progress
from optfs.values import Deadline, KiB

CONNECTIONS = 32  # kept alive: the 24 threads that fetch, and some of libfuse's own
PIECE = 256 * KiB  # beyond this, larger pieces cost no less CPU
NEWS = 0.02  # seconds between two calls of `progress` on a slow link, where pieces are small
ERROR_BODY = 64 * KiB  # errors are a few hundred bytes; a proxy's page may have any length
SHORTEST_WAIT = 0.01  # seconds; a socket's timeout of 0 would mean "don't block"

_NETWORK_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class Stalled(ServiceUnavailable):
    """Nothing arrived for a while: the server never answered, or stopped in the middle."""


class Transport:
    """GET requests to one scheme, host and port. Any thread may call any method."""

    def __init__(self, base: str, *, timeout: float, user_agent: str, counters: StoreCounters) -> None:
        """Prepare for requests to `base`; nothing is sent.

        Args:
            base: scheme, host and port: `https://host[:port]`, or http on loopback.
            timeout: `--timeout`, seconds; a third of it (at least a second) is how long a connection may be silent.
            user_agent: the User-Agent header.
            counters: where requests, answers and bytes are counted.

        Raises:
            ConfigError: the URL, a proxy's or the CA bundle is unusable.

        """
        self._stall = max(timeout / 3, 1.0)
        self._counters = counters
        self._headers = {"User-Agent": user_agent}
        scheme, self.host, port = _parse(base)
        self._manager = _manager(scheme, self.host)
        self._pool = self._manager.connection_from_host(self.host, port, scheme)

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
        except _NETWORK_ERRORS as error:
            raise self._translate(error, deadline) from error

    def fill(self, response: BaseHTTPResponse, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Read a body that is announced to be `len(buffer)` bytes long into `buffer`.

        `progress` has told all that had arrived also when this raises.

        Raises:
            ServiceUnavailable: the body broke off; Stalled where it just stopped.
            DeadlineExceeded: it took too long.

        """
        filled = told = 0
        size = len(buffer)
        body = _Body(response)
        told_at = deadline.clock()
        try:
            while filled < size:
                self._bound_wait(body, deadline)
                count = body.read_into(buffer[filled : filled + PIECE])
                if count == 0:
                    raise ServiceUnavailable(f"{self.host} closed a connection too early", detail=f"after {filled} of {size} bytes")
                filled += count
                now = deadline.clock()
                if filled - told >= PIECE or now - told_at >= NEWS:
                    told, told_at = filled, now
                    progress(filled)
            body.end()
        except _NETWORK_ERRORS as error:
            response.close()
            raise self._translate(error, deadline) from error
        except BaseException:
            response.close()
            raise
        finally:
            self._counters.fetched(filled)
            if filled > told:
                progress(filled)

    def body(self, response: BaseHTTPResponse, limit: int, deadline: Deadline) -> bytes:
        """Return the whole body.

        Raises:
            InvalidResponse: it is longer than `limit` bytes.
            ServiceUnavailable: it broke off; Stalled where it just stopped.
            DeadlineExceeded: it took too long.

        """
        parts: list[bytes] = []
        length = 0
        body = _Body(response)
        try:
            while True:
                self._bound_wait(body, deadline)
                part = response.read1(PIECE)
                if not part:
                    break
                parts.append(part)
                length += len(part)
                if length > limit:
                    raise InvalidResponse(f"{self.host} sent an answer of more than {limit} bytes")
            response.release_conn()
        except _NETWORK_ERRORS as error:
            response.close()
            raise self._translate(error, deadline) from error
        except BaseException:
            response.close()
            raise
        return b"".join(parts)

    def error_body(self, response: BaseHTTPResponse, deadline: Deadline) -> bytes:
        """Return the body of an answer that tells of an error; empty when it can't be read, as the status says enough."""
        try:
            return self.body(response, ERROR_BODY, deadline)
        except (ServiceError, DeadlineExceeded):
            return b""

    def close(self) -> None:
        """Close idle connections."""
        self._manager.clear()

    def _send(self, kind: RequestKind, target: str, headers: dict[str, str], deadline: Deadline) -> BaseHTTPResponse:
        wait = min(deadline.check(f"a request to {self.host}"), self._stall)
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

    def _bound_wait(self, body: "_Body", deadline: Deadline) -> None:
        left = deadline.check(f"reading from {self.host}")
        if left < self._stall:
            body.limit_wait(left)

    def _translate(self, error: Exception, deadline: Deadline) -> OptfsError:
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
            if deadline.remaining() <= 0:
                return DeadlineExceeded(f"{self.host} didn't answer within --timeout", detail=cause)
            return Stalled(f"{self.host} doesn't answer", detail=cause)
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            advice = "if a proxy replaces certificates, point AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE at its CA bundle"
            return ServiceError(f"the certificate of {self.host} can't be verified; {advice}", detail=cause)
        if isinstance(error, urllib3.exceptions.ProxyError):
            return ServiceUnavailable(f"can't reach {self.host} through the proxy; check HTTPS_PROXY and NO_PROXY", detail=cause)
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return ServiceUnavailable(f"can't connect to {self.host}; check the network", detail=cause)
        return ServiceUnavailable(f"the connection to {self.host} broke", detail=cause)

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


class _Body:
    """The body of an answer, read below urllib3 where that is possible; see the module's docstring."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        self._response = response
        # urllib3's response holds http.client's, which holds a BufferedReader on the socket. Where they don't, `read1` does the job.
        self._message = getattr(response, "_fp", None)
        self._file = getattr(self._message, "fp", None) if not getattr(self._message, "chunked", True) else None
        self._socket = getattr(getattr(getattr(self._message, "fp", None), "raw", None), "_sock", None)

    def read_into(self, view: memoryview) -> int:
        """Fill a part of `view` with what is there, waiting for at least one byte; return how many, 0 at the end."""
        if self._file is not None:
            return int(self._file.readinto1(view))
        part = self._response.read1(len(view))
        view[: len(part)] = part
        return len(part)

    def limit_wait(self, seconds: float) -> None:
        """Let the next wait for bytes last at most so long."""
        if self._socket is not None:
            self._socket.settimeout(max(seconds, SHORTEST_WAIT))

    def end(self) -> None:
        """Give the connection back for the next request; the whole body has been read."""
        if self._message is not None:
            self._message.close()
        self._response.release_conn()


def is_loopback(host: str) -> bool:
    """Return whether a host is this computer by its very name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(base: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(base)
        port = parts.port
    except ValueError:
        raise ConfigError(f"not a URL: {base}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query or parts.username is not None:
        raise ConfigError("an endpoint's URL must be https://HOST[:PORT], or http://HOST[:PORT] on this computer")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(f"credentials aren't sent unencrypted to {parts.hostname}; use an https URL")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _manager(scheme: str, host: str) -> urllib3.PoolManager:
    """Return connections made directly, or through the proxy that the environment names. Plain http is loopback: never by proxy."""
    if scheme == "http":
        return urllib3.PoolManager(maxsize=CONNECTIONS, block=False)
    context = _tls_context()
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager(maxsize=CONNECTIONS, block=False, ssl_context=context)
    try:
        parsed = urllib3.util.parse_url(proxy if "://" in proxy else "http://" + proxy)
        login = urllib3.util.make_headers(proxy_basic_auth=unquote(parsed.auth)) if parsed.auth else None
        return urllib3.ProxyManager(
            parsed._replace(auth=None).url, maxsize=CONNECTIONS, block=False, ssl_context=context, proxy_headers=login
        )
    except (urllib3.exceptions.HTTPError, ValueError):
        raise ConfigError("the proxy's URL in HTTPS_PROXY can't be used; http://HOST:PORT is expected") from None


def _tls_context() -> ssl.SSLContext:
    """Return a context that trusts the bundle that the environment names, else the system's, else certifi's."""
    bundle = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")
    try:
        if bundle:
            folder = os.path.isdir(bundle)  # noqa: PTH112 - what it is decides how ssl wants it, nothing is opened
            return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
        context = ssl.create_default_context()
    except (OSError, ssl.SSLError):
        raise ConfigError(f"the CA bundle {bundle} can't be read; check AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE") from None
    if not context.cert_store_stats()["x509_ca"]:  # a system without certificates, or with a folder of them, read later
        import certifi  # noqa: PLC0415 - costs time, needed on few systems only

        context.load_verify_locations(certifi.where())
    return context
