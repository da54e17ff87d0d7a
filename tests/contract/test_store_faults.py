"""Whatever a service or the network does, a read gives the right bytes or an error; nothing hangs, and nothing forbidden is asked for."""

import logging
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest

from optfs.config import Carrier
from optfs.credentials.protocol import AwsCredential
from optfs.demo.faults import Action, Answer, Fault, Hints, Html, Redirect, Reset, Stall, Trickle, Truncate, WrongContentRange, WrongLength
from optfs.demo.traffic import Kind
from optfs.errors import AccessDenied, DeadlineExceeded, InvalidResponse, OptfsError, ServiceError, ServiceUnavailable
from optfs.stores.gcs_sdk import GcsSdkStore
from optfs.stores.s3 import S3Store
from optfs.stores.s3_sdk import S3SdkStore
from optfs.values import MiB, Provider
from tests.support.stores import CARRIERS, PREFIX, DemoGround, deadline, demo_ground, find, list_all, read

DATA = random.Random(3).randbytes(2 * MiB + 17)
NAME = "type=x/date=2026-11-01/part"


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """Give each carrier in turn."""
    found: Carrier = request.param
    return found


@pytest.fixture(params=["aws", "gcp"])
def ground(request: pytest.FixtureRequest, carrier: Carrier) -> Iterator[DemoGround]:
    """Each embedded service in turn by each carrier, with one object; a silent connection counts as stalled after a second."""
    provider: Provider = request.param
    with demo_ground(provider, carrier, timeout=3.0) as demo:
        demo.put(NAME, DATA)
        yield demo


def fail(ground: DemoGround, kind: Kind, action: Action, times: int | None = 1) -> Fault:
    """Let the next requests of a kind go wrong."""
    return ground.services.faults.add(Fault(lambda request: request.kind == kind, action, times))


def connections(store: Any) -> int:
    """Return how many connections were made, which is urllib3's to tell."""
    if isinstance(store, S3SdkStore):
        manager = vars(store._http)["_manager"]
    elif isinstance(store, GcsSdkStore):
        manager = vars(store._session.get_adapter("http://"))["poolmanager"]
    else:
        manager = store._transport._manager
    pools = [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118 - urllib3's container can't be iterated over
    return sum(pool.num_connections for pool in pools)


TRANSIENT: list[Action] = [
    Answer(500),
    Answer(502, b"<html>Bad gateway</html>"),
    Answer(503, b"<Error><Code>SlowDown</Code></Error>"),
    Answer(429),
    Answer(408),
    Html(200),
    Reset(None),
    Stall(None),
]
BROKEN_BODIES: list[Action] = [
    Reset(0),
    Reset(1 * MiB),
    Truncate(0),
    Truncate(len(DATA) - 1),
    Stall(700_000),
    WrongContentRange(),
    WrongContentRange(None),
    WrongContentRange(f"bytes 1-{len(DATA)}/{len(DATA)}"),
    WrongLength(-1),
    WrongLength(5),
]


@pytest.mark.parametrize("action", TRANSIENT, ids=repr)
def test_a_listing_survives_what_goes_away(ground: DemoGround, action: Action) -> None:
    """One failure of any kind costs another request, no more."""
    fail(ground, "list", action)
    assert [info.key for info in list_all(ground.store)[0]] == [PREFIX + NAME]
    assert ground.counters.snapshot().errors == 0


@pytest.mark.parametrize("action", TRANSIENT + BROKEN_BODIES, ids=repr)
def test_a_read_survives_what_goes_away(ground: DemoGround, action: Action) -> None:
    """One failure of any kind, and all bytes are right; a wrong answer's bytes are never taken."""
    info = find(ground.store, NAME)
    fault = fail(ground, "get", action)
    assert read(ground.store, info) == DATA
    assert fault.hits == 1
    assert ground.services.requests.count("get") == 2


def test_a_broken_body_is_asked_for_from_where_it_broke(ground: DemoGround) -> None:
    """What had arrived isn't fetched again, break after break."""
    info = find(ground.store, NAME)
    for _ in range(3):
        fail(ground, "get", Truncate(600_000))
    assert read(ground.store, info) == DATA
    asked = [entry.range for entry in ground.services.requests.entries("get")]
    last = len(DATA) - 1
    assert asked == [f"bytes={start}-{last}" for start in (0, 600_000, 1_200_000, 1_800_000)]
    assert ground.counters.snapshot().bytes_fetched == len(DATA)


def test_more_breaks_than_tries_are_fine_as_long_as_bytes_come(ground: DemoGround) -> None:
    """Only tries without a byte are counted."""
    info = find(ground.store, NAME)
    fail(ground, "get", Truncate(100_000), times=15)
    assert read(ground.store, info) == DATA


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (Answer(503), ServiceUnavailable),
        (Html(200), InvalidResponse),
        (Reset(None), ServiceUnavailable),
        (Redirect("http://127.0.0.1:1/"), ServiceError),
        (Answer(304), InvalidResponse),
        (Answer(418), ServiceError),
    ],
    ids=repr,
)
def test_what_doesnt_go_away_ends_with_its_error(ground: DemoGround, action: Action, error: type[OptfsError]) -> None:
    """Tries are bounded, for listings and reads, and redirects aren't followed."""
    info = find(ground.store, NAME)
    fail(ground, "list", action, times=None)
    fail(ground, "get", action, times=None)
    with pytest.raises(error):
        list_all(ground.store)
    with pytest.raises(error):
        read(ground.store, info)
    assert ground.services.requests.count() <= 40
    assert ground.counters.snapshot().errors == 2


