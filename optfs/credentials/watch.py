"""Ends one HTTP exchange from outside: when its time is over, when it was answered on another connection, or when the mount ends.

The timeouts of sockets bound each wait for bytes, not their sum: headers or a body that trickle could hold a thread for ever. `Watch` keeps
a duplicate of each socket that the exchange opens and shuts the connection down, which wakes a thread that waits in it, also below TLS. A
connection that was shut down looks ended by the peer; so `ended` must be asked before an answer is believed.

Lock: `_lock` guards the fields below it; it is a leaf.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, Self

import requests
import requests.adapters
import urllib3
import urllib3.connection

from optfs.answers import with_answers


class Watch:
    """A context manager around one exchange."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._lock = threading.Lock()
        # Guarded by _lock: both below.
        self._sockets: list[socket.socket] = []
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()  # what others still wait for
        with self._lock:
            for held in self._sockets:
                held.close()
            self._sockets.clear()

    @property
    def ended(self) -> bool:
        """Whether the exchange was ended from outside."""
        with self._lock:
            return self._ended

    def end(self) -> None:
        """Shut the exchange's connections down, and those that it still opens."""
        with self._lock:
            self._ended = True
            for held in self._sockets:
                _shut(held)

    def session(self) -> requests.Session:
        """Return a session whose connections are watched."""
        session = requests.Session()
        adapter = _WatchedAdapter(self)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def add(self, connected: socket.socket) -> None:
        """Watch a connection."""
        with self._lock:
            if self._ended:
                _shut(connected)
            else:
                self._sockets.append(connected.dup())


def _shut(held: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the peer may have ended it already
        held.shutdown(socket.SHUT_RDWR)


class _WatchedAdapter(requests.adapters.HTTPAdapter):
    """Makes connections that tell the watch of their sockets; the way through a proxy is the same."""

    def __init__(self, watch: Watch) -> None:
        class Plain(urllib3.connection.HTTPConnection):
            def _new_conn(self) -> socket.socket:
                connected = super()._new_conn()
                watch.add(connected)
                return connected

        class Secure(urllib3.connection.HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                connected = super()._new_conn()
                watch.add(connected)
                return connected

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self._pools = {"http": with_answers(PlainPool), "https": with_answers(SecurePool)}
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*arguments, **settings)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **settings: Any) -> Any:
        """Make the pool of connections through a proxy."""
        manager = super().proxy_manager_for(*arguments, **settings)
        manager.pool_classes_by_scheme = self._pools
        return manager
