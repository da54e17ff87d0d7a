"""Renewal where threads meet: who waits for whom, what is told to whom, and the pauses between tries."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.credentials import renewal, schedule
from optfs.credentials.protocol import AwsCredential, Credential, Grant
from optfs.credentials.renewal import RenewingSource
from optfs.errors import AccessError, ConfigError, CredentialRejected, DeadlineExceeded, OptfsError, ServiceUnavailable, TokenRefused
from optfs.values import AccountRoot

HOUR = 3600.0
EPOCH = 1_800_000_000.0
ROOT = AccountRoot("123", "aws", "optimizely-events-data", "v1/account_id=123/")
PATIENCE = 30.0  # seconds: how long a test waits for another thread on a loaded machine


def source_of(fetch: Callable[[], Grant], **settings: object) -> RenewingSource:
    """Return a source with real waits."""
    return RenewingSource("aws", fetch, requested=HOUR, **settings)  # type: ignore[arg-type]  # keywords handed on


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the moment."""
        return self.now


class Api:
    """Numbered grants, one a request; or failures; or, while `gate` is closed, nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: OptfsError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.root = ROOT

    def __call__(self) -> Grant:
        """Answer."""
        self.count += 1
        self.entered.set()
        assert self.gate.wait(PATIENCE * 2)
        if self.failure is not None:
            raise self.failure
        return Grant(self.root, AwsCredential(f"key-{self.count}", "very-secret", "session", time.time() + HOUR))


@contextmanager
def started(source: RenewingSource) -> Iterator[RenewingSource]:
    """Start a source and close it."""
    source.start()
    try:
        yield source
    finally:
        source.close(PATIENCE)


def key(credential: Credential) -> str:
    """Return which grant a credential is of."""
    assert isinstance(credential, AwsCredential)
    return credential.access_key


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_start_raises_what_asking_raises() -> None:
    """A refused token is told before anything is mounted."""
    api = Api()
    api.failure = TokenRefused("no")
    with pytest.raises(TokenRefused):
        source_of(api).start()


def test_the_held_credential_comes_at_once() -> None:
    """Without a request, whatever the time limit."""
    api = Api()
    with started(source_of(api)) as source:
        assert key(source.current(0.0)) == "key-1"
        assert source.root == ROOT
        assert api.count == 1


def test_many_who_reject_one_credential_cause_one_renewal() -> None:
    """All wait for it and get its fruit, also those who came while it was under way; no second one follows."""
    api = Api()
    waiting: set[str] = set()
    idle = threading.Event()

    def wait(condition: threading.Condition, seconds: float) -> None:
        name = threading.current_thread().name
        waiting.add(name)
        if name == "renew-aws" and api.count == 2:
            idle.set()
        condition.wait(seconds)

    with started(source_of(api, wait=wait)) as source:
        refused = source.current(0.0)
        got: list[str] = []
        api.entered.clear()
        api.gate.clear()
        readers = [
            threading.Thread(target=lambda: got.append(key(source.reject(refused, PATIENCE))), name=f"reader-{number}", daemon=True)
            for number in range(16)
        ]
        for reader in readers:
            reader.start()
        until(lambda: len([name for name in waiting if name.startswith("reader")]) == 16)
        assert api.entered.wait(PATIENCE)
        idle.clear()
        api.gate.set()
        for reader in readers:
            reader.join(PATIENCE)
        until(lambda: idle.is_set() or api.count > 2)
        assert got == ["key-2"] * 16
        assert api.count == 2


def test_rejecting_a_former_credential_renews_nothing() -> None:
    """A request that was signed before the last renewal."""
    api = Api()
    with started(source_of(api)) as source:
        first = source.current(0.0)
        source.reject(first, PATIENCE)
        assert key(source.reject(first, 0.0)) == "key-2"
        assert api.count == 2


def test_rejecting_what_was_just_renewed_ends() -> None:
    """A store that refuses everything must not cause a renewal a request; seconds later one more is made."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        second = source.reject(source.current(0.0), PATIENCE)
        with pytest.raises(CredentialRejected):
            source.reject(second, PATIENCE)
        assert api.count == 2
        clock.now += 6
        assert key(source.reject(second, PATIENCE)) == "key-3"


