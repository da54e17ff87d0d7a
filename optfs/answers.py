"""Answers of HTTP, whose heads (status line and headers) come in time and are those of the final answers. For the stores and the Authentication API.

http.client leaves two gaps. A socket's timeout bounds each wait for bytes, so that a head that trickles would hold a thread as long as the
server likes. And of interim answers (RFC 9110, section 15.2) it skips `100 Continue` alone, in any number: `103 Early Hints` would be taken for
the answer, and the real one for that to the connection's next request.

Rule: all of a head comes within the socket's timeout. The clock is the socket's, not a deadline's. What a proxy answers to CONNECT is read by
http.client's own rules, within that timeout for each wait.
"""

import http.client
import socket
import time
from typing import Any, Final, TypeVar

import urllib3

MOST_INTERIM = 8
"""Interim answers before the final one. Servers send one or two."""


class Answer(http.client.HTTPResponse):
    """An answer whose head is read as the module's docstring says."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._connected = sock

    def begin(self) -> None:
        """Read the head.

        Raises:
            TimeoutError: it took longer than the socket's timeout.
            http.client.HTTPException: it is none.

        """
        raw = getattr(self.fp, "raw", None)
        patience = self._connected.gettimeout()
        if patience is None or not isinstance(raw, socket.SocketIO):  # the latter: what another library wraps
            super().begin()
            return
        end = time.monotonic() + patience
        read, waits = raw.readinto, 0

        def read_in_time(buffer: Any) -> int | None:
            nonlocal waits
            waits += 1
            if waits > 1:  # the first wait is bounded already; most heads come at once
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the head of an answer trickles")
                self._connected.settimeout(left)
            return read(buffer)

        raw.readinto = read_in_time  # type: ignore[assignment, method-assign]  # of this object alone: the body's pieces go without
        try:
            super().begin()
        finally:
            del raw.readinto
            if waits > 1:
                self._connected.settimeout(patience)

    def _read_status(self) -> tuple[str, int, str]:
        """Return version, status and reason of the final answer; http.client reads them by this."""
        for _ in range(MOST_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # the stubs leave it out
            if not 100 <= status < 200:
                return version, status, reason
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise http.client.UnknownProtocol("one that wasn't asked for")
            http.client.parse_headers(self.fp)
        raise http.client.BadStatusLine("interim answers without end")


Pool = TypeVar("Pool", bound=urllib3.HTTPConnectionPool)


def with_answers(pool: type[Pool]) -> type[Pool]:
    """Return a class of connection pools whose answers are `Answer`s."""
    connection: Any = type(pool.ConnectionCls.__name__, (pool.ConnectionCls,), {"response_class": Answer})
    made: type[Pool] = type(pool.__name__, (pool,), {"ConnectionCls": connection})
    return made


POOLS: Final = {"http": with_answers(urllib3.HTTPConnectionPool), "https": with_answers(urllib3.HTTPSConnectionPool)}
"""urllib3's own, by scheme, for `PoolManager.pool_classes_by_scheme`."""
