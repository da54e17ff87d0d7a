"""One request that an SDK's client is about to send for a store, and what becomes of its answer.

The SDKs hand requests to a hook of ours without a word on what they are for: no deadline, no credential, no buffer. So each thread keeps
the `Exchange` that it is in, and the hook looks there. A request outside of any is none that a store asked for; hooks refuse it.

Errors are raised, listings read to their end, and buffers filled within the hook, by the code of the direct carrier: an SDK would look for
the bucket's region or refresh a credential on some errors, and neither bounds how long a body may take or how long it may be.
No lock: nothing is shared between threads.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from urllib3.response import BaseHTTPResponse

from optfs.credentials.protocol import Credential
from optfs.errors import OptfsError, ServiceError
from optfs.stores.counters import RequestKind
from optfs.stores.protocol import Progress
from optfs.stores.receiver import Receiver
from optfs.values import Deadline, ObjectInfo

Held = TypeVar("Held", bound=Credential)


@dataclass(frozen=True, slots=True)
class Read:
    """What a read wants; see `Store.read_into`."""

    info: ObjectInfo
    start: int
    buffer: memoryview
    progress: Progress


@dataclass(frozen=True, slots=True)
class Exchange(Generic[Held]):
    """One request.

    Attributes:
        credential: what it carries.
        wait: seconds that it may wait for a connection, and for the answer's headers.
        read: None: it is a listing.

    """

    credential: Held
    deadline: Deadline
    wait: float
    read: Read | None = None

    @property
    def kind(self) -> RequestKind:
        """What it counts as."""
        return "list" if self.read is None else "get"


class Exchanges(threading.local, Generic[Held]):
    """The exchange that the current thread is in."""

    _current: Exchange[Held] | None = None

    @contextlib.contextmanager
    def entered(self, exchange: Exchange[Held]) -> Iterator[None]:
        """Be in an exchange for the length of the block."""
        self._current = exchange
        try:
            yield
        finally:
            self._current = None

    def current(self, client: str) -> Exchange[Held]:
        """Return it.

        Raises:
            ServiceError: there is none, so that `client` is about to send something of its own.

        """
        if self._current is None:
            raise unasked(client)
        return self._current


def unasked(client: str) -> ServiceError:
    """Return the exception for a request that no store asked for."""
    return ServiceError(f"{client} was about to send a request that nobody asked for; nothing was sent")


def receive(
    response: BaseHTTPResponse,
    exchange: Exchange[Held],
    receiver: Receiver,
    *,
    limit: int,
    check_read: Callable[[int, Mapping[str, str], ObjectInfo, int, int], None],
    failure: Callable[[int, Mapping[str, str], bytes, Exchange[Held]], OptfsError],
) -> bytes:
    """Return a listing's whole body, or fill a read's buffer and return nothing.

    Args:
        response: the answer, its body unread.
        exchange: what was asked.
        receiver: reads bodies.
        limit: bytes that a listing may have.
        check_read: raises where the answer to a read can't be believed.
        failure: the exception for any other answer, from its status, headers and body.

    Raises:
        OptfsError: see `Store`.

    """
    read = exchange.read
    if response.status != 200 and (read is None or response.status != 206):
        raise failure(response.status, response.headers, receiver.error_body(response, exchange.deadline), exchange)
    if read is None:
        return receiver.body(response, limit, exchange.deadline)
    try:
        check_read(response.status, response.headers, read.info, read.start, len(read.buffer))
    except OptfsError:
        response.close()
        raise
    receiver.fill(response, read.buffer, read.progress, exchange.deadline)
    return b""
