"""Faults that tests install: rules that match requests, and what happens to those instead of the proper answer.

The first rule in the order of installing that matches and isn't used up applies, and no other.

Lock order: `FaultPlan._lock` is a leaf; a rule's `match` is called under it and must not call the plan.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from optfs.demo.traffic import Request, Response


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with this instead."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Html:
    """Answer as a captive portal does: a page of HTML with this status."""

    status: int = 200


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer with a redirection."""

    location: str
    status: int = 302


@dataclass(frozen=True, slots=True)
class WrongContentRange:
    """Send the proper body with a false Content-Range; with None, without one."""

    value: str | None = "bytes 7-8/9"


@dataclass(frozen=True, slots=True)
class WrongLength:
    """Send a whole answer whose body is `by` bytes longer (of zeros) or, negative, shorter than what was asked for."""

    by: int = -1


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip the first byte of the body."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait, then answer properly."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Send nothing more before the headers (None) or after so many bytes of the body, until the fault is removed or the server closes."""

    after: int | None = None


@dataclass(frozen=True, slots=True)
class Hints:
    """Send `103 Early Hints` so many times, wait a moment, then answer properly."""

    times: int = 1


@dataclass(frozen=True, slots=True)
class Trickle:
    """Send headers without end, a byte each `pause` seconds, until the client leaves or the fault is removed."""

    pause: float = 0.1


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection before the headers (None) or after so many bytes of the body."""

    after: int | None = None


@dataclass(frozen=True, slots=True)
class Truncate:
    """Close the connection in order after so many bytes of the body; Content-Length stays."""

    at: int


Action = Answer | Html | Redirect | WrongContentRange | WrongLength | Corrupt | Delay | Hints | Trickle | Stall | Reset | Truncate

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to the network.</body></html>"


class Fault:
    """One rule.

    Attributes:
        removed: set when the rule has been removed; ends stalls and delays.
        hits: how many requests it has applied to.

    """

    def __init__(self, match: Callable[[Request], bool], action: Action, times: int | None = None) -> None:
        """Apply `action` to the first `times` requests (None: to all) for which `match` is true."""
        self.match = match
        self.action = action
        self.times = times
        self.removed = threading.Event()
        self.hits = 0  # guarded by FaultPlan._lock


class FaultPlan:
    """The installed rules. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []  # guarded by _lock

    def add(self, fault: Fault) -> Fault:
        """Install a rule behind the others and return it."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a rule away, if it is still there; what it holds up goes on."""
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)
        fault.removed.set()

    def clear(self) -> None:
        """Take all rules away."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.removed.set()

    def take(self, request: Request) -> Fault | None:
        """Return the rule that applies to a request, and count it."""
        with self._lock:
            for fault in self._faults:
                if (fault.times is None or fault.hits < fault.times) and fault.match(request):
                    fault.hits += 1
                    return fault
        return None


def substitute(action: Action) -> Response | None:
    """Return what is answered without asking the service, or None."""
    match action:
        case Answer(status, body, headers):
            return Response(status, dict(headers), memoryview(body))
        case Html(status):
            return Response(status, {"Content-Type": "text/html"}, memoryview(HTML))
        case Redirect(location, status):
            return Response(status, {"Location": location})
        case _:
            return None


def distort(action: Action, response: Response, body: Callable[[], bytes]) -> Response:
    """Return the service's answer with a fault in it; `body` reads the proper one."""
    match action:
        case WrongContentRange(value):
            headers = {name: text for name, text in response.headers.items() if name != "Content-Range"}
            return replace(response, headers=headers if value is None else {**headers, "Content-Range": value})
        case WrongLength(by):
            proper = body()
            return replace(response, body=memoryview(proper + bytes(by) if by > 0 else proper[: len(proper) + by]))
        case Corrupt():
            proper = body()
            return replace(response, body=memoryview(bytes([proper[0] ^ 0xFF]) + proper[1:] if proper else proper))
        case _:
            return response
