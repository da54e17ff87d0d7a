"""Takes the kernel's requests: reads of files are answered from here, all others are given to libfuse 3.

libfuse copies what a handler returns into memory of its own, from which the kernel copies it once more. Here the kernel copies out of the blocks
that the reading layer holds: with eight streams a GiB takes 0.1 s of CPU less, and comes some 5 % faster.

Protocol (`include/uapi/linux/fuse.h`, fuse(4)): a read(2) of the connection takes one whole request, a writev(2) gives one whole answer;
numbers are the machine's own.

Rules:

- A request that was taken is answered, whatever is raised: whoever waits for one can't even be killed.
- The kernel's word that a caller got a signal (INTERRUPT) is refused, so that it says no more of them: see `callers` for what counts.
- The loop ends when the kernel closes the connection, when libfuse gives up, or when `leave` is called. `run` returns when no thread is left,
  whatever is raised: after that nobody may use the connection, whose number may be another file's by then. Threads that wait for a request
  are woken by a signal of our own, again and again, since one that comes just before read(2) is lost.

Threads: one is started when all others are busy, up to `most`, and ends when more than `idle` have nothing to do; for want of memory `run` tries
again. `leave` may be called by any.

Lock: `_lock` guards the fields below it; a leaf, but for signals sent under it. `run` reads without it what others ring
the bell for, and all read `_ending`, which is only ever set.
"""

import contextlib
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

_BUFFER = GREATEST + mmap.PAGESIZE  # the kernel refuses to write into less
_HEADER = struct.Struct("=IIQQIII")  # length, opcode, unique, node, uid, gid, pid
_READ = struct.Struct("=40xQQI")  # handle, offset, size
_GONE = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.EPERM, errno.EPIPE}
)  # the request, the connection, or what `Session._sever` puts in its place
_NO_LENGTH = bytes(4)
_ANSWER = struct.Struct("=IiQ")  # length, negative errno, unique
_OPCODE_READ = 15
_OPCODE_INTERRUPT = 36

_WAKE_SECONDS = 0.02  # between signals to threads that wait; where the connection is closed, they end by themselves
_SHORTAGE_PAUSE = 0.01  # seconds until there may be memory again
_RETRY_SECONDS = 1.0  # until a thread may be started that there was no memory for

WAKE = signal.SIGRTMIN + 3
"""Ends a thread's read(2), and means nothing else: neither a program that has no handler for SIGHUP nor one that ignores it makes a difference."""