def test_an_object_of_another_size_than_listed_isnt_read(ground: DemoGround) -> None:
    """A Content-Range with another total size belongs to another version."""
    info = find(ground.store, NAME)
    fail(ground, "get", WrongContentRange(f"bytes 0-9/{len(DATA) + 1}"), times=None)
    with pytest.raises(OptfsError, match="changed or deleted"):
        read(ground.store, info, 0, 10)


def test_silence_ends_at_the_deadline(ground: DemoGround) -> None:
    """A service that never answers costs as long as was allowed, and is told from one that fails."""
    info = find(ground.store, NAME)
    fail(ground, "get", Stall(None), times=None)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        read(ground.store, info, until=deadline(2.5))
    assert 1.5 < time.monotonic() - began < 25
    assert ground.services.requests.count("get") >= 2


def test_a_trickling_body_cant_outlive_the_deadline(ground: DemoGround) -> None:
    """A body that comes without a pause, but too slowly, ends too."""
    info = find(ground.store, NAME)
    ground.services.pace.rate = 64 * 1024
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        read(ground.store, info, until=deadline(1.5))
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("kind", ["list", "get"])
def test_a_trickling_head_cant_outlive_the_deadline(ground: DemoGround, kind: Kind) -> None:
    """It held a fetching thread, or a folder's listing, as long as the server liked. Another connection may do better in time."""
    info = find(ground.store, NAME)
    fault = fail(ground, kind, Trickle(), times=None)
    began = time.monotonic()
    listing = partial(ground.store.list_page, PREFIX, delimiter=None, continuation=None, deadline=deadline(2.5))
    ask = listing if kind == "list" else partial(read, ground.store, info, until=deadline(2.5))
    with pytest.raises(DeadlineExceeded):
        ask()
    assert 1.5 < time.monotonic() - began < 10
    ground.services.faults.remove(fault)
    fail(ground, kind, Trickle(), times=1)
    assert read(ground.store, info) == DATA
    assert list_all(ground.store)[0] == [info]


@pytest.mark.parametrize("kind", ["list", "get"])
def test_early_hints_are_not_the_answer(ground: DemoGround, kind: Kind) -> None:
    """Else the answer would be taken for that to the connection's next request: folders looked empty."""
    info = find(ground.store, NAME)
    fail(ground, kind, Hints(), times=None)
    for _ in range(4):  # by the store that doesn't try again: answers that are out of step may be right by chance
        assert list_all(ground.raw)[0] == [info]
        assert read(ground.raw, info) == DATA


def test_early_hints_without_end_are_no_answer(ground: DemoGround) -> None:
    """They would hold a thread, and a processor."""
    info = find(ground.store, NAME)
    fail(ground, "get", Hints(1000), times=None)
    with pytest.raises(ServiceError):
        read(ground.store, info, until=deadline(20))


def test_a_service_that_is_down_and_comes_back(ground: DemoGround) -> None:
    """Refused connections are ServiceUnavailable; later the same store works, though all its connections are dead."""
    info = find(ground.store, NAME)
    ground.services.outage()
    with pytest.raises(ServiceUnavailable, match="can't connect") as caught:
        read(ground.store, info)
    assert type(caught.value) is ServiceUnavailable, "who refuses isn't silent"
    ground.services.end_outage()
    assert read(ground.store, info) == DATA


def test_an_expired_credential_costs_one_renewal(ground: DemoGround) -> None:
    """Listing and reading go on with the new one, and the old one is never used again."""
    info = find(ground.store, NAME)
    ground.services.expire_credentials()
    assert read(ground.store, info) == DATA
    ground.services.expire_credentials()
    assert list_all(ground.store)[0] == [info]
    assert len(ground.source.rejected) == 2
    assert ground.counters.snapshot().renewals == 2
    assert [entry.status for entry in ground.services.requests.entries("get")] in ([400, 206], [401, 206])
    assert ground.pauses == []


