"""Retries: how many, how far apart, when none is made, what is raised and logged in the end. By a clock that is moved by hand."""

import logging
from collections.abc import Callable

import pytest

from optfs.credentials.protocol import GcpCredential
from optfs.errors import (
    Abandoned,
    AccessDenied,
    AccessError,
    DeadlineExceeded,
    InvalidResponse,
    OptfsError,
    ServiceError,
    ServiceUnavailable,
    VersionGone,
)
from optfs.stores.counters import StoreCounters
from optfs.stores.protocol import Progress
from optfs.stores.receiver import NoDescriptor, Stalled
from optfs.stores.rejection import RejectedCredential
from optfs.stores.retry import FIRST_PAUSE, INVALID_TRIES, TRIES, RetryingStore
from optfs.values import AccountRoot, Deadline, ListPage, ObjectInfo
from tests.support.stores import PREFIX, ROOTS, HeldSource

PAGE = ListPage((), (), None)
INFO = ObjectInfo(PREFIX + "p", 100, 0.0, "1", "gcp")
Step = OptfsError | int
"""An exception, or how many bytes arrive before the connection breaks; the end of the script: all is well."""


class Script:
    """A store that follows a script; time passes only in pauses and in the `cost` of each try."""

    def __init__(self, *steps: Step, cost: float = 0.0) -> None:
        self.steps = list(steps)
        self.cost = cost
        self.now = 1000.0
        self.pauses: list[float] = []
        self.asked: list[tuple[int, int]] = []
        self.tries = 0

    @property
    def root(self) -> AccountRoot:
        """Where the data would lie."""
        return ROOTS["gcp"]

    def list_page(self, prefix: str, *, delimiter: str | None, continuation: str | None, deadline: Deadline) -> ListPage:
        """Raise the next step, or return an empty page."""
        self._step()
        return PAGE

    def read_into(self, info: ObjectInfo, start: int, buffer: memoryview, progress: Progress, deadline: Deadline) -> None:
        """Deliver bytes that tell their position."""
        self.asked.append((start, len(buffer)))
        step = self._step()
        count = len(buffer) if step is None else step
        buffer[:count] = bytes(range(start, start + count))
        if count:
            progress(count)
        if step is not None:
            raise ServiceUnavailable("broke off")

    def close(self) -> None:
        """Do nothing."""

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds

    def _step(self) -> int | None:
        self.tries += 1
        self.now += self.cost
        if not self.steps:
            return None
        step = self.steps.pop(0)
        if isinstance(step, OptfsError):
            raise step
        return step


def ignore(filled: int) -> None:
    """Take progress."""


def wrap(script: Script, *, dice: Callable[[], float] = lambda: 1.0) -> tuple[RetryingStore, HeldSource, StoreCounters]:
    """Return a store that retries the script, its source and its counters."""
    made = iter(range(1000))
    source = HeldSource(script.root, lambda: GcpCredential(f"token {next(made)}", None))
    counters = StoreCounters()
    return RetryingStore(script, source, counters, pause=script.pause, dice=dice), source, counters


def listing(store: RetryingStore, script: Script, seconds: float = 1000.0) -> ListPage:
    """List with a deadline by the script's clock."""
    deadline = Deadline.after(lambda: script.now, seconds)
    return store.list_page(PREFIX, delimiter=None, continuation=None, deadline=deadline)


def test_pauses_double_up_to_a_bound() -> None:
    """With the largest luck each pause is its bound; the tries are limited."""
    script = Script(*[ServiceUnavailable("503") for _ in range(50)])
    store, _, counters = wrap(script)
    with pytest.raises(ServiceUnavailable):
        listing(store, script)
    assert script.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert script.tries == TRIES
    assert counters.snapshot().retries == TRIES - 1
    assert counters.snapshot().errors == 1


@pytest.mark.parametrize(("asked", "pause"), [(0.0, FIRST_PAUSE), (FIRST_PAUSE / 2, FIRST_PAUSE), (3.0, 3.0), (None, FIRST_PAUSE)])
def test_what_the_service_asks_for_makes_a_pause_longer_never_shorter(asked: float | None, pause: float) -> None:
    """Eight tries without a pause were over before any outage."""
    script = Script(ServiceUnavailable("busy", retry_after=asked))
    listing(wrap(script)[0], script)
    assert script.pauses == [pause]


