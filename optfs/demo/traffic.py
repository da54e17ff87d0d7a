"""A request to an embedded service, its answer, and the log of all requests, which tests count.

Lock order: `RequestLog._changed` is a leaf.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from optfs.demo.objects import Content, FilePart

Service = Literal["api", "s3", "gcs"]
Kind = Literal["list", "get", "credentials", "other"]


@dataclass(slots=True)
class Request:
    """One request as it came.

    Attributes:
        path: decoded, without the query.
        raw_path: as it stands in the request line.
        query: decoded parameters; of repeated ones the last.
        raw_query: as it stands in the request line.
        headers: by lower-case name.
        kind: what it asks for; the service sets it.
        key: of a get the object's whole key, of a list its prefix; the service sets it.

    """

    service: Service
    method: str
    path: str
    raw_path: str
    query: dict[str, str]
    raw_query: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    kind: Kind = "other"
    key: str = ""

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


@dataclass(slots=True)
class Response:
    """An answer. Content-Length is added when it is sent, unless `headers` has one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Content = field(default_factory=lambda: memoryview(b""))

    def length(self) -> int:
        """Return the body's length, bytes."""
        return self.body.length if isinstance(self.body, FilePart) else len(self.body)


@dataclass(slots=True)
class Entry:
    """One request in the log.

    Attributes:
        key: of a get the object's whole key, of a list its prefix.
        range: the Range header, or None.
        status: of the answer; 0 while there is none, and when the connection was reset instead.
        time: when the request had arrived, seconds of the monotonic clock.

    """

    service: Service
    method: str
    path: str
    kind: Kind
    key: str
    range: str | None
    query: dict[str, str]
    time: float
    status: int = 0


class RequestLog:
    """Requests in order of their arrival; each is there before its answer is sent. Any thread may call any method."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[Entry] = []  # guarded by _changed

    def add(self, request: Request) -> Entry:
        """Write a request down and return its entry, whose status is set when it is known."""
        entry = Entry(
            service=request.service,
            method=request.method,
            path=request.path,
            kind=request.kind,
            key=request.key,
            range=request.range,
            query=request.query,
            time=time.monotonic(),
        )
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()
        return entry

    def clear(self) -> None:
        """Forget everything so far."""
        with self._changed:
            self._entries.clear()

    def count(self, kind: Kind | None = None) -> int:
        """Return how many requests of a kind (of any, without one) there were."""
        return len(self.entries(kind))

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """Return the entries of a kind (of any, without one)."""
        with self._changed:
            return [entry for entry in self._entries if kind is None or entry.kind == kind]

    def wait_for(self, condition: Callable[[list[Entry]], bool], timeout: float = 30.0) -> bool:
        """Wait until `condition` holds of the entries; return whether it does after at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._entries), timeout)