_take = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, use_errno=True)(("read", ctypes.CDLL(None)))
"""read(2): unlike `os.read` it returns when a signal comes."""
_handle = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(("signal", ctypes.CDLL(None)))
_DO_NOTHING = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
"""A function of C that takes a number: a handler. Python's own can be set in the main thread only."""

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
            pass_on: has libfuse answer a request, of which it gets address and length; returns whether libfuse goes on. Raises MemoryError only
                before libfuse has seen it.
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
        self._bell = threading.Lock()  # held while there is nothing to do for `run`; unlike a condition it takes no memory
        self._bell.acquire()
        self._lock = threading.Lock()
        # Guarded by _lock: all below. Invariants: _busy <= _threads, which counts those that are being started, too; a thread in _waiting
        # (by number) isn't busy, and doesn't end before it took itself out.
        self._threads = 0
        self._busy = 0
        self._waiting: set[int] = set()
        self._short = False
        """Whether there was no memory for a thread that is wanted."""
        self._ending = False
        self._error: OSError | None = None

    def leave(self) -> None:
        """Ask the loop to end."""
        self._end(None)

    def run(self) -> None:
        """Serve until the end.

        Raises:
            OSError: requests can't be taken, or there is no memory for the first thread.
            RuntimeError, MemoryError: the same.

        """
        insist(_handle, WAKE, _DO_NOTHING)
        signal.siginterrupt(WAKE, True)
        self._start_thread()
        while not self._ending:
            self._bell.acquire(timeout=_RETRY_SECONDS if self._short else -1)
            if self._short and not self._ending:
                self._start_another()
        while self._threads:
            if not self._bell.acquire(timeout=_WAKE_SECONDS):
                insist(self._wake)
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        with self._lock:
            for thread in self._waiting:
                with contextlib.suppress(OSError):
                    signal.pthread_kill(thread, WAKE)

    def _ring(self) -> None:
        """Let `run` look; called with the lock."""
        if self._bell.locked():
            self._bell.release()

    def _end(self, error: OSError | None) -> None:
        with self._lock:
            if not self._ending:
                self._error = error
                self._ending = True
            self._ring()

    def _start_another(self) -> None:
        short = False
        try:
            self._start_thread()
        except (RuntimeError, OSError, MemoryError):
            short = True
        with self._lock:
            self._short = short
            if short:
                self._ring()

    def _start_thread(self) -> None:
        with self._lock:
            if self._threads >= self._most or self._busy < self._threads:
                return
            self._threads += 1
        try:
            buffer = mmap.mmap(-1, _BUFFER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without huge pages
                buffer.madvise(mmap.MADV_NOHUGEPAGE)  # else 64 threads take 64 MiB where all memory is to be huge
            StartedThread(lambda: self._serve(buffer), "fuse")
        except BaseException:
            insist(self._end_thread)
            raise

    def _end_thread(self) -> None:
        with self._lock:
            self._threads -= 1
            self._short = self._short or not self._threads
            self._ring()

    def _serve(self, buffer: mmap.mmap) -> None:
        me = threading.get_ident()
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        stays = True
        try:
            while stays and (length := self._next_request(me, buffer, address)):
                try:
                    if insist(self._begin):
                        self._start_another()
                    insist(self._answer, buffer, address, length)
                finally:
                    stays = insist(self._done)
        finally:
            if stays:
                insist(self._end_thread)

    def _begin(self) -> bool:
        """Return whether nobody is left to take the next request."""
        with self._lock:
            self._busy += 1
            return self._busy == self._threads

    def _done(self) -> bool:
        """Return whether this thread is to take another request; else it counts no more."""
        with self._lock:
            busy = self._busy - 1
            stays = self._threads - busy <= self._idle
            if not stays:
                self._threads -= 1
            self._busy = busy
            return stays

    def _next_request(self, me: int, buffer: mmap.mmap, address: int) -> int:
        """Return the length of the next request, which is in the buffer then; 0 at the end."""
        buffer[: len(_NO_LENGTH)] = _NO_LENGTH
        try:
            with self._lock:
                self._waiting.add(me)
            while not self._ending:
                try:
                    length = int(_take(self._connection, address, _BUFFER))
                except MemoryError:  # not even for the result; there may be a request now
                    length = insist(_length, buffer)
                    if not length:
                        time.sleep(_SHORTAGE_PAUSE)
                        continue
                if length >= _HEADER.size:
                    return length
                number = ctypes.get_errno() if length < 0 else errno.EIO
                if number not in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:  # ENOENT: a request that was given up before it was taken
                    insist(self._end_by, number)
            return 0
        finally:
            with self._lock:
                self._waiting.discard(me)

    def _end_by(self, number: int) -> None:
        # The connection is closed, or `Session._sever` has put something else in its place.
        self._end(None if number in {errno.ENODEV, errno.EBADF} else OSError(number, os.strerror(number)))

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
        insist(self._send_error, unique, number)

    def _send_error(self, unique: int, number: int) -> None:
        try:
            self._send([_ANSWER.pack(_ANSWER.size, -number, unique)])
        except OSError as error:
            with contextlib.suppress(MemoryError):
                logger.error("the kernel doesn't take an answer: %s", error.strerror)  # noqa: TRY400 - where it is raised says nothing

    def _send(self, answer: list[Any]) -> None:
        try:
            os.writev(self._connection, answer)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _length(buffer: mmap.mmap) -> int:
    return int(_HEADER.unpack_from(buffer)[0])


def insist(work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """Do what changes nothing before it has all memory that it needs, as soon as there is some."""
    while True:
        try:
            return work(*arguments)
        except MemoryError:
            time.sleep(_SHORTAGE_PAUSE)