def test_pauses_are_of_random_length() -> None:
    """Full jitter: clients that failed together don't come back together."""
    script = Script(ServiceUnavailable("503"), ServiceUnavailable("503"))
    luck = iter([0.25, 0.5])
    store, _, _ = wrap(script, dice=lambda: next(luck))
    assert listing(store, script) is PAGE
    assert script.pauses == pytest.approx([0.025, 0.1])


def test_want_of_descriptors_is_waited_out_until_the_deadline() -> None:
    """However often: it ends when requests of our own do."""
    script = Script(*[NoDescriptor("none left", retry_after=0.1) for _ in range(3 * TRIES)])
    store, _, _ = wrap(script)
    assert listing(store, script) is PAGE
    assert script.pauses == [0.1] * (3 * TRIES)
    script = Script(*[NoDescriptor("none left", retry_after=0.1) for _ in range(3 * TRIES)])
    store, _, _ = wrap(script)
    with pytest.raises(NoDescriptor):
        listing(store, script, 1.0)


def test_nonsense_is_tried_less_often() -> None:
    """A proxy's page doesn't go away by asking eight times."""
    script = Script(*[InvalidResponse("html") for _ in range(50)])
    store, _, _ = wrap(script)
    with pytest.raises(InvalidResponse):
        listing(store, script)
    assert script.tries == INVALID_TRIES


@pytest.mark.parametrize("error", [AccessDenied("403"), VersionGone("412"), ServiceError("301"), AccessError("no")], ids=repr)
def test_answers_are_not_tried_again(error: OptfsError) -> None:
    """What asking again can't change is raised as it is."""
    script = Script(error)
    store, _, _ = wrap(script)
    with pytest.raises(type(error)) as caught:
        listing(store, script)
    assert caught.value is error
    assert script.tries == 1


def test_a_try_that_the_deadline_would_cut_off_isnt_made() -> None:
    """The failure that the service told of is raised, not DeadlineExceeded, and before the deadline."""
    script = Script(*[ServiceUnavailable("503") for _ in range(50)])
    store, _, _ = wrap(script)
    with pytest.raises(ServiceUnavailable):
        listing(store, script, seconds=1.0)
    assert script.now <= 1001.0
    assert script.tries == 4


def test_a_failure_before_the_time_ran_out_says_more() -> None:
    """A service that failed and was then cut off by the deadline is told as failing."""
    script = Script(ServiceUnavailable("503"), DeadlineExceeded("late"))
    store, _, _ = wrap(script)
    with pytest.raises(ServiceUnavailable, match="503"):
        listing(store, script)


def test_silence_all_the_time_is_a_deadline_exceeded() -> None:
    """Stalled tries until no time is left."""
    script = Script(*[Stalled("silent") for _ in range(50)], cost=10.0)
    store, _, _ = wrap(script)
    with pytest.raises(DeadlineExceeded):
        listing(store, script, seconds=25.0)
    script = Script(Stalled("silent"), DeadlineExceeded("late"))
    store, _, _ = wrap(script)
    with pytest.raises(DeadlineExceeded):
        listing(store, script)


def test_a_read_goes_on_where_it_broke() -> None:
    """Progress grows over all tries, and the bytes lie where they belong."""
    script = Script(10, 0, 25)
    store, _, counters = wrap(script)
    buffer = bytearray(100)
    told: list[int] = []
    store.read_into(INFO, 5, memoryview(buffer), told.append, Deadline.after(lambda: script.now, 100.0))
    assert buffer == bytes(range(5, 105))
    assert script.asked == [(5, 100), (15, 90), (15, 90), (40, 65)]
    assert told == [10, 35, 100]
    assert counters.snapshot().retries == 3


def test_only_fruitless_tries_in_a_row_are_counted() -> None:
    """Tries that bring bytes start the count anew, and the pauses too."""
    script = Script(*([0] * (TRIES - 2) + [1]) * 5)
    store, _, _ = wrap(script)
    store.read_into(INFO, 0, memoryview(bytearray(100)), ignore, Deadline.after(lambda: script.now, 1e6))
    script = Script(*[0] * TRIES)
    store, _, _ = wrap(script)
    with pytest.raises(ServiceUnavailable):
        store.read_into(INFO, 0, memoryview(bytearray(100)), ignore, Deadline.after(lambda: script.now, 1e6))


def test_a_read_whose_end_fails_is_complete() -> None:
    """All bytes are there: no further request is made."""
    script = Script(100)
    store, _, _ = wrap(script)
    store.read_into(INFO, 0, memoryview(bytearray(100)), ignore, Deadline.after(lambda: script.now, 10.0))
    assert script.tries == 1


