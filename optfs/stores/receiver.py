"""The body of an answer, read straight into the caller's buffer or as a whole, with deadlines that hold. The same for every carrier.

Rules:

- A wait for bytes never outlives the deadline: the socket's timeout is at most what remains, and the deadline is looked at after each piece
  that arrives, so a body that trickles can't outlive it either.
- A connection on which nothing arrives for a third of `--timeout` (at least a second) counts as stalled (`Stalled`), so that a fresh one can
  be tried in time.
- A connection goes back to the pool only after its whole body was read.

Objects' bodies are read from the file below urllib3's response: its own `read1`, which listings and errors are read by, costs 2.3 times the CPU
over TLS, where data come in records of 16 KiB. Without TLS the kernel gathers what arrives of a long body (`MSG_WAITALL`), up to `GATHER` bytes
or `NEWS` seconds a call: Python's own way takes the interpreter lock twice for each 200 KiB, once to wait and once to read. Over TLS it is taken for
each record, and dozens of threads that do that at once mostly switch; so what has arrived is read by `TURNS` threads at a time, up to `PIECE` bytes
a turn.

Locks: `TURNS` is held over calls that don't block, and over nothing else.
"""

import errno
import http.client
import os
import socket
import ssl
import struct
import threading
from typing import Final

import urllib3.exceptions
from urllib3.response import BaseHTTPResponse

from optfs.errors import DeadlineExceeded, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress
from optfs.values import Deadline, KiB, MiB

PIECE = 256 * KiB  # beyond this, larger pieces cost no less CPU
GATHER = MiB  # eight streams through a mount: 778 MB/s and 3.3 s of CPU; with 256 KiB 717 and 3.6, not gathered 660 and 3.8
NEWS = 0.02  # seconds; on a slow link, where pieces are small, `progress` is told no more often, nor gathered longer
ERROR_BODY = 64 * KiB  # errors are a few hundred bytes; a proxy's page may have any length
ERROR_WAIT = 2.0  # seconds; what the status alone doesn't tell isn't worth all of `--timeout`
SHORTAGE_PAUSE = 0.1  # seconds until another request may have let go of a descriptor
SHORTEST_WAIT = 0.01  # seconds; a socket's timeout of 0 would mean "don't block"

_GATHER_TIME: Final = struct.pack("ll", 0, round(NEWS * 1_000_000))  # a timeval

TURNS: Final = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))
"""Who may read TLS records. With one at a time on two cores a GiB took 2.3 s of CPU, without turns 2.7, and half as many switches of threads."""

NETWORK_ERRORS: Final = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class Stalled(ServiceUnavailable):
    """Nothing arrived for a while: the server never answered, or stopped in the middle."""


class NoDescriptor(ServiceUnavailable):
    """The process may open no more files now. The service isn't to blame, and a descriptor is free as soon as another request has ended."""


