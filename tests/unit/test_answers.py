"""Heads of answers: in time, and the final one's."""

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from optfs.answers import MOST_INTERIM, Answer

FINAL = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc"
HINTS = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end, with a timeout of half a second, and a server's."""
    client, server = socket.socketpair()
    with client, server:
        client.settimeout(0.5)
        yield client, server


@pytest.mark.parametrize(
    "before", [b"", HINTS, b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS, b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n", HINTS * MOST_INTERIM]
)
def test_an_answer_is_the_final_one(ends: tuple[socket.socket, socket.socket], before: bytes) -> None:
    client, server = ends
    server.sendall(before + FINAL)
    with Answer(client, method="GET") as answer:
        answer.begin()
        assert (answer.status, answer.headers.items(), answer.read()) == (206, [("Content-Length", "3")], b"abc")


@pytest.mark.parametrize("head", [HINTS * (MOST_INTERIM + 1), b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"nonsense\r\n\r\n"])
def test_what_never_comes_to_an_answer_fails(ends: tuple[socket.socket, socket.socket], head: bytes) -> None:
    client, server = ends
    server.sendall(head + FINAL)
    with Answer(client, method="GET") as answer, pytest.raises(http.client.HTTPException):
        answer.begin()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", HINTS])
def test_a_head_that_trickles_ends_after_the_sockets_timeout(ends: tuple[socket.socket, socket.socket], start: bytes) -> None:
    """Not that long after each byte; the timeout is the socket's own again for what follows."""
    client, server = ends
    ended = threading.Event()

    def trickle() -> None:
        server.sendall(start)
        while not ended.wait(0.05):
            server.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    try:
        with Answer(client, method="GET") as answer, pytest.raises(TimeoutError):
            answer.begin()
    finally:
        ended.set()
        thread.join()
    assert 0.4 < time.monotonic() - began < 5
    assert client.gettimeout() == 0.5


def test_the_body_is_read_from_the_socket_itself(ends: tuple[socket.socket, socket.socket]) -> None:
    """What bounds the head costs its pieces nothing."""
    client, server = ends
    server.sendall(FINAL)
    with Answer(client, method="GET") as answer:
        answer.begin()
        assert isinstance(answer.fp, io.BufferedReader)
        assert "readinto" not in vars(answer.fp.raw)
