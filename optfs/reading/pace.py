"""How much may be on its way ahead of readers: no more than the service has lately brought in a while. Pure.

What is fetched ahead shares the link with what a reader waits for. On one of 1 MB/s, 36 blocks took it in turns, and a stream had no MiB of its
own within `--timeout`; with as many bytes on their way as come in a few seconds, it waits no longer than those.

Algorithm: bytes and the time in which some were asked for, both fading with `MEMORY` seconds of such time, give the rate. Idle time doesn't
count. Until the first bytes come there is no limit, for `ENOUGH` seconds: a latency says nothing of the rate.
"""

import math

MEMORY = 3.0
"""Seconds."""

ENOUGH = 1.0
"""Seconds."""


class Pace:
    """The rate of one service. Not locked."""

    def __init__(self, reach: float, least: int) -> None:
        """Allow what comes in `reach` seconds, and `least` bytes always."""
        self._reach = reach
        self._least = least
        self._flying = 0
        self._at = 0.0
        self._busy = 0.0
        self._came = 0.0

    def began(self, now: float) -> None:
        """Note that a request was sent."""
        self._pass(now)
        self._flying += 1

    def ended(self, now: float) -> None:
        """Note that one has ended."""
        self._pass(now)
        self._flying -= 1

    def came(self, count: int) -> None:
        """Note bytes of a request that was sent."""
        self._came += count

    def allowed(self, now: float) -> float:
        """Return how many bytes may be on their way ahead of readers."""
        self._pass(now)
        if self._busy == 0 or (self._came == 0 and self._busy < ENOUGH):
            return math.inf
        return max(self._least, self._reach * self._came / self._busy)

    def _pass(self, now: float) -> None:
        """Let time pass."""
        if self._flying:
            passed = max(0.0, now - self._at)
            kept = math.exp(-passed / MEMORY)
            self._busy = self._busy * kept + passed
            self._came *= kept
        self._at = now
