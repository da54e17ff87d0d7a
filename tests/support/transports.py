"""A transport to a server of the test, and what the server answers with."""

import socket

from optfs.stores.counters import StoreCounters
from optfs.stores.transport import Transport
from tests.support.faulty_server import answer
from tests.support.stores import deadline

BODY = bytes(range(256)) * 4096


def transport(url: str, *, timeout: float = 30.0) -> Transport:
    """Return a transport to a server."""
    return Transport(url, timeout=timeout, user_agent="optfs/test", counters=StoreCounters())


def fetch(to: Transport, size: int = len(BODY), *, seconds: float = 60.0) -> tuple[bytes, list[int]]:
    """Return a body and what progress told of it."""
    until = deadline(seconds)
    told: list[int] = []
    buffer = bytearray(size)
    to.fill(to.get("get", "/x", {}, until), memoryview(buffer), told.append, until)
    return bytes(buffer), told


class Exchange:
    """Answers with a body and keeps the connection."""

    def __init__(self, body: bytes = BODY) -> None:
        self.body = body

    def __call__(self, connection: socket.socket, head: bytes) -> bool:
        """Send it."""
        connection.sendall(answer(self.body))
        return True
