"""A pool of threads that runs what somebody waits for before what may be wanted later.

Rules: a job is a callable without arguments that handles its own exceptions; one that doesn't is logged and costs nobody else anything.
Threads start as jobs come, up to `limit`, and never stop before `close`: whatever is raised, a thread goes on after `PAUSE`, and no job that
was queued is lost. Prefetch may occupy at most `limit - reserve` threads, or fewer where the owner says so (`limit_prefetch`): a reader's job
never waits for one prefetch after another to end.

Lock order: `_lock` is a leaf; no job runs, no thread is started, and no other lock is taken under it.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from optfs.threads import StartedThread

logger = logging.getLogger(__name__)

Job = Callable[[], None]

PAUSE = 0.2
"""Seconds that a thread rests which couldn't take a job, for want of memory: no busy loop, and jobs don't wait long for it."""


class Priority(Enum):
    """Who waits for a job."""

    DEMAND = 0
    """A reader waits."""
    PREFETCH = 1
    """Nobody waits yet."""


class WorkerPool:
    """Threads that share one kind of work; a mount has several pools."""

    def __init__(self, name: str, limit: int, *, reserve: int = 2) -> None:
        """Make a pool of up to `limit` threads, `reserve` of which run demanded jobs only."""
        if limit <= reserve:
            raise ValueError("a pool needs more threads than it reserves")
        self._name = name
        self._limit = limit
        self.most_prefetch = limit - reserve
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        # Guarded by _lock: all below. Invariants: len(_threads) + _starting <= _limit; no prefetch begins while _busy_prefetch >= _prefetch_limit,
        # which is <= most_prefetch.
        self._demand: deque[Job] = deque()
        self._prefetch: deque[Job] = deque()
        self._threads: list[StartedThread] = []
        self._starting = 0
        self._idle = 0
        self._busy_prefetch = 0
        self._prefetch_limit = self.most_prefetch
        self._closed = False

    def submit(self, job: Job, priority: Priority) -> bool:
        """Queue a job; return False when the pool is closed: it will not run.

        Raises:
            MemoryError: there is none for the pool's first thread; the job won't run either.

        """
        with self._lock:
            if self._closed:
                return False
            queue = self._demand if priority is Priority.DEMAND else self._prefetch
            queue.append(job)
            number = len(self._threads) + self._starting
            more = self._idle < len(self._demand) + len(self._prefetch) and number < self._limit
            self._starting += more
            self._wanted.notify()
        if more:
            self._start(job, queue, f"{self._name}-{number}")
        return True

    def _start(self, job: Job, queue: deque[Job], name: str) -> None:
        """Add a thread; where there is no memory for it, those that there are run the job."""
        thread = None
        try:
            thread = StartedThread(self._run, name)
        except (RuntimeError, MemoryError):
            pass
        finally:
            with self._lock:
                self._starting -= 1
                if thread is not None:
                    self._threads.append(thread)
                self._settled.notify_all()
                while self._starting and not self._threads:  # others' first threads may yet run the job
                    self._settled.wait()
                lost = not self._threads and job in queue
                if lost:
                    queue.remove(job)
        if lost:
            raise MemoryError

    def running(self) -> tuple[int, int]:
        """Return how many threads run prefetch, and how many run what was demanded when it began."""
        with self._lock:
            return self._busy_prefetch, max(0, len(self._threads) - self._idle - self._busy_prefetch)

    def limit_prefetch(self, limit: int) -> None:
        """Let prefetch occupy `limit` threads, at most `most_prefetch`, from now on; what runs goes on."""
        limit = min(limit, self.most_prefetch)
        if limit == self._prefetch_limit:  # the usual case; its setters are the owner's, one after the other
            return
        with self._lock:
            self._prefetch_limit = limit
            self._wanted.notify_all()

    def close(self, timeout: float) -> bool:
        """Drop queued jobs, let running ones end, and wait up to `timeout` seconds; return whether all threads have ended."""
        with self._lock:
            self._closed = True
            self._demand.clear()
            self._prefetch.clear()
            self._wanted.notify_all()
            threads = list(self._threads)
        until = time.monotonic() + timeout
        return all(thread.join(until - time.monotonic()) for thread in threads)

    def _next(self) -> tuple[Job, Priority] | None:
        with self._lock:
            self._idle += 1
            try:
                while True:
                    if self._demand:
                        taken = self._demand[0], Priority.DEMAND
                        self._demand.popleft()  # once there was memory for the pair
                        return taken
                    if self._prefetch and self._busy_prefetch < self._prefetch_limit:
                        taken = self._prefetch[0], Priority.PREFETCH
                        self._busy_prefetch += 1
                        self._prefetch.popleft()
                        return taken
                    if self._closed:
                        return None
                    self._wanted.wait()
            finally:
                self._idle -= 1

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._turn()
            except BaseException as error:  # others need the thread, and count on it
                if not isinstance(error, MemoryError):  # a report takes memory, too
                    with contextlib.suppress(BaseException):
                        logger.exception("a thread of the pool failed and goes on")
                time.sleep(PAUSE)

    def _turn(self) -> bool:
        """Wait for a job and run it; return False when the pool is closed."""
        taken = self._next()
        if taken is None:
            return False
        job, priority = taken
        try:
            job()
        except BaseException:  # also SystemExit, which Python's threads end by without a word
            logger.exception("a background job failed")
        finally:
            del job, taken  # an idle thread must not keep a job's buffers alive
            if priority is Priority.PREFETCH:
                with self._lock:
                    self._busy_prefetch -= 1
                    self._wanted.notify()
        return True
