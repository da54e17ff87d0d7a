"""What happens to kept-alive connections and to bodies."""

import errno
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optfs.errors import DeadlineExceeded, InvalidResponse, OptfsError, ServiceUnavailable
from optfs.stores import receiver
from optfs.stores.counters import StoreCounters
from optfs.stores.receiver import GATHER, PIECE, NoDescriptor, Stalled
from optfs.stores.transport import Transport
from optfs.values import Deadline
from tests.support.certificates import certificate
from tests.support.faulty_server import FaultyServer, answer
from tests.support.stores import deadline
from tests.support.transports import BODY, Exchange, fetch, transport


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose certificate is trusted."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def hang_up(connection: socket.socket, head: bytes) -> bool:
    """Close the connection without an answer."""
    return False


def keep_silent(connection: socket.socket, head: bytes) -> bool:
    """Send nothing until the client leaves."""
    return bool(connection.recv(1))


def test_a_body_is_read_into_the_buffer_and_its_connection_used_again() -> None:
    """Progress grows to the whole length; five requests share one connection and carry the user agent."""
    with FaultyServer(Exchange()) as server:
        to = transport(server.url)
        for _ in range(5):
            body, told = fetch(to)
            assert body == BODY
            assert told == sorted(set(told))
            assert told[-1] == len(BODY)
        assert server.connections == 1
        assert all(b"\r\nUser-Agent: optfs/test" in head for head in server.requests)
        to.close()


def test_progress_is_told_as_bytes_arrive() -> None:
    """A reader who waits for the first bytes gets them while the rest is still on its way."""
    seen = threading.Event()

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(BODY)[:-1])
        assert seen.wait(30)
        connection.sendall(BODY[-1:])
        return True

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        until = deadline()
        buffer = bytearray(len(BODY))

        def progress(filled: int) -> None:
            if filled >= PIECE:
                seen.set()

        to.fill(to.get("get", "/x", {}, until), memoryview(buffer), progress, until)
        assert buffer == BODY
        to.close()


