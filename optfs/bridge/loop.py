"""Takes the kernel's requests: reads of files are answered from here, all others are given to libfuse 3.

libfuse copies what a handler returns into memory of its own, from which the kernel copies it once more. Here the kernel copies out of the blocks
that the reading layer holds: with eight streams a GiB takes 0.1 s of CPU less, and comes some 5 % faster.

Protocol (`include/uapi/linux/fuse.h`, fuse(4)): a read(2) of the connection takes one whole request, a writev(2) gives one whole answer;
numbers are the machine's own.

Rules:

- A request that was taken is answered, whatever is raised: whoever waits for one can't even be killed.
- The kernel's word that a caller got a signal (INTERRUPT) is refused, so that it says no more of them: see `callers` for what counts.
- The loop ends when the kernel closes the connection, when libfuse gives up, or when `leave` is called; then `run` waits for those that still
  answer. Threads that wait for a request are woken by a signal, again and again, since one that comes just before read(2) is lost.

Threads: one is started when all others are busy, up to `most`, and ends when more than `idle` wait. `leave` may be called by any.

Lock: `_lock` (and `_changed`, a condition on it) guards the fields below it; a leaf, but for signals sent under it.
"""

import ctypes
import errno
import logging
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from optfs.bridge.callers import ThreadCaller
from optfs.threads import StartedThread
from optfs.values import MiB

logger = logging.getLogger(__name__)

GREATEST = MiB
"""The greatest request that libfuse 3 lets the kernel make, bytes; what is written to us could be as long, so buffers are."""

_BUFFER = GREATEST + mmap.PAGESIZE  # the kernel refuses to write into less; only what it writes takes memory
_HEADER = struct.Struct("=IIQQIII")  # length, opcode, unique, node, uid, gid, pid
_READ = struct.Struct("=40xQQI")  # handle, offset, size
_GONE = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.EPERM, errno.EPIPE}
)  # the request, the connection, or what `Session._sever` puts in its place
_NO_LENGTH = bytes(4)
_ANSWER = struct.Struct("=IiQ")  # length, negative errno, unique
_OPCODE_READ = 15
_OPCODE_INTERRUPT = 36

_WAKE_SECONDS = 0.02  # between signals to threads that wait
_SHORTAGE_PAUSE = 0.01  # seconds until there may be memory again

_take = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, use_errno=True)(("read", ctypes.CDLL(None)))
"""read(2): unlike `os.read` it returns when a signal comes."""

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

Give = Callable[[list[memoryview], int], object]
"""Is given bytes in pieces, and how many they are."""


