"""A server on loopback that answers like the Authentication API, or as badly as a script tells it."""

import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

AWS_BODY: dict[str, object] = {
    "credentials": {"accessKeyId": "AKID", "secretAccessKey": "aws-secret", "sessionToken": "aws-session", "expiration": 1_800_000_000_000},
    "s3Path": "s3://optimizely-events-data/v1/account_id=123",
}
GCP_BODY: dict[str, object] = {"token": "gcp-secret", "uri": "gs://optimizely-e3-123"}

Answer = Callable[[socket.socket, threading.Event], None]
"""Writes to a connection; the event is set when the server ends."""


def answer(status: int, body: object, headers: dict[str, str] | None = None) -> Answer:
    """Answer with a status, a body (JSON unless it is bytes), and headers."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(raw)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return lambda connection, _: connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + raw)


def refusal(status: int, headers: dict[str, str] | None = None, message: str = "no") -> Answer:
    """Answer with an error as the API words it."""
    return answer(status, {"code": "SOME_CODE", "message": message, "messages": [message], "uuid": "uuid-1"}, headers)


def hang(_: socket.socket, ended: threading.Event) -> None:
    """Take the request and never answer."""
    ended.wait()


def reset(connection: socket.socket, _: threading.Event) -> None:
    """Break the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def trickle_headers(connection: socket.socket, ended: threading.Event) -> None:
    """Send headers byte by byte, without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not ended.wait(0.02):
        connection.sendall(b"x")


def trickle_body(connection: socket.socket, ended: threading.Event) -> None:
    """Send a body byte by byte that ends with the connection only."""
    connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"token": "')
    while not ended.wait(0.02):
        connection.sendall(b"x")


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came.

    Attributes:
        target: path and query.
        headers: by lower-case name.

    """

    target: str
    headers: dict[str, str]


@dataclass(slots=True)
class Script:
    """What the server does: `answers` in order, and the last one for ever."""

    answers: list[Answer]
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, seen: Seen) -> Answer:
        """Note a request and return what to do with it."""
        with self.lock:
            self.seen.append(seen)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, script: Script) -> None:
        self.script = script
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are what tests are about."""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        target = self.rfile.readline().decode("latin-1").split(" ")[1]
        headers = {}
        while (line := self.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        server.script.next(Seen(target, headers))(self.connection, server.ended)

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # reset by the client
            super().finish()


class StandIn:
    """A context manager: the server while it runs."""

    def __init__(self, *answers: Answer) -> None:
        self._script = Script(list(answers))
        self._server = _Server(self._script)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base URL to give to a client."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v2"

    @property
    def seen(self) -> list[Seen]:
        """The requests so far."""
        with self._script.lock:
            return list(self._script.seen)
