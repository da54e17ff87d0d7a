"""Requests of the kernel and answers to it, with a socket in the kernel's place: both carry whole messages."""

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from optfs.bridge import loop
from optfs.bridge.callers import ThreadCaller
from optfs.bridge.loop import Give, Loop
from tests.support.reading import until

READ, INTERRUPT, LOOKUP = 15, 36, 1
SECONDS = 10.0


def _nothing(_handle: int, _size: int, _offset: int, give: Give) -> None:
    give([], 0)


class Kernel:
    """The other side."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours

    def ask(self, opcode: int, unique: int, body: bytes = b"", caller: int = 0) -> None:
        """Send a request."""
        self._socket.send(struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, 1, 0, 0, caller, 0) + body)

    def read(self, unique: int, handle: int, offset: int, size: int, caller: int = 0) -> None:
        """Send a request to read."""
        self.ask(READ, unique, struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0), caller)

    def answer(self) -> tuple[int, int, bytes]:
        """Return an answer's unique number, its error, and its bytes."""
        message = self._socket.recv(1 << 20)
        length, error, unique = struct.unpack_from("=IiQ", message)
        assert length == len(message)
        return unique, error, message[16:]


Serving = Callable[..., AbstractContextManager[tuple[Kernel, Loop]]]


@pytest.fixture
def serving() -> Serving:
    """Run a loop until the block's end, which then has ended without an error."""

    @contextmanager
    def run(
        read: Callable[[int, int, int, Give], None] = _nothing,
        pass_on: Callable[[int, int], bool] = lambda _address, _length: True,
        *,
        caller: ThreadCaller | None = None,
        errno_of: Callable[[BaseException], int] | None = None,
        most: int = 8,
        idle: int = 8,
    ) -> Iterator[tuple[Kernel, Loop]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(SECONDS)
        numbers: dict[type[BaseException], int] = {PermissionError: errno.EACCES, MemoryError: errno.ENOMEM}
        failed: list[BaseException] = []
        made = Loop(
            theirs.fileno(),
            caller or ThreadCaller(),
            pass_on,
            read,
            errno_of or (lambda error: numbers.get(type(error), errno.EIO)),
            most=most,
            idle=idle,
        )

        def main() -> None:
            try:
                made.run()
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=main)
        thread.start()
        try:
            with ours, theirs:
                try:
                    yield Kernel(ours), made
                finally:
                    made.leave()
                    thread.join(SECONDS)
                    assert not thread.is_alive()
        finally:
            assert [error.args[0] for error in failed] == []

    return run


def test_a_read_is_answered_with_the_bytes_that_are_given(serving: Serving) -> None:
    """Whatever number of pieces they come in, none included."""
    pieces = {0: [b"abc", b"defg"], 7: [b"h"], 8: []}

    def read(handle: int, size: int, offset: int, give: Give) -> None:
        assert (handle, size) == (2**63, 131072)
        views = [memoryview(piece) for piece in pieces[offset]]
        give(views, sum(map(len, views)))

    with serving(read) as (kernel, _):
        for unique, offset in enumerate(pieces):
            kernel.read(2**40 + unique, 2**63, offset, 131072)
            assert kernel.answer() == (2**40 + unique, 0, b"".join(pieces[offset]))


@pytest.mark.parametrize(("error", "number"), [(PermissionError(), errno.EACCES), (KeyboardInterrupt(), errno.EIO)], ids=repr)
def test_a_read_that_fails_is_answered_with_the_errno(error: BaseException, number: int, serving: Serving) -> None:
    """And the thread goes on."""

    def read(_handle: int, _size: int, _offset: int, _give: Give) -> None:
        raise error

    with serving(read) as (kernel, _):
        for unique in (1, 2):
            kernel.read(unique, 1, 0, 1)
            assert kernel.answer() == (unique, -number, b"")