@pytest.mark.parametrize(("status", "waited"), [("400 Bad Request", True), ("403 Forbidden", True), ("500 Internal Server Error", False)])
def test_the_body_of_an_error_is_waited_for_where_it_decides(status: str, waited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired credential is told by a code, a busy service by the status: a body that trickles isn't worth all of the time."""
    monkeypatch.setattr(receiver, "ERROR_WAIT", 0.1)
    ended = threading.Event()

    def trickle(connection: socket.socket, head: bytes) -> bool:
        whole = answer(b"code", status=status)
        connection.sendall(whole[:-2])
        ended.wait(0.5)
        connection.sendall(whole[-2:])
        return True

    with FaultyServer(trickle) as server:
        to = transport(server.url)
        until = deadline(30)
        assert to.error_body(to.get("get", "/x", {}, until), until) == (b"code" if waited else b"")
        ended.set()


def test_bytes_are_told_of_as_they_come_by_a_clock_that_goes_back() -> None:
    """As one does that begins anew with each piece that has come: readers heard of the next bytes when it had caught up."""
    behind = 0.0
    told: list[float] = []

    def trickle(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(b"x" * 200)[:-200])
        for _ in range(20):
            connection.sendall(b"x" * 10)
            time.sleep(0.03)
        return True

    def progress(filled: int) -> None:
        nonlocal behind
        told.append(filled)
        if filled >= 50 and not behind:
            behind = 1000.0

    with FaultyServer(trickle) as server:
        to = transport(server.url)
        until = Deadline.after(lambda: time.monotonic() - behind, 60.0)
        to.fill(to.get("get", "/x", {}, until), memoryview(bytearray(200)), progress, until)
    assert len(told) > 10


@pytest.mark.parametrize("late", [False, True])
def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unseen(late: bool) -> None:
    """Closed while it was idle, or just as the next request came: a fresh connection, no error."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(b"ok"))
        if late:
            connection.recv(1, socket.MSG_PEEK)
        return False

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        for _ in range(4):
            assert fetch(to, 2)[0] == b"ok"
        assert server.connections == 4
        to.close()


def test_a_server_that_closes_every_connection_is_unavailable() -> None:
    """The repetition isn't repeated."""
    with FaultyServer(hang_up) as server:
        to = transport(server.url)
        with pytest.raises(ServiceUnavailable):
            fetch(to)
        assert server.connections == 2
        to.close()


def test_a_body_that_breaks_off_tells_how_far_it_came() -> None:
    """Progress has told every byte that arrived, and the broken connection isn't used again."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(BODY)[: -len(BODY) + 1000])
        return False

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        until = deadline()
        told: list[int] = []
        buffer = bytearray(len(BODY))
        response = to.get("get", "/x", {}, until)
        with pytest.raises(ServiceUnavailable):
            to.fill(response, memoryview(buffer), told.append, until)
        assert told[-1] == 1000
        assert buffer[:1000] == BODY[:1000]
        to.close()


def test_a_silent_connection_is_stalled_before_the_deadline() -> None:
    """After a third of --timeout, at least a second, so that there is time for another try."""
    with FaultyServer(keep_silent) as server:
        to = transport(server.url, timeout=3.0)
        with pytest.raises(Stalled):
            fetch(to)
        to.close()


def test_a_body_that_stalls_close_to_the_deadline_ends_with_it() -> None:
    """The wait for bytes is cut to what remains, also in the middle of a body."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(BODY)[:5000])
        return bool(connection.recv(1))

    with FaultyServer(exchange) as server:
        to = transport(server.url, timeout=300.0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            fetch(to, seconds=0.5)
        assert time.monotonic() - began < 30
        to.close()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("came", [PIECE + 100_000, GATHER])
@pytest.mark.parametrize(
    ("then", "timeout", "seconds", "kind"),
    [
        ("close", 30.0, 60.0, ServiceUnavailable),
        ("reset", 30.0, 60.0, ServiceUnavailable),
        ("silence", 3.0, 60.0, Stalled),
        ("silence", 300.0, 0.5, DeadlineExceeded),
    ],
)
def test_a_long_body_that_ends_while_it_is_gathered(
    then: str, timeout: float, seconds: float, kind: type[OptfsError], came: int, secure: bool, tls: ssl.SSLContext
) -> None:
    """All that came is told, and the rest isn't waited for any longer than that of a short one."""
    body = BODY * 2

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(body)[: -len(body) + came])
        if then == "silence":
            return bool(connection.recv(1))
        if then == "reset":
            assert all_told.wait(30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    all_told = threading.Event()
    told: list[int] = []
    buffer = bytearray(len(body))

    def progress(filled: int) -> None:
        told.append(filled)
        if filled == came:
            all_told.set()

    with FaultyServer(exchange, tls=tls if secure else None) as server:
        to = transport(server.url, timeout=timeout)
        until = deadline(seconds)
        with pytest.raises(kind):
            to.fill(to.get("get", "/x", {}, until), memoryview(buffer), progress, until)
        assert told == sorted(set(told))  # not again what was told when nothing comes
        assert told[-1] == came
        assert buffer[:came] == body[:came]
        to.close()


@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_that_gathered_a_body_is_waited_for_as_any_other(secure: bool, tls: ssl.SSLContext) -> None:
    """The socket's own timeout is that of gathering no more."""
    asked: list[bytes] = []

    def exchange(connection: socket.socket, head: bytes) -> bool:
        asked.append(head)
        return Exchange()(connection, head) if len(asked) == 1 else keep_silent(connection, head)

    with FaultyServer(exchange, tls=tls if secure else None) as server:
        to = transport(server.url, timeout=3.0)
        assert fetch(to)[0] == BODY
        with pytest.raises(Stalled):
            fetch(to)
        assert server.connections == 1
        to.close()


def test_bodies_over_tls_come_side_by_side_and_one_that_stalls_holds_up_no_other(tls: ssl.SSLContext) -> None:
    """Few threads at a time read records, and none of them waits meanwhile. What came before the stall is told at once."""
    stuck = threading.Event()

    def exchange(connection: socket.socket, head: bytes) -> bool:
        if b"/stuck" in head:
            connection.sendall(answer(BODY)[: -len(BODY) + PIECE + 5000])
            return bool(connection.recv(1))
        for start in range(0, len(answer(BODY)), 50_000):  # no whole records
            connection.sendall(answer(BODY)[start : start + 50_000])
        return True

    def progress(filled: int) -> None:
        if filled == PIECE + 5000:
            stuck.set()

    def hold(to: Transport) -> None:
        until = deadline()
        with pytest.raises(ServiceUnavailable):
            to.fill(to.get("get", "/stuck", {}, until), memoryview(bytearray(len(BODY))), progress, until)

    with FaultyServer(exchange, tls=tls) as server, ThreadPoolExecutor(9) as threads:
        to = transport(server.url, timeout=300.0)
        held = threads.submit(hold, to)
        assert stuck.wait(30)
        assert all(body == BODY for body, _ in threads.map(lambda _: fetch(to), range(32)))
        assert not held.done()
        server.disconnect()
        held.result()
        to.close()


def test_no_request_is_sent_when_no_time_is_left() -> None:
    """The deadline is looked at first."""
    with FaultyServer(Exchange()) as server:
        to = transport(server.url)
        with pytest.raises(DeadlineExceeded):
            to.get("get", "/x", {}, deadline(-1.0))
        assert server.requests == []
        to.close()


def test_an_endless_answer_is_cut_off() -> None:
    """A listing or an error has a length that makes sense."""
    with FaultyServer(Exchange(bytes(100_000))) as server:
        to = transport(server.url)
        until = deadline()
        with pytest.raises(InvalidResponse, match="more than 1000 bytes"):
            to.body(to.get("list", "/x", {}, until), 1000, until)
        to.close()


def test_an_answer_without_a_length_is_read_to_its_end() -> None:
    """S3 sends listings in chunks; the connection is kept."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n")
        return True

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        until = deadline()
        for _ in range(2):
            assert to.body(to.get("list", "/x", {}, until), 1000, until) == b"abcdefgh"
        assert server.connections == 1
        to.close()


def test_a_packed_answer_isnt_unpacked() -> None:
    """Bytes are those of the stored object, whatever its Content-Encoding says."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(answer(b"not gzip", head="Content-Encoding: gzip\r\n"))
        return True

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        assert fetch(to, 8)[0] == b"not gzip"
        to.close()


def test_what_answers_but_doesnt_speak_http_is_unavailable() -> None:
    """Not an exception of another kind."""

    def exchange(connection: socket.socket, head: bytes) -> bool:
        connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
        return False

    with FaultyServer(exchange) as server:
        to = transport(server.url)
        with pytest.raises(ServiceUnavailable):
            fetch(to)
        to.close()


def test_counters_tell_requests_answers_and_bytes() -> None:
    """Each by its kind."""
    counters = StoreCounters()
    with FaultyServer(Exchange()) as server:
        to = Transport(server.url, timeout=30.0, user_agent="x", counters=counters)
        fetch(to)
        until = deadline()
        to.body(to.get("list", "/x", {}, until), len(BODY), until)
        to.close()
    snapshot = counters.snapshot()
    assert snapshot.requests == {"get": 1, "list": 1}
    assert snapshot.statuses == {200: 2}
    assert snapshot.bytes_fetched == len(BODY)


def test_want_of_descriptors_is_told_apart_from_a_network_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is to check the network for it."""

    def none_left(*_arguments: object, **_options: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(NoDescriptor, match="ulimit -n"):
        fetch(transport("http://127.0.0.1:9"))
    monkeypatch.undo()
    with pytest.raises(ServiceUnavailable, match="check the network") as failed:
        fetch(transport("http://127.0.0.1:9"))
    assert not isinstance(failed.value, NoDescriptor)