def test_what_a_store_accepted_is_renewed_again_at_once() -> None:
    """Credentials may end in quick succession; word of a former one counts for nothing."""
    api = Api()
    with started(source_of(api, clock=Clock())) as source:
        first = source.current(0.0)
        second = source.reject(first, PATIENCE)
        source.accept(second)
        third = source.reject(second, PATIENCE)
        assert key(third) == "key-3"
        source.accept(second)
        with pytest.raises(CredentialRejected):
            source.reject(third, PATIENCE)
        assert api.count == 3


def test_what_was_renewed_after_a_failure_may_end_soon() -> None:
    """Those who rejected its forerunner were told of the failure, so that nobody tells that the new one was accepted."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        api.failure = ServiceUnavailable("down")
        with pytest.raises(ServiceUnavailable):
            source.reject(source.current(0.0), PATIENCE)
        api.failure = None
        clock.now += 1
        until(lambda: source.status().last_error == "")
        assert key(source.reject(source.current(0.0), PATIENCE)) == f"key-{api.count}"


def test_a_store_that_refuses_everything_causes_few_renewals_and_no_long_wait() -> None:
    """Of a request each tenth of a second for a minute; whenever the store comes to its senses, it is noticed within 5 s."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        held = source.current(0.0)
        renewed = [clock.now]
        for _ in range(600):
            clock.now += 0.1
            with suppress(CredentialRejected):
                held = source.reject(held, PATIENCE)
                renewed.append(clock.now)
        assert api.count <= 45
        assert max(after - before for before, after in pairwise(renewed)) <= schedule.URGENT_CAP + 0.2


def test_an_expired_credential_is_waited_for() -> None:
    """For as long as the caller has time, and no longer."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        api.entered.clear()
        api.gate.clear()
        clock.now += HOUR
        with pytest.raises(DeadlineExceeded):
            source.current(0.0)
        assert api.entered.wait(PATIENCE)
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append(key(source.current(PATIENCE))), daemon=True)
        reader.start()
        api.gate.set()
        reader.join(PATIENCE)
        assert got == ["key-2"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(TokenRefused("no"), TokenRefused), (ServiceUnavailable("down"), ServiceUnavailable), (ConfigError("file is gone"), AccessError)],
)
def test_a_failed_renewal_is_told_to_whoever_needs_it(failure: OptfsError, expected: type[OptfsError]) -> None:
    """As an error that a read may fail with; and all recovers when the cause is gone."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        api.failure = failure
        clock.now += HOUR
        with pytest.raises(expected) as caught:
            source.current(PATIENCE)
        assert caught.value is not failure  # each thread's traceback is its own
        assert source.status().last_error == failure.message
        api.failure = None
        clock.now += 10
        until(lambda: source.status().last_error == "")
        assert key(source.current(0.0)) != "key-1"


def test_who_comes_during_a_pause_is_told_at_once() -> None:
    """And causes no request: a storm of readers must not become one of requests."""
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        api.failure = ServiceUnavailable("down")
        clock.now += HOUR
        with pytest.raises(ServiceUnavailable):
            source.current(PATIENCE)
        count = api.count
        for _ in range(100):
            with pytest.raises(ServiceUnavailable):
                source.current(PATIENCE)
        assert api.count == count


