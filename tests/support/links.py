"""A link that is narrow: all connections to a server together get so many bytes a second."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

PIECE = 16 * 1024
BUFFER = 64 * 1024
"""Bytes that may wait in a socket: few, or what was sent ahead would be taken for what has come."""


class _Rate:
    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        """Wait until so many bytes are through."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            left = self._free_at - time.monotonic()
        if left > 0:
            time.sleep(left)


def _pump(source: socket.socket, to: socket.socket, rate: _Rate | None) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            if rate is not None:
                rate.wait(len(piece))
            to.sendall(piece)
    for end in (source, to):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def narrow_link(host: str, port: int, rate: float) -> Iterator[int]:
    """Give the port of a link to a server, whose answers come through at `rate` bytes a second in all."""
    shared = _Rate(rate)
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                server = socket.socket()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                server.connect((host, port))
                ends.extend((client, server))
                for source, to, limit in ((client, server, None), (server, client, shared)):
                    pump = threading.Thread(target=_pump, args=(source, to, limit), daemon=True)
                    threads.append(pump)
                    pump.start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            accepting.join(30)
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for pump in threads:
                pump.join(30)
            for end in ends:
                end.close()
