"""Asks once more while an answer is awaited, and takes the answer that comes first.

A connection that has died can't be told from a service that is slow: giving up soon would never get an answer from the one, waiting would
hear nothing on the other. So the former try goes on beside the new one.

Threads: `ask-api`, one for each try; those that aren't heard end with what they wait for. No lock: results pass through a queue.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from optfs.threads import StartedThread

Answer = TypeVar("Answer")

MOST_ASKING = 8
"""Tries under way, also those of earlier calls that aren't heard any more: nothing ends one that waits for a name server."""

_asking = threading.BoundedSemaphore(MOST_ASKING)


def first_answer(ask: Callable[[], Answer], *, every: float, within: float) -> Answer:
    """Return what the first of several calls of `ask` returns; one more is made each `every` seconds.

    Raises what the last one raised, when all that were made have failed; TimeoutError when `within` seconds are over; MemoryError when there
    is none for a first thread.
    """
    asking = _asking
    results: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
    running = 0
    now = due = time.monotonic()
    end = now + within
    while now < end:
        if now >= due:
            due = now + every
            if asking.acquire(timeout=0 if running else end - now):
                try:
                    StartedThread(partial(_run, ask, Future(), results, asking), "ask-api")
                    running += 1
                except (RuntimeError, MemoryError):
                    asking.release()
                    if not running:
                        raise MemoryError from None
            now = time.monotonic()
        with contextlib.suppress(queue.Empty):
            result = results.get(timeout=max(0.0, min(due, end) - now))
            running -= 1
            if result.exception() is None or not running:
                return result.result()
        now = time.monotonic()
    raise TimeoutError("no answer")


def _run(
    ask: Callable[[], Answer], result: "Future[Answer]", results: "queue.SimpleQueue[Future[Answer]]", asking: threading.Semaphore
) -> None:
    try:
        result.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        result.set_exception(error)
    finally:
        asking.release()
        results.put(result)