@pytest.mark.log_errors
@pytest.mark.parametrize("bug", [KeyError("very-secret"), SystemExit()], ids=["bug", "exit"])
def test_a_bug_in_asking_ends_no_thread(bug: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The mount would be lost an hour later. It is logged once, however often it is met."""
    monkeypatch.setattr(renewal, "REST", 0.01)
    api = Api()
    clock = Clock()
    broken = threading.Event()
    met = 0

    def fetch() -> Grant:
        nonlocal met
        if broken.is_set():
            met += 1
            raise bug
        return api()

    with started(source_of(fetch, clock=clock)) as source:
        broken.set()
        clock.now += HOUR
        with pytest.raises(AccessError):
            source.current(PATIENCE)
        clock.now += 10
        until(lambda: met > 1)
        broken.clear()
        clock.now += 10
        until(lambda: source.status().last_error == "")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def _starve(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let something find no memory at its first use."""
    real: Callable[..., object] = getattr(owner, name)

    def starved(*arguments: object) -> object:
        monkeypatch.setattr(owner, name, real)
        raise MemoryError

    monkeypatch.setattr(owner, name, starved)


@pytest.mark.parametrize("also_to_say_so", [False, True])
def test_want_of_memory_is_told_and_overcome(also_to_say_so: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here to keep what the API gave: what was held stays whole, and those who wait hear of it at once, not when their time is up."""
    monkeypatch.setattr(renewal, "REST", 0.01)
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        _starve(monkeypatch, schedule, "term")
        if also_to_say_so:
            _starve(monkeypatch, schedule, "Setback")
        clock.now += HOUR
        with pytest.raises(AccessError, match="no memory"):
            source.current(PATIENCE)
        assert "no memory" in source.status().last_error
        assert source.status().renewals == 1
        clock.now += 10
        until(lambda: source.status().last_error == "")
        assert key(source.current(0.0)) == "key-3"
        assert source.status().renewals == 2


def test_a_thread_that_finds_no_memory_to_wait_goes_on_without_haste(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once; when there is memory again, the next credential comes in time."""
    monkeypatch.setattr(renewal, "REST", 0.05)
    api = Api()
    clock = Clock()
    starving = threading.Event()
    starving.set()
    tries = 0

    def wait(condition: threading.Condition, seconds: float) -> None:
        nonlocal tries
        if starving.is_set() and threading.current_thread().name == "renew-aws":
            tries += 1
            raise MemoryError
        condition.wait(seconds)

    begin = time.monotonic()
    with started(source_of(api, clock=clock, wait=wait)) as source:
        until(lambda: tries >= 5)
        assert time.monotonic() - begin >= 4 * 0.05
        assert key(source.current(0.0)) == "key-1"
        assert "no memory" in source.status().last_error
        starving.clear()
        clock.now += HOUR
        until(lambda: source.status().last_error == "")
        assert key(source.current(0.0)) == "key-2"
    assert len(caplog.records) == 1


def test_another_bucket_in_the_middle_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    """The tree shown is that of the first answer."""
    api = Api()
    with started(source_of(api)) as source:
        api.root = AccountRoot("9", "aws", "optimizely-events-data", "v1/account_id=9/")
        source.reject(source.current(0.0), PATIENCE)
        assert source.root == ROOT
    assert "another bucket" in caplog.text


def test_another_bucket_is_logged_once_until_the_first_is_named_again(caplog: pytest.LogCaptureFixture) -> None:
    """Not at each renewal, whichever others are named."""
    caplog.set_level("INFO")
    api = Api()
    clock = Clock()
    with started(source_of(api, clock=clock)) as source:
        held = source.current(0.0)
        for account in ("9", "9", "8", "123", "123", "9"):
            api.root = AccountRoot(account, "aws", "optimizely-events-data", f"v1/account_id={account}/")
            clock.now += 10
            held = source.reject(held, PATIENCE)
    assert [(record.levelname, "first bucket again" in record.message) for record in caplog.records] == [
        ("WARNING", False),
        ("INFO", True),
        ("WARNING", False),
    ]


def test_status_shows_no_secret() -> None:
    """It is printed."""
    api = Api()
    with started(source_of(api)) as source:
        status = source.status()
        assert (status.provider, status.account, status.bucket, status.renewals) == ("aws", "123", ROOT.bucket, 1)
        assert status.expires_at == pytest.approx(time.time() + HOUR, abs=120)
        assert "secret" not in repr(status)


def test_a_request_that_is_ended_by_closing_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It told of credentials that can't be renewed, and of another try, as the mount was taken away."""
    api = Api()

    def end() -> None:
        api.failure = ServiceUnavailable("the mount is ending")
        api.gate.set()

    with started(source_of(api, on_close=end)) as source:
        api.gate.clear()
        api.entered.clear()
        with suppress(DeadlineExceeded):
            source.reject(source.current(0.0), 0.0)
        assert api.entered.wait(PATIENCE)
    assert not caplog.records


def test_close_wakes_who_waits_and_leaves_a_stuck_request_behind() -> None:
    """An unmount isn't held up by the API."""
    api = Api()
    clock = Clock()
    source = source_of(api, clock=clock)
    source.start()
    api.entered.clear()
    api.gate.clear()
    clock.now += HOUR
    failures: list[OptfsError] = []

    def read() -> None:
        try:
            source.current(PATIENCE)
        except OptfsError as error:
            failures.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert api.entered.wait(PATIENCE)
    source.close(0.05)
    reader.join(PATIENCE)
    assert isinstance(failures[0], AccessError)
    api.gate.set()
    source.close(PATIENCE)
    assert not any(thread.name == "renew-aws" and thread.is_alive() for thread in threading.enumerate())


def test_a_rejected_guess_is_learned_and_forgotten() -> None:
    """Tokens that die after 100 s are renewed before that; after one odd rejection the full lifetime comes back."""
    guess = schedule.Guess(HOUR).rejected(100.0)
    assert guess.bound == 100.0
    assert guess.rejected(200.0).bound == 100.0
    assert guess.rejected(schedule.SHORTEST).bound == schedule.SHORTEST
    assert guess.rejected(schedule.SHORTEST - 0.1) == guess, "no lifetime is that short: there was another reason"
    for _ in range(7):  # a bound that is right isn't doubted with each credential
        guess = guess.lived()
        assert guess.bound == 100.0
    spent = 0.0
    guess = guess.rejected(schedule.SHORTEST)
    while guess.bound < HOUR:
        spent += guess.bound
        guess = guess.lived()
    assert spent < 6 * HOUR


@pytest.mark.parametrize(
    ("expiry", "expected"),
    [
        (None, HOUR),
        (EPOCH + 1800, 1800),
        (EPOCH + HOUR + 50, HOUR),  # the wall clock is slow
        (EPOCH + 10 * HOUR, HOUR),
        (EPOCH + 1, schedule.SHORTEST),
        (EPOCH, HOUR),  # the wall clock is wrong
    ],
)
def test_no_lifetime_is_believed_beyond_what_was_asked_for(expiry: float | None, expected: float) -> None:
    """However the wall clock differs from the service's: the credential would be used after its end."""
    assert schedule.lifetime(expiry, EPOCH, HOUR) == expected


LUCK = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), LUCK, st.floats(0, 1e6), st.floats(0, 1e6))
def test_pauses_have_bounds(count: int, luck: float, at: float, usable_until: float) -> None:
    """At least 0.1 s, at most a minute, and at most 4 s beyond the moment from which there is no credential."""
    retry = schedule.Setback(count, at, luck).retry_at(usable_until)
    assert at + 0.1 <= retry <= at + 60
    assert retry <= max(at, usable_until) + 4


@given(st.floats(-1e10, 1e10), st.floats(900, HOUR), LUCK)
def test_terms_have_bounds(ahead: float, requested: float, luck: float) -> None:
    """Whatever expiry is announced: a lifetime of some seconds to what was asked for, renewed and given up before its end."""
    seconds = schedule.lifetime(EPOCH + ahead, EPOCH, requested)
    assert schedule.SHORTEST <= seconds <= requested
    term = schedule.term(100.0, seconds, luck)
    assert 100.0 < term.renew_at < term.unusable_at < 100.0 + seconds