class Loop:
    """The threads that serve one mount."""

    def __init__(
        self,
        connection: int,
        caller: ThreadCaller,
        pass_on: Callable[[int, int], bool],
        read: Callable[[int, int, int, Give], None],
        errno_of: Callable[[BaseException], int],
        *,
        most: int,
        idle: int,
    ) -> None:
        """Join the parts.

        Args:
            connection: the descriptor of `/dev/fuse`; stays open until `run` has returned.
            caller: is told, in the thread that answers, whose request it is.
            pass_on: has libfuse answer a request, of which it gets address and length; returns whether libfuse goes on.
            read: gives bytes of an open file; gets its handle, how many bytes are wanted from which offset, and where they go.
            errno_of: turns what `read` raises into an errno, and logs it.
            most: threads at most.
            idle: threads that stay when there is nothing to do.

        """
        self._connection = connection
        self._pass_on = pass_on
        self._read = read
        self._errno_of = errno_of
        self._most = most
        self._idle = idle
        self._caller = caller
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Guarded by _lock: all below. Invariants: _busy <= _threads, which counts those that are being started, too; a thread in _waiting
        # (by number) isn't busy, and doesn't end before it took itself out.
        self._threads = 0
        self._busy = 0
        self._waiting: set[int] = set()
        self._ending = False
        self._error: OSError | None = None

    def leave(self) -> None:
        """Ask the loop to end."""
        with self._lock:
            self._ending = True
            self._changed.notify_all()

    def run(self) -> None:
        """Serve until the end.

        Raises:
            OSError: requests can't be taken.
            RuntimeError, MemoryError: there is no memory for the first thread.

        """
        self._start_thread()
        with self._lock:
            while not self._ending:
                self._changed.wait()
            while self._threads:
                self._changed.wait(_WAKE_SECONDS)  # where the connection is closed, they end by themselves
                for thread in self._waiting:
                    signal.pthread_kill(thread, signal.SIGHUP)  # handled by us, or else by libfuse
            if self._error is not None:
                raise self._error

    def _start_thread(self) -> None:
        with self._lock:
            if self._threads >= self._most:
                return
            self._threads += 1
        try:
            StartedThread(self._serve, "fuse")
        except BaseException:
            self._end_thread()
            raise

    def _end_thread(self) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads and not self._ending:
                self._ending, self._error = True, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self._changed.notify_all()

    def _serve(self) -> None:
        try:
            self._serve_from(threading.get_ident(), mmap.mmap(-1, _BUFFER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except (OSError, MemoryError) as error:  # no memory for the buffer; others go on
            logger.debug("a thread less for requests: %s", error)
        finally:
            self._end_thread()

    def _serve_from(self, me: int, buffer: mmap.mmap) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        while True:
            with self._lock:
                self._waiting.add(me)
            buffer[: len(_NO_LENGTH)] = _NO_LENGTH
            length = self._next_request(buffer, address)
            with self._lock:
                self._waiting.discard(me)
                if not length:
                    break
                self._busy += 1
                alone = self._busy == self._threads
            if alone:
                self._start_another()
            try:
                _insist(self._answer, buffer, address, length)
            finally:
                with self._lock:
                    self._busy -= 1
                    enough = self._threads - self._busy > self._idle
            if enough:
                break

    def _start_another(self) -> None:
        try:
            self._start_thread()
        except (RuntimeError, MemoryError) as error:
            logger.debug("no thread more for requests: %s", error)

    def _next_request(self, buffer: mmap.mmap, address: int) -> int:
        """Return the length of the next request, which is in the buffer then; 0 at the end."""
        while not self._ending:
            try:
                length = int(_take(self._connection, address, _BUFFER))
            except MemoryError:  # not even for the result; there may be a request now
                length = _insist(_length, buffer)
                if not length:
                    time.sleep(_SHORTAGE_PAUSE)
                    continue
            if length >= _HEADER.size:
                return length
            number = ctypes.get_errno() if length < 0 else errno.EIO
            if number not in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:  # ENOENT: a request that was given up before it was taken
                self._end(None if number == errno.ENODEV else OSError(number, os.strerror(number)))
        return 0

    def _end(self, error: OSError | None) -> None:
        with self._lock:
            self._error = self._error or (None if self._ending else error)
            self._ending = True
            self._changed.notify_all()

    def _answer(self, buffer: mmap.mmap, address: int, length: int) -> None:
        _, opcode, unique, _, _, _, self._caller.number = _HEADER.unpack_from(buffer)
        if opcode == _OPCODE_READ:
            self._answer_read(unique, *_READ.unpack_from(buffer))
        elif opcode == _OPCODE_INTERRUPT:
            self._refuse(unique, errno.ENOSYS)
        elif not self._pass_on(address, length):
            self._end(None)

    def _answer_read(self, unique: int, handle: int, offset: int, size: int) -> None:
        def give(views: list[memoryview], length: int) -> None:
            self._send([_ANSWER.pack(_ANSWER.size + length, 0, unique), *views])

        try:
            self._read(handle, size, offset, give)
        except BaseException as error:  # noqa: BLE001 - a request without an answer hangs its program
            self._refuse(unique, self._number(error))

    def _number(self, error: BaseException) -> int:
        try:
            return self._errno_of(error)
        except BaseException:  # noqa: BLE001 - no memory for a line in the log
            return errno.ENOMEM

    def _refuse(self, unique: int, number: int) -> None:
        _insist(self._send_error, unique, number)

    def _send_error(self, unique: int, number: int) -> None:
        try:
            self._send([_ANSWER.pack(_ANSWER.size, -number, unique)])
        except OSError as error:
            logger.error("the kernel doesn't take an answer: %s", error.strerror)  # noqa: TRY400 - where it is raised says nothing

    def _send(self, answer: list[Any]) -> None:
        try:
            os.writev(self._connection, answer)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _length(buffer: mmap.mmap) -> int:
    return int(_HEADER.unpack_from(buffer)[0])


def _insist(work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """Do what changes nothing before it has all memory that it needs, as soon as there is some."""
    while True:
        try:
            return work(*arguments)
        except MemoryError:
            time.sleep(_SHORTAGE_PAUSE)