def test_a_request_is_answered_as_soon_as_there_is_memory_for_it(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program could not even be killed otherwise."""
    tries: list[int] = []
    write = os.writev

    def lacking(connection: int, answer: list[bytes]) -> int:
        tries.append(1)
        if len(tries) < 4:
            raise MemoryError
        return write(connection, answer)

    with serving() as (kernel, _):
        monkeypatch.setattr(os, "writev", lacking)
        kernel.read(5, 1, 0, 1)
        assert kernel.answer() == (5, -errno.ENOMEM, b"")
        monkeypatch.undo()
    assert len(tries) == 4


@pytest.mark.parametrize("failing", ["result", "request", "log"])
def test_a_request_that_was_taken_is_answered_without_memory_for_its_own_numbers(
    failing: str, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it for the length that read(2) returns, for what is in the request, or for a line of the log."""
    take, lacking = loop._take, [1, 1, 1]

    def taken(*arguments: int) -> int:
        length = int(take(*arguments))
        if failing == "result" and lacking:
            lacking.pop()
            raise MemoryError
        return length

    class Request:
        size = loop._HEADER.size

        @staticmethod
        def unpack_from(buffer: mmap.mmap) -> tuple[int, ...]:
            if failing == "request" and lacking:
                lacking.pop()
                raise MemoryError
            return HEADER.unpack_from(buffer)

    def errno_of(error: BaseException) -> int:
        if failing == "log" and not isinstance(error, MemoryError):
            lacking.clear()
            raise MemoryError
        return errno.ENOMEM

    def read(_handle: int, _size: int, _offset: int, _give: Give) -> None:
        raise PermissionError

    HEADER = loop._HEADER  # noqa: N806 - the constant that is replaced
    monkeypatch.setattr(loop, "_take", taken)
    monkeypatch.setattr(loop, "_HEADER", Request)
    with serving(read, errno_of=errno_of) as (kernel, _):
        for unique in range(1, 5):
            kernel.read(unique, 1, 0, 1)
            assert kernel.answer() == (unique, -errno.ENOMEM, b"")
    assert not lacking


def test_an_answer_that_the_kernel_refuses_becomes_an_error(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it says that nobody waits for it any more."""
    write = os.writev
    refusals = [errno.ENOENT, errno.EINVAL]

    def refusing(connection: int, answer: list[bytes]) -> int:
        if refusals:
            number = refusals.pop(0)
            raise OSError(number, os.strerror(number))
        return write(connection, answer)

    with serving() as (kernel, _):
        monkeypatch.setattr(os, "writev", refusing)
        kernel.read(6, 1, 0, 1)
        until(lambda: len(refusals) == 1)
        kernel.read(7, 1, 0, 1)
        assert kernel.answer() == (7, -errno.EIO, b"")
        monkeypatch.undo()


def test_signals_of_callers_are_not_listened_to(serving: Serving) -> None:
    """ENOSYS tells the kernel once, so that it says no more of them."""
    with serving() as (kernel, _):
        kernel.ask(INTERRUPT, 9, struct.pack("=Q", 8))
        assert kernel.answer() == (9, -errno.ENOSYS, b"")


def test_other_requests_are_passed_on_with_their_caller(serving: Serving) -> None:
    """As they came; reads tell theirs, too."""
    caller = ThreadCaller()
    seen: list[tuple[int, str, int]] = []

    def pass_on(address: int, length: int) -> bool:
        seen.append((length, ctypes.string_at(address + 40, length - 40).decode(), caller()))
        return True

    def read(_handle: int, _size: int, _offset: int, give: Give) -> None:
        seen.append((0, "", caller()))
        give([], 0)

    with serving(read, pass_on, caller=caller) as (kernel, _):
        kernel.ask(LOOKUP, 10, b"name\0", caller=1234)
        until(lambda: len(seen) == 1)
        kernel.read(11, 1, 0, 1, caller=77)
        assert kernel.answer()[0] == 11
    assert seen == [(45, "name\0", 1234), (0, "", 77)]
    assert caller() == 0


def test_what_libfuse_could_not_be_given_for_want_of_memory_is_given_again(serving: Serving) -> None:
    """It has not seen it, and somebody waits for its answer."""
    tries: list[int] = []

    def pass_on(_address: int, length: int) -> bool:
        tries.append(length)
        if len(tries) < 3:
            raise MemoryError
        return True

    with serving(pass_on=pass_on) as (kernel, _):
        kernel.ask(LOOKUP, 1, b"name\0")
        until(lambda: len(tries) == 3)
        kernel.read(2, 1, 0, 1)
        assert kernel.answer()[0] == 2
    assert tries == [45] * 3


def test_the_loop_ends_when_libfuse_does(serving: Serving) -> None:
    """As where it and the kernel don't understand each other; threads that wait for requests end, too."""
    with serving(pass_on=lambda _address, _length: False) as (kernel, made):
        kernel.read(1, 1, 0, 1)
        kernel.answer()
        kernel.ask(LOOKUP, 2, b"name\0")
        until(lambda: made._threads == 0)


def test_who_answers_when_the_loop_is_left_answers_to_the_end(serving: Serving) -> None:
    """Others, which wait for requests, end; `run` waits for the one."""
    asked, answer = threading.Event(), threading.Event()

    def read(_handle: int, _size: int, _offset: int, give: Give) -> None:
        asked.set()
        assert answer.wait(SECONDS)
        give([memoryview(b"late")], 4)

    with serving(read) as (kernel, made):
        kernel.read(1, 1, 0, 4)
        assert asked.wait(SECONDS)
        made.leave()
        until(lambda: made._threads == 1)
        answer.set()
        assert kernel.answer() == (1, 0, b"late")


def test_each_request_has_a_thread_up_to_a_limit(serving: Serving) -> None:
    """Beyond that requests wait; those who have nothing to do end, but for a few."""
    go = threading.Semaphore(0)
    under_way: set[int] = set()

    def read(handle: int, _size: int, _offset: int, give: Give) -> None:
        under_way.add(handle)
        assert go.acquire(timeout=SECONDS)
        give([], 0)

    with serving(read, most=5, idle=2) as (kernel, made):
        for unique in range(7):
            kernel.read(unique, unique, 0, 1)
        until(lambda: len(under_way) == 5)
        assert made._threads == 5
        go.release(7)
        assert {kernel.answer()[0] for _ in range(7)} == set(range(7))
        until(lambda: made._threads == 2)
        kernel.read(8, 8, 0, 1)
        go.release()
        assert kernel.answer() == (8, 0, b"")


def test_a_thread_that_there_is_no_memory_for_is_started_once_there_is(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile those that there are do the work; nobody waits until one of them has nothing to do."""
    make, lacking = mmap.mmap, threading.Event()
    free, under_way = threading.Event(), threading.Semaphore(0)

    def mapping(*arguments: int, **options: int) -> object:
        if lacking.is_set():
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return make(*arguments, **options)

    def read(handle: int, _size: int, _offset: int, give: Give) -> None:
        if handle == 99:
            under_way.release()
            assert free.wait(SECONDS)
        give([], 0)

    with serving(read) as (kernel, made):
        monkeypatch.setattr(loop, "_RETRY_SECONDS", 0.01)
        kernel.read(1, 1, 0, 1)
        kernel.answer()
        until(lambda: (made._threads, made._busy) == (2, 0))
        monkeypatch.setattr(mmap, "mmap", mapping)
        lacking.set()
        for unique in (2, 3):
            kernel.read(unique, 99, 0, 1)
            assert under_way.acquire(timeout=SECONDS)
        kernel.read(4, 1, 0, 1)
        until(lambda: made._short)
        lacking.clear()
        assert kernel.answer() == (4, 0, b"")
        free.set()
        assert {kernel.answer()[0] for _ in range(2)} == {2, 3}


def test_threads_that_end_at_once_leave_as_many_as_are_wanted(serving: Serving) -> None:
    """Were each to count itself out later than it looked, all would go."""
    go, under_way = threading.Event(), threading.Semaphore(0)

    def read(handle: int, _size: int, _offset: int, give: Give) -> None:
        under_way.release()
        assert go.wait(SECONDS)
        give([], 0)

    with serving(read, most=64, idle=2) as (kernel, made):
        for _ in range(5):
            for unique in range(40):
                kernel.read(unique, unique, 0, 1)
                assert under_way.acquire(timeout=SECONDS)
            go.set()
            assert {kernel.answer()[0] for _ in range(40)} == set(range(40))
            until(lambda: made._busy == 0)
            assert made._threads == 2
            go.clear()


def test_the_loop_ends_though_there_is_no_memory_for_a_while(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not return while somebody may still use the connection."""
    kill, lacking = signal.pthread_kill, [1, 1, 1]

    def failing(thread: int, number: int) -> None:
        if lacking:
            lacking.pop()
            raise MemoryError
        kill(thread, number)

    with serving() as (kernel, made):
        kernel.read(1, 1, 0, 1)
        kernel.answer()
        monkeypatch.setattr(signal, "pthread_kill", failing)
        made.leave()
        until(lambda: made._threads == 0)
        monkeypatch.undo()
    assert not lacking


def test_no_signal_of_others_is_used_to_wake_threads(serving: Serving) -> None:
    """A program may have any handler, or none, for those: the default action of most would be its end."""
    taken = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with serving() as (kernel, _):
        kernel.read(1, 1, 0, 1)
        kernel.answer()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == taken
    assert loop.WAKE >= signal.SIGRTMIN


def test_requests_that_cannot_be_taken_end_the_loop_with_the_reason() -> None:
    """As with a descriptor that isn't the kernel's."""
    folder = os.open("/", os.O_RDONLY)
    try:
        made = Loop(folder, ThreadCaller(), lambda _address, _length: True, _nothing, lambda _error: errno.EIO, most=2, idle=2)
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            made.run()
    finally:
        os.close(folder)
