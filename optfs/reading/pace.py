"""How much may be on its way ahead of readers, by how long readers wait for bytes that are on their way. Pure.

What is fetched ahead shares the link with what a reader waits for. On one of 1 MB/s, 33 blocks took it in turns, and a stream had no MiB of its
own within `--timeout`.

Algorithm: there is no limit until a reader has waited `slow` seconds for bytes that came then. That halves what may be on its way, of what is or
of what might be, once in `slow` seconds at most; one block there always may be. As many bytes as are allowed, once they have landed without such
a wait, raise the limit by `least`. So a service that is slow by its latency or on each connection, where more at once is faster, isn't held back,
nor one that was silent for a while.
"""

import math


class Pace:
    """The limit for one service. Not locked.

    Attributes:
        allowed: bytes that may be on their way ahead of readers.

    """

    def __init__(self, slow: float, least: int) -> None:
        """Take waits of `slow` seconds for long, and allow `least` bytes always."""
        self.allowed = math.inf
        self._slow = slow
        self._least = least
        self._slowed_at = -math.inf

    def waited(self, seconds: float, now: float, flying: int) -> None:
        """Note how long a reader waited until its bytes had come, while `flying` bytes were on their way ahead of readers.

        None: it was held up by other readers.
        """
        if flying and seconds >= self._slow <= now - self._slowed_at:
            self._slowed_at = now
            self.allowed = max(self._least, min(self.allowed, flying) / 2)

    def landed(self, length: int, now: float) -> None:
        """Note that a fetch has brought its bytes."""
        if now - self._slowed_at >= self._slow:
            self.allowed += length * self._least / self.allowed
