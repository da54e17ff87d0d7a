"""How many requests ahead of readers a service is sent at once, by how long readers wait for bytes that are on their way. Pure.

What is fetched ahead shares the link with what a reader waits for. On one of 1 MB/s, 33 blocks took it in turns, and a stream had no MiB of its
own within `--timeout`.

Algorithm: there is no limit but the pool's until a reader has waited long for bytes that came then: an eighth of `--timeout`. That halves how
many ran ahead when it began to wait, once in that time at most; one always may. As many requests as are allowed, once they have landed without
such a wait, allow one more: small ones count like others, or a folder of small files would be held back for long by one silence. So a service
that is slow by its latency or on each connection, where more at once is faster, isn't held back, nor one that was silent for a while. Nor is one
whose readers mostly wait for each other: with less ahead of them they would only need more memory at once.
"""

import math

SHARE = 1 / 8
LEAST = 0.5
"""Share of `--timeout`, and seconds at least, which a reader that has waited has waited long."""


class Pace:
    """The limit for one service. Not locked.

    Attributes:
        long: seconds which a reader that has waited has waited long.

    """

    def __init__(self, most: int, timeout: float) -> None:
        """Allow `most` requests until a reader waits long; `timeout`: seconds that it may wait at all."""
        self.long = max(LEAST, timeout * SHARE)
        self._most = most
        self._allowed = float(most)  # 1 to _most
        self._slowed_at = -math.inf

    @property
    def allowed(self) -> int:
        """How many requests ahead of readers may run at once."""
        return int(self._allowed)

    def waited_long(self, now: float, ahead: int, demanded: int) -> None:
        """Note that a reader's bytes have come after a long wait; as it began, so many requests ran that nobody, or somebody, had waited for."""
        if 0 < ahead >= demanded and now - self._slowed_at >= self.long:
            self._slowed_at = now
            self._allowed = max(1.0, min(self._allowed, ahead) / 2)

    def landed(self, now: float) -> None:
        """Note that a request has brought its bytes."""
        if now - self._slowed_at >= self.long:
            self._allowed = min(self._most, self._allowed + 1 / self._allowed)
