"""A threaded HTTP/1.1 server on loopback with kept-alive connections, which the three embedded services share.

Algorithm: one thread accepts, one thread a connection reads requests and answers them in turn. A small answer leaves in one send with its
headers; a file goes by `sendfile`. With a rate, a body leaves in pieces, each when its time has come. Faults (`faults`) are applied here,
so that every service has all of them.

Rules: a request is in the log before anything is sent. Nothing waits longer than until `stop`: waits are on events that it sets, and
sends and receives end when it shuts the sockets down.

Lock order: `_lock` is a leaf.
"""

import contextlib
import fcntl
import logging
import math
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BufferedReader, FileIO
from typing import Protocol
from urllib.parse import unquote, unquote_plus

from optfs.demo.faults import Action, Delay, Fault, FaultPlan, Hints, Reset, Stall, Trickle, Truncate, distort, substitute
from optfs.demo.objects import FilePart
from optfs.demo.traffic import Entry, Request, RequestLog, Response, Service

logger = logging.getLogger(__name__)

SMALL = 64 * 1024  # bytes: up to here, copying a body behind its headers is cheaper than a second system call
PIECE = 64 * 1024  # bytes sent at once where a rate asks for pieces
PIECE_TIME = (
    0.003  # seconds; at a high rate a piece is what leaves in that time, or the server takes more CPU than what is measured with it
)


class Handler(Protocol):
    """One service."""

    service: Service

    def classify(self, request: Request) -> None:
        """Set the request's kind and key; must not fail whatever the request is."""
        ...

    def answer(self, request: Request) -> Response:
        """Return the proper answer."""
        ...


@dataclass(slots=True)
class Pace:
    """How slow the services are; tests change it while they run.

    Attributes:
        latency: seconds before the first byte of each answer to a list or a get.
        rate: bytes a second of each body, or None for no limit.

    """

    latency: float = 0.0
    rate: int | None = None


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    reader: BufferedReader
    thread: threading.Thread | None = field(default=None)


class _Hangup(Exception):
    """Ends a connection."""