def test_a_fresh_credential_that_is_refused_as_well_ends_the_tries(ground: DemoGround) -> None:
    """One renewal an operation; then it is an AccessDenied that says so."""
    refusal = Answer(401) if ground.provider == "gcp" else Answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
    fail(ground, "list", refusal, times=None)
    with pytest.raises(AccessDenied, match="just renewed"):
        list_all(ground.store)
    assert len(ground.source.rejected) == 1
    assert ground.services.requests.count("list") == 2


def test_a_denied_request_isnt_tried_again(ground: DemoGround) -> None:
    """403 with a credential that is accepted: no renewal, no second try."""
    fail(ground, "list", Answer(403, b"<Error><Code>AccessDenied</Code></Error>"), times=None)
    with pytest.raises(AccessDenied):
        list_all(ground.store)
    assert ground.source.rejected == []
    assert ground.services.requests.count("list") == 1


def test_a_pause_that_the_service_asks_for_is_made(ground: DemoGround) -> None:
    """Retry-After takes the place of the random pause where it fits into the deadline; where it doesn't, the failure is told at once."""
    fail(ground, "list", Answer(503, headers={"Retry-After": "7"}))
    list_all(ground.store)
    assert ground.pauses == [7.0]
    fail(ground, "list", Answer(503, headers={"Retry-After": "3600"}))
    with pytest.raises(ServiceUnavailable):
        list_all(ground.store)
    assert ground.pauses == [7.0]


def test_nothing_but_listings_and_reads_is_ever_asked_for(ground: DemoGround) -> None:
    """No HEAD, no HeadBucket, GetBucketLocation or metadata, no listing above the account's prefix, whatever happens."""
    info = find(ground.store, NAME)
    read(ground.store, info, 5, 10)
    fail(ground, "get", Answer(404))
    with pytest.raises(OptfsError):
        read(ground.store, info)
    ground.services.expire_credentials()
    read(ground.store, info)
    entries = ground.services.requests.entries()
    assert {entry.method for entry in entries} == {"GET"}
    assert {entry.kind for entry in entries} == {"list", "get"}
    assert all(entry.key.startswith(PREFIX) for entry in entries)


def test_connections_are_kept(ground: DemoGround) -> None:
    """One thread's requests share one connection, errors answered in full included."""
    info = find(ground.store, NAME)
    for start in range(5):
        read(ground.store, info, start, 100)
        fail(ground, "get", Answer(503))
    assert connections(ground.raw) == 1


def test_s3_requests_are_signed_by_the_services_clock(carrier: Carrier) -> None:
    """A clock that is an hour off costs one more request; afterwards none is refused."""
    with demo_ground("aws", carrier) as ground:
        ground.put(NAME, DATA)
        raw = ground.raw
        assert isinstance(raw, S3Store | S3SdkStore)
        raw._signer.wall_clock = lambda: time.time() - 3600
        skewed = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
        fail(ground, "list", Answer(403, skewed, {"Date": formatdate(usegmt=True)}))
        info = find(ground.store, NAME)
        assert read(ground.store, info) == DATA
        assert [entry.status for entry in ground.services.requests.entries()] == [403, 200, 206]


def test_a_wrong_clock_that_cant_be_corrected_is_told(carrier: Carrier) -> None:
    """Without the service's time there is nothing to go by: the message says what to set, and nothing loops."""
    with demo_ground("aws", carrier) as ground:
        raw = ground.raw
        assert isinstance(raw, S3Store | S3SdkStore)
        raw._signer.wall_clock = lambda: time.time() - 3600
        with pytest.raises(AccessDenied, match="set the clock"):
            list_all(ground.store)
        assert ground.services.requests.count() == 1


def test_static_keys_are_signed_without_a_token(carrier: Carrier) -> None:
    """A user's own keys have no session token; the signature is right all the same."""
    with demo_ground("aws", carrier) as ground:
        ground.put(NAME, DATA)
        keys = ground.services.static_keys()
        ground.source.held = AwsCredential(keys.access_key, keys.secret_key, None, None)
        assert read(ground.store, find(ground.store, NAME)) == DATA


def test_no_secret_is_logged(ground: DemoGround, caplog: pytest.LogCaptureFixture) -> None:
    """Not even with every logger at its most talkative, and not in an error's texts."""
    caplog.set_level(logging.DEBUG)
    read(ground.store, find(ground.store, NAME))
    fail(ground, "list", Answer(401), times=None)
    with pytest.raises(OptfsError) as caught:
        list_all(ground.store)
    texts = [record.getMessage() for record in caplog.records] + [str(caught.value), repr(caught.value), caught.value.detail]
    held = ground.source.held
    secrets = (held.secret_key, held.session_token or "") if isinstance(held, AwsCredential) else (held.token,)
    assert not [text for text in texts for secret in secrets if secret in text]
