"""Signals arrive as numbers, in order, and are given back."""

import os
import signal
import threading

from optfs.service.signals import WAKE, Signals


def test_signals_arrive_in_order() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(30) == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.wait(30) == [signal.SIGHUP]
        assert signals.wait(0) == []


def test_another_thread_can_wake_the_waiter() -> None:
    with Signals() as signals:
        waker = threading.Thread(target=signals.wake)
        waker.start()
        assert signals.wait(30) == [WAKE]
        waker.join()


def test_the_former_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