def test_the_refused_credential_is_the_one_that_is_renewed() -> None:
    """Not what is held meanwhile; there is one renewal, without a pause."""
    refused = GcpCredential("old", None)
    script = Script(RejectedCredential("401", refused))
    store, source, counters = wrap(script)
    assert listing(store, script) is PAGE
    assert len(source.rejected) == 1
    assert source.rejected[0] is refused
    assert script.pauses == []
    assert counters.snapshot().renewals == 1
    assert counters.snapshot().retries == 0


def test_a_second_refusal_is_access_denied() -> None:
    """Renewing didn't help: no second renewal in one operation."""
    script = Script(*[RejectedCredential("401", GcpCredential("x", None)) for _ in range(5)])
    store, source, _ = wrap(script)
    with pytest.raises(AccessDenied):
        listing(store, script)
    assert len(source.rejected) == 1
    assert script.tries == 2


def test_a_renewed_credential_is_told_to_be_accepted() -> None:
    """Once, and only one that was renewed; what the service refuses again isn't."""
    refusal = RejectedCredential("401", GcpCredential("x", None))
    script = Script(refusal)
    store, source, _ = wrap(script)
    for _ in range(3):
        listing(store, script)
    assert source.accepted == [source.held]
    script = Script(refusal, refusal)
    store, source, _ = wrap(script)
    with pytest.raises(AccessDenied):
        listing(store, script)
    listing(store, script)
    assert source.accepted == []


def test_a_credential_that_ends_again_within_a_read_is_renewed_again() -> None:
    """It brought bytes, so it was accepted when the connection broke."""
    refusal = RejectedCredential("401", GcpCredential("x", None))
    script = Script(refusal, 10, refusal)
    store, source, _ = wrap(script)
    buffer = bytearray(30)
    store.read_into(INFO, 0, memoryview(buffer), ignore, Deadline.after(lambda: script.now, 100.0))
    assert buffer == bytes(range(30))
    assert len(source.rejected) == len(source.accepted) == 2


def test_a_renewal_that_fails_ends_the_operation() -> None:
    """Its own error is told."""
    script = Script(RejectedCredential("401", GcpCredential("x", None)))
    store, source, _ = wrap(script)

    def refuse(credential: object, timeout: float) -> GcpCredential:
        raise AccessError("revoked")

    source.reject = refuse  # type: ignore[method-assign]  # a source whose token was revoked
    with pytest.raises(AccessError, match="revoked"):
        listing(store, script)
    assert script.tries == 1


def test_each_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many operations fail."""
    caplog.set_level(logging.INFO, "optfs.stores.retry")
    script = Script(*[ServiceUnavailable("it is down", detail="id 7") for _ in range(3 * TRIES)])
    store, _, _ = wrap(script)
    for _ in range(3):
        with pytest.raises(ServiceUnavailable):
            listing(store, script)
    for _ in range(3):
        listing(store, script)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "requests to optimizely-e3-123 fail: it is down (id 7)"),
        ("INFO", "requests to optimizely-e3-123 work again"),
    ]


def test_what_is_denied_says_nothing_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    """Where every other object is archived, each read was one of two changes of state."""
    caplog.set_level(logging.INFO, "optfs.stores.retry")
    script = Script(AccessDenied("archived"))
    store, _, _ = wrap(script)
    with pytest.raises(AccessDenied):
        listing(store, script)
    listing(store, script)
    assert caplog.records == []


def test_what_is_mended_or_gone_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that the second try mends isn't logged, nor a version that was overwritten."""
    caplog.set_level(logging.INFO, "optfs.stores.retry")
    script = Script(ServiceUnavailable("503"))
    store, _, _ = wrap(script)
    listing(store, script)
    script.steps.append(VersionGone("gone"))
    with pytest.raises(VersionGone):
        listing(store, script)
    assert caplog.records == []


def test_what_nobody_needs_any_more_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nor counted as a failed operation; but that the service fails is news all the same, where its readers gave up before it was."""
    script = Script(ServiceUnavailable("once"), ServiceUnavailable("twice"))
    store, _, counters = wrap(script)
    deadline = Deadline(lambda: script.now, script.now + 1000, lambda: script.tries == 2)
    with pytest.raises(Abandoned):
        store.read_into(INFO, 0, memoryview(bytearray(100)), ignore, deadline)
    assert (script.tries, counters.snapshot().errors) == (2, 0)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [f"requests to {ROOTS['gcp'].bucket} fail"]