class HttpServer:
    """One service at one port, which stays the same over `stop` and `start`."""

    def __init__(self, handler: Handler, log: RequestLog, faults: FaultPlan, pace: Pace) -> None:
        self._handler = handler
        self._log = log
        self._faults = faults
        self._pace = pace
        self._port = 0
        self._lock = threading.Lock()
        # Guarded by _lock: the open connections, and what listens. Invariant: once _stopping is set, no connection is added.
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; OSError when the port that was used before is taken."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(256)
        except OSError:
            listener.close()
            raise
        listener.settimeout(0.5)  # only where shutting it down doesn't end an accept (macOS)
        self._port = listener.getsockname()[1]
        self._stopping = threading.Event()
        self._listener = listener
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener, self._stopping), name=f"demo-{self._handler.service}", daemon=True
        )
        self._acceptor.start()

    def stop(self) -> None:
        """End all connections at once and refuse new ones; returns within two seconds."""
        self._stopping.set()
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener is not None:
            with contextlib.suppress(OSError):  # macOS: a listener is not connected
                listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            with contextlib.suppress(OSError):  # its thread was faster
                connection.socket.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + 1.5
        for thread in [self._acceptor, *(connection.thread for connection in connections)]:
            if thread is not None:
                thread.join(max(0.0, until - time.monotonic()))
        if listener is not None:
            listener.close()

    def _accept(self, listener: socket.socket, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:  # shut down
                return
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(sock, sock.makefile("rb"))
            connection.thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"demo-{self._handler.service}-c", daemon=True
            )
            with self._lock:
                refused = stopping.is_set()
                if not refused:
                    self._connections.add(connection)
                    connection.thread.start()  # under the lock, as `stop` may join only what has started
            if refused:
                _close(connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            while not self._stopping.is_set():
                request = self._receive(connection.reader)
                if request is None:
                    return
                self._handler.classify(request)
                self._exchange(connection.socket, request, self._log.add(request))
                if request.headers.get("connection", "").lower() == "close":
                    return
        except (_Hangup, OSError):  # the client left, or a fault or `stop` ended it
            return
        except Exception:  # a bug in a handler must show in a test, not end unseen with the thread
            logger.exception("an embedded service failed")
        finally:
            with self._lock:
                self._connections.discard(connection)
            _close(connection)

    def _receive(self, reader: BufferedReader) -> Request | None:
        """Read one request; None when the client has closed."""
        words = reader.readline(SMALL).decode("latin-1").split()
        if len(words) != 3:
            return None
        method, target, _ = words
        headers: dict[str, str] = {}
        while (line := reader.readline(SMALL).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", "0")))
        raw_path, _, raw_query = target.partition("?")
        query = {_decode(name): _decode(value) for name, _, value in (item.partition("=") for item in raw_query.split("&") if item)}
        path = unquote(raw_path, errors="surrogateescape")
        return Request(self._handler.service, method, path, raw_path, query, raw_query, headers, body)

    def _exchange(self, sock: socket.socket, request: Request, entry: Entry) -> None:
        fault = self._faults.take(request)
        action = fault.action if fault else None
        if fault is not None:
            self._before_headers(sock, fault)
        response = substitute(action) if action else None
        if response is None:
            response = self._handler.answer(request)
            if action is not None:
                proper = response
                response = distort(action, response, lambda: _content(proper))
        entry.status = response.status
        if (request.kind in {"list", "get"} or request.method == "HEAD") and self._pace.latency > 0:
            self._stopping.wait(self._pace.latency)
        self._send(sock, request, response, fault)

    def _before_headers(self, sock: socket.socket, fault: Fault) -> None:
        match fault.action:
            case Delay(seconds):
                self._hold(fault, seconds)
            case Hints(times):
                sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" * times)
                self._hold(fault, 0.05)
            case Trickle(pause):
                sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not fault.removed.is_set():
                    self._hold(fault, pause)
                    sock.sendall(b"x")
                raise _Hangup
            case Stall(None):
                self._hold(fault)
            case Reset(None):
                _reset(sock)
                raise _Hangup
            case _:
                pass

    def _hold(self, fault: Fault, seconds: float = math.inf) -> None:
        """Wait until a fault is removed, or for some seconds; ends the connection when the server stops."""
        until = time.monotonic() + seconds
        while not fault.removed.wait(min(0.02, max(0.0, until - time.monotonic()))):
            if self._stopping.is_set():
                raise _Hangup
            if time.monotonic() >= until:
                return

    def _send(self, sock: socket.socket, request: Request, response: Response, fault: Fault | None) -> None:
        length = response.length()
        headers = {"Server": "optfs-demo", "Content-Length": str(length), **response.headers}
        try:
            reason = HTTPStatus(response.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [f"HTTP/1.1 {response.status} {reason}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        if request.method == "HEAD" or length == 0:
            sock.sendall(head)
            return
        cut = _cut(fault.action if fault else None)
        if cut is None and isinstance(response.body, FilePart):
            sock.sendall(head, socket.MSG_MORE if hasattr(socket, "MSG_MORE") and self._pace.rate is None else 0)
            self._send_file(sock, response.body)
            return
        body = _content(response)
        if cut is None:
            self._send_body(sock, head, memoryview(body))
            return
        self._send_body(sock, head, memoryview(body)[:cut])
        assert fault is not None
        match fault.action:
            case Stall():
                self._hold(fault)
                sock.sendall(memoryview(body)[cut:])
            case Reset():
                _drain(sock)
                _reset(sock)
                raise _Hangup
            case _:
                raise _Hangup

    def _send_body(self, sock: socket.socket, head: bytes, body: memoryview) -> None:
        if len(body) <= SMALL and self._pace.rate is None:
            sock.sendall(head + bytes(body))
            return
        sock.sendall(head)
        for start, stop in self._paced(len(body)):
            sock.sendall(body[start:stop])

    def _send_file(self, sock: socket.socket, part: FilePart) -> None:
        with part.path.open("rb", buffering=0) as file:
            for start, stop in self._paced(part.length):
                _send_range(sock, file, part.start + start, part.start + stop)

    def _paced(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of a body, each when the rate lets its last byte go; all in one without a rate."""
        began = time.monotonic()
        rate = self._pace.rate
        piece = length if rate is None else max(PIECE, int(rate * PIECE_TIME))
        for start in range(0, length, piece):
            stop = min(start + piece, length)
            if rate is not None and self._stopping.wait(max(0.0, began + stop / rate - time.monotonic())):
                raise _Hangup
            yield start, stop


def _decode(text: str) -> str:
    return unquote_plus(text, errors="surrogateescape")


def _cut(action: Action | None) -> int | None:
    """Return after how many bytes of the body a fault strikes, or None."""
    match action:
        case Stall(after) | Reset(after) | Truncate(after):
            return after
        case _:
            return None


def _content(response: Response) -> bytes:
    body = response.body
    if isinstance(body, FilePart):
        with body.path.open("rb") as file:
            file.seek(body.start)
            return file.read(body.length)
    return bytes(body)


def _send_range(sock: socket.socket, file: FileIO, start: int, stop: int) -> None:
    if not hasattr(os, "sendfile"):
        sock.sendfile(file, start, stop - start)
        return
    while start < stop:
        count = os.sendfile(sock.fileno(), file.fileno(), start, stop - start)
        if count == 0:
            raise _Hangup
        start += count


def _drain(sock: socket.socket) -> None:
    """Wait until the client's system has all that was sent (at most a second): a reset throws away what is still on its way."""
    until = time.monotonic() + 1.0
    with contextlib.suppress(OSError):
        while time.monotonic() < until and struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
            time.sleep(0.001)


def _reset(sock: socket.socket) -> None:
    """Have the connection reset, not closed in order, when it is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _close(connection: _Connection) -> None:
    with contextlib.suppress(OSError):  # reset by the client
        connection.reader.close()
    connection.socket.close()
