"""A server that follows a script to the byte, for what a proper HTTP server wouldn't do to its clients."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Exchange = Callable[[socket.socket, bytes], bool]
"""Answers one request (its head is given); returns whether the connection goes on."""


def answer(body: bytes, *, status: str = "200 OK", head: str = "") -> bytes:
    """Return a whole answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


class FaultyServer:
    """Accepts connections on loopback; each request is answered by `exchange`, which may look at how many came before.

    Attributes:
        requests: the heads of all requests, in order; guarded by `_lock`, to be read when nothing is under way.
        connections: how many were accepted.

    """

    def __init__(self, exchange: Exchange, *, tls: ssl.SSLContext | None = None) -> None:
        self._exchange = exchange
        self._tls = tls
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []  # guarded by _lock
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)
        self.disconnect()

    def disconnect(self) -> None:
        """End all connections."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            with self._lock:
                self._open.append(connection)
                self.connections += 1
            with connection:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        held = b""
        while True:
            while b"\r\n\r\n" not in held:
                piece = connection.recv(65536)
                if not piece:
                    return
                held += piece
            head, _, held = held.partition(b"\r\n\r\n")
            with self._lock:
                self.requests.append(head)
            if not self._exchange(connection, head):
                return
