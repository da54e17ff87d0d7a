"""When to renew a credential. Pure: every moment is handed in.

Rules:

- A credential's lifetime is measured on the monotonic clock from when it was asked for, so that a wall clock that jumps changes nothing.
- It is renewed when a quarter of its lifetime is left, and up to a tenth of the lifetime earlier at random, so that many mounts don't ask
  at once.
- The announced lifetime is the announced expiry less the wall clock, but no more than was asked for: a wall clock that is slow makes it
  look longer than it is. Where none is left (a wall clock that is wrong), the lifetime asked for is taken.
- A credential that a store rejects before its time shows that the lifetime was guessed too long (GCS announces none): the age at which it
  was rejected is remembered and bounds later guesses (`Guess`). As a rejection may have had another reason, the bound triples once
  `TRUSTED` credentials in a row lived up to it, and only the renewal comes earlier: nobody waits for a credential that may well be good. What
  is rejected before it is `SHORTEST` old had another reason.
- After a failure the next try waits: shortly and at most `URGENT_CAP` seconds while there is no valid credential, so that work goes on
  within 5 s of the cause being gone; at most `RELAXED_CAP` while there is one.
"""

import math
from dataclasses import dataclass

RENEW_AT = 0.75
"""Share of the lifetime after which a credential is renewed."""
JITTER = 0.1
SHORTEST = 5.0
"""Seconds; no lifetime is believed to be shorter, lest a wrong answer makes a renewal a moment."""
TRUSTED = 8
"""Credentials: where the bound is right, one in nine is rejected; from the shortest bound the way back to an hour takes 48 renewals, 4 h at most."""
WIDEN = 3.0
FIRST_PAUSE = 0.25
URGENT_CAP = 3.0
RELAXED_CAP = 60.0
SAFETY = 2.0
"""Seconds (at most a tenth of the lifetime) before its end from which a credential isn't used: a request signed now must arrive in time."""


@dataclass(frozen=True, slots=True)
class Term:
    """The life of one credential, in seconds of the monotonic clock.

    Attributes:
        start: when it was asked for.
        renew_at: when to renew it.
        unusable_at: from when on it isn't used.

    """

    start: float
    renew_at: float
    unusable_at: float


@dataclass(frozen=True, slots=True)
class Guess:
    """A bound on lifetimes that were guessed, seconds, and how many credentials in a row have lived up to it."""

    bound: float
    proven: int = 0

    def rejected(self, age: float) -> "Guess":
        """Return the bound after a credential of that age was rejected."""
        return self if age < SHORTEST else Guess(min(self.bound, age))

    def lived(self) -> "Guess":
        """Return the bound after a credential lived until it was time to renew it."""
        return Guess(self.bound * WIDEN) if self.proven + 1 == TRUSTED else Guess(self.bound, self.proven + 1)


def lifetime(announced_expiry: float | None, wall_now: float, requested: float) -> float:
    """Return a credential's believed lifetime, seconds."""
    if announced_expiry is None:
        return requested
    announced = announced_expiry - wall_now
    return max(min(announced, requested), SHORTEST) if announced > 0 else requested


def term(start: float, seconds: float, luck: float, bound: float = math.inf) -> Term:
    """Return the life of a credential of so many seconds, or perhaps `bound`; `luck` is a random number of [0, 1)."""
    renew = min(seconds, bound) * (RENEW_AT - JITTER * luck)
    return Term(start, start + renew, start + seconds - min(SAFETY, seconds / 10))


@dataclass(frozen=True, slots=True)
class Setback:
    """Failures in a row.

    Attributes:
        count: how many.
        at: when the last one came, seconds of the monotonic clock.
        luck: a random number of [0, 1), drawn for this failure.
        asked: the pause that the service asked for, seconds; granted while there is a valid credential.

    """

    count: int
    at: float
    luck: float
    asked: float = 0.0

    def retry_at(self, usable_until: float) -> float:
        """Return when to try again.

        Args:
            usable_until: the moment from which there is no valid credential; one that lies in the past where there is none now. A long
                pause ends soon after it, even though it began before.

        """
        relaxed = self.at + max(self.asked, pause(self.count, usable=True, luck=self.luck))
        urgent = self.at + pause(self.count, usable=False, luck=self.luck)
        return min(relaxed, max(urgent, usable_until))


def pause(failures: int, *, usable: bool, luck: float) -> float:
    """Return how long to wait after so many failures in a row, seconds."""
    cap = RELAXED_CAP if usable else URGENT_CAP
    return float(min(cap, FIRST_PAUSE * 2 ** min(failures - 1, 10)) * (0.5 + luck / 2))