class Receiver:
    """Reads the bodies of one server's answers. Any thread may call any method."""

    def __init__(self, host: str, *, timeout: float, counters: StoreCounters) -> None:
        """Prepare.

        Args:
            host: the server's name, for messages.
            timeout: `--timeout`, seconds; a third of it (at least a second) is how long a connection may be silent.
            counters: where bytes are counted.

        """
        self.host = host
        self._stall = max(timeout / 3, 1.0)
        self._counters = counters

    def wait(self, deadline: Deadline) -> float:
        """Return the seconds that a request may wait for a connection, and for the answer's headers.

        Raises:
            DeadlineExceeded: no time is left.

        """
        return min(deadline.check(f"a request to {self.host}"), self._stall)

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
        gathering = False
        try:
            while filled < size:
                self._bound_wait(body, deadline)
                dry = False
                if gathering:
                    view = buffer[filled : filled - filled % body.gathers + body.gathers]  # to where a request of the kernel ends
                    count = body.gather(view)
                    dry = count < len(view)
                    gathering = not dry
                else:
                    view = buffer[filled : filled + PIECE]
                    count = body.read_into(view)
                    if count == 0:
                        raise ServiceUnavailable(f"{self.host} closed a connection too early", detail=f"after {filled} of {size} bytes")
                    gathering = body.gathers > 0 and len(view) == PIECE
                filled += count
                now = deadline.clock()
                if filled > told and (dry or filled - told >= PIECE or now - told_at >= NEWS or (gathering and told == 0)):
                    told = filled
                    progress(filled)
                    told_at = deadline.clock()  # after that: `progress` may set it back
            body.end()
        except NETWORK_ERRORS as error:
            response.close()
            raise self.translate(error, deadline) from error
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
        except NETWORK_ERRORS as error:
            response.close()
            raise self.translate(error, deadline) from error
        except BaseException:
            response.close()
            raise
        return b"".join(parts)

    def error_body(self, response: BaseHTTPResponse, deadline: Deadline) -> bytes:
        """Return the body of an answer that tells of an error; empty when it can't be read, as the status says enough."""
        try:
            decides = response.status in {400, 401, 403}  # what is wrong with the credential, or the clock
            return self.body(response, ERROR_BODY, deadline if decides else deadline.sooner(ERROR_WAIT))
        except (ServiceError, DeadlineExceeded):
            return b""

    def translate(self, error: Exception, deadline: Deadline) -> OptfsError:
        """Return what a failure of the network means."""
        cause = f"{type(error).__name__}: {error}"
        if getattr(error.__cause__, "errno", None) in {errno.EMFILE, errno.ENFILE}:
            return NoDescriptor(
                "this process may open no more files; raise its limit (ulimit -n)", detail=cause, retry_after=SHORTAGE_PAUSE
            )
        if isinstance(error, urllib3.exceptions.NewConnectionError):  # before timeouts: urllib3 counts a refused connection as one
            return ServiceUnavailable(f"can't connect to {self.host}; check the network", detail=cause)
        if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
            if deadline.remaining() <= 0:
                return DeadlineExceeded(f"{self.host} didn't answer within --timeout", detail=cause)
            return Stalled(f"{self.host} doesn't answer; check the network, or try again later", detail=cause)
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            advice = "if a proxy replaces certificates, point AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE at its CA bundle"
            return ServiceError(f"the certificate of {self.host} can't be verified; {advice}", detail=cause)
        if isinstance(error, urllib3.exceptions.ProxyError):
            return ServiceUnavailable(f"can't reach {self.host} through the proxy; check HTTPS_PROXY and NO_PROXY", detail=cause)
        return ServiceUnavailable(f"the connection to {self.host} broke; check the network, or try again", detail=cause)

    def _bound_wait(self, body: "_Body", deadline: Deadline) -> None:
        left = deadline.check(f"reading from {self.host}")
        if left < self._stall:
            body.limit_wait(left)


class _Body:
    """The body of an answer, read below urllib3 where that is possible; see the module's docstring."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        self._response = response
        # urllib3's response holds http.client's, which holds a BufferedReader on the socket. Where they don't, `read1` does the job.
        self._message = getattr(response, "_fp", None)
        self._file = getattr(self._message, "fp", None) if not getattr(self._message, "chunked", True) else None
        self._socket: socket.socket | None = getattr(getattr(getattr(self._message, "fp", None), "raw", None), "_sock", None)
        self._patience = self._socket.gettimeout() if self._socket is not None else None
        self.gathers = 0
        """How much `gather` takes at once, bytes, after a `read_into` that had more room than the file's buffer: nothing is left in that then."""
        if self._file is not None and self._socket is not None:
            self.gathers = {socket.socket: GATHER, ssl.SSLSocket: PIECE}.get(type(self._socket), 0)  # not TLS within a proxy's TLS

    def read_into(self, view: memoryview) -> int:
        """Fill a part of `view` with what is there, waiting for at least one byte; return how many, 0 at the end."""
        self._wait_like_python()
        if self._file is not None:
            return int(self._file.readinto1(view))
        part = self._response.read1(len(view))
        view[: len(part)] = part
        return len(part)

    def gather(self, view: memoryview) -> int:
        """Fill `view`, or what has arrived of it, without TLS within `NEWS` seconds; return how many bytes. 0 doesn't tell that there is no more."""
        assert self._socket is not None
        if isinstance(self._socket, ssl.SSLSocket):
            return _read_records(self._socket, view)
        if self._socket.gettimeout() is not None:
            self._socket.settimeout(None)  # one with a timeout never waits in the kernel
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _GATHER_TIME)
        try:
            return self._socket.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:  # the time is over
            return 0

    def limit_wait(self, seconds: float) -> None:
        """Let the next wait for bytes last at most so long."""
        if self._socket is not None:
            self._socket.settimeout(max(seconds, SHORTEST_WAIT))
            self._patience = self._socket.gettimeout()  # rounded

    def _wait_like_python(self) -> None:
        if self._socket is not None and self._socket.gettimeout() != self._patience:
            self._socket.settimeout(self._patience)

    def end(self) -> None:
        """Give the connection back for the next request; the whole body has been read."""
        self._wait_like_python()
        if self._message is not None:
            self._message.close()
        self._response.release_conn()


def _read_records(sock: ssl.SSLSocket, view: memoryview) -> int:
    """Fill `view` with what has arrived; return how many bytes that was."""
    filled = 0
    sock.settimeout(0)
    with TURNS:
        try:
            while filled < len(view):
                count = sock.recv_into(view[filled:])
                if count == 0:
                    break
                filled += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
    return filled
