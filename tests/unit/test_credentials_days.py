"""Renewal over hours and days, by a simulated clock that the renewal thread itself moves on."""

import logging
import random
import threading
from collections.abc import Callable

import pytest

from optfs.credentials.protocol import AwsCredential, GcpCredential, Grant
from optfs.credentials.renewal import RenewingSource
from optfs.errors import ServiceUnavailable
from optfs.values import AccountRoot, Provider

HOUR = 3600.0
EPOCH = 1_800_000_000.0
ROOT = AccountRoot("123", "aws", "optimizely-events-data", "v1/account_id=123/")
PATIENCE = 30.0  # seconds: how long a test waits for another thread on a loaded machine


class Simulation:
    """A source whose thread never sleeps: each wait moves the clock on instead."""

    def __init__(self, *, until: float, down: tuple[float, float] = (0.0, 0.0), provider: Provider = "aws", request: float = 0.5) -> None:
        """Describe it.

        Args:
            until: when it ends, seconds.
            down: from when to when the Authentication API fails.
            provider: AWS's credentials announce their expiry, GCS's don't.
            request: seconds that a request takes.

        """
        self.now = 0.0
        self.wall_offset = EPOCH
        self.until = until
        self.down = down
        self.request = request
        self.retry_after: float | None = None
        self.provider: Provider = provider
        self.asked: list[float] = []
        self.granted: list[float] = []
        self.unusable: list[float] = []
        self.at_each_step: Callable[[], None] = lambda: None
        self.ended = threading.Event()
        self.source = RenewingSource(
            provider,
            self._fetch,
            requested=HOUR,
            clock=lambda: self.now,
            wall_clock=lambda: self.now + self.wall_offset,
            dice=random.Random(1),
            wait=self._wait,
        )

    def run(self) -> None:
        """Live until the end."""
        self.source.start()
        assert self.ended.wait(60)
        self.source.close(PATIENCE)

    def _fetch(self) -> Grant:
        self.asked.append(self.now)
        asked_wall = self.now + self.wall_offset
        self.now += self.request
        if self.down[0] <= self.now < self.down[1]:
            raise ServiceUnavailable("the Authentication API is failing", retry_after=self.retry_after)
        self.granted.append(self.now)
        number = len(self.granted)
        if self.provider == "gcp":
            return Grant(ROOT, GcpCredential(f"secret-{number}", asked_wall + HOUR), announced=False)
        return Grant(ROOT, AwsCredential(f"key-{number}", "secret", "session", asked_wall + HOUR))

    def _wait(self, _: threading.Condition, seconds: float) -> None:
        """Called by the thread with the source's lock."""
        self.now += seconds
        if not self.source._usable(self.now):
            self.unusable.append(self.now)
        self.at_each_step()
        if self.now >= self.until:
            self.source._closed = True
            self.ended.set()


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_a_day_without_a_gap(provider: Provider) -> None:
    """Each renewal comes between 0.65 and 0.75 of the hour, and there is a usable credential at every second."""
    day = Simulation(until=24 * HOUR, provider=provider)
    day.run()
    assert len(day.granted) > 24
    ages = [later - earlier for earlier, later in zip(day.asked, day.asked[1:], strict=False)]
    assert all(0.65 * HOUR - 2 <= age <= 0.75 * HOUR + 2 for age in ages)
    assert len(set(ages)) > 10  # jitter
    assert day.unusable == []


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 11 * HOUR, -11 * HOUR])
def test_a_wall_clock_that_jumps_changes_nothing(jump: float) -> None:
    """Terms are measured on the monotonic clock."""
    day = Simulation(until=6 * HOUR)

    def step() -> None:
        day.wall_offset = EPOCH + (jump if 5000 < day.now < 12000 else 0)

    day.at_each_step = step
    day.run()
    ages = [later - earlier for earlier, later in zip(day.asked, day.asked[1:], strict=False)]
    assert all(0.65 * HOUR - 2 <= age <= 0.75 * HOUR + 2 for age in ages)
    assert day.unusable == []


def test_an_outage_within_the_lifetime_is_not_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """Tries go on, a minute apart at most; the log has one line when it begins to fail and one when it works again."""
    caplog.set_level(logging.INFO, "optfs")
    outage = Simulation(until=HOUR, down=(1.0, 3300.0))
    outage.run()
    assert outage.unusable == []
    assert 3300 <= outage.granted[1] <= 3300 + 62
    assert len(outage.asked) < 30
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("end", [3605.0, 3630.0, 3670.0, 9000.0])
def test_after_an_outage_beyond_the_expiry_work_goes_on_within_seconds(end: float) -> None:
    """Also where a long pause began while the credential still lived."""
    outage = Simulation(until=end + 60, down=(1.0, end))
    outage.run()
    assert outage.unusable[0] >= HOUR - 10
    assert end <= outage.granted[1] <= end + 5
    pauses = [later - earlier for earlier, later in zip(outage.asked, outage.asked[1:], strict=False)]
    assert min(pauses[1:]) >= 0.1


def test_a_pause_that_the_api_asks_for_is_granted_while_there_is_a_credential() -> None:
    """And no longer than there is one: then readers wait."""
    outage = Simulation(until=HOUR + 30, down=(1.0, HOUR + 20))
    outage.retry_after = 300.0
    outage.run()
    pauses = [later - earlier for earlier, later in zip(outage.asked[1:], outage.asked[2:], strict=False)]
    relaxed = [pause for pause, at in zip(pauses, outage.asked[1:], strict=False) if at < HOUR - 400]
    assert len(relaxed) >= 2
    assert all(300 <= pause <= 301 for pause in relaxed)
    assert HOUR + 20 <= outage.granted[1] <= HOUR + 25
