"""The Authentication API's client, against a server that answers well, badly, slowly, or not at all."""

import datetime
import email.utils
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.credentials import api
from optfs.credentials.api import FIRST_PAUSE, ApiClient, documented_root
from optfs.credentials.protocol import AwsCredential, GcpCredential
from optfs.errors import (
    AccessError,
    ConfigError,
    InvalidResponse,
    NoExport,
    OptfsError,
    RequestRefused,
    ServiceError,
    ServiceUnavailable,
    TokenRefused,
)
from optfs.units import parse_url
from optfs.values import AccountRoot
from tests.support import api_stand_in as stand_in
from tests.support.api_stand_in import AWS_BODY, GCP_BODY, Answer, StandIn, answer, refusal

TOKEN = "2:top-secret"
NOW = 1_800_000_000.0


class Pauses:
    """Notes pauses instead of making them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> bool:
        """Note a pause."""
        self.seconds.append(seconds)
        return False


def client(
    url: str,
    *,
    account: str | None = None,
    timeout: float = 60.0,
    pause: Callable[[float], bool] | None = None,
) -> ApiClient:
    """Return a client of the stand-in with a fixed wall clock and no pauses."""
    return ApiClient(
        url,
        lambda _: TOKEN,
        account=account,
        timeout=timeout,
        wall_clock=lambda: NOW,
        pause=pause or Pauses(),
        dice=random.Random(1),
    )


def test_aws_keys_and_place() -> None:
    """The documented answer becomes keys that expire when announced, below the account's folder."""
    with StandIn(answer(200, AWS_BODY)) as server:
        grant = client(server.url).fetch_aws(900)
        assert grant.root == AccountRoot("123", "aws", "optimizely-events-data", "v1/account_id=123/")
        assert grant.credential == AwsCredential("AKID", "aws-secret", "aws-session", NOW)
        assert server.seen[0].target == "/v2/export/credentials?duration=15m"
        assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert "secret" not in repr(grant)


def test_an_hour_is_asked_for_in_hours() -> None:
    """As the documentation's examples do."""
    with StandIn(answer(200, AWS_BODY)) as server:
        client(server.url).fetch_aws()
        assert server.seen[0].target.endswith("duration=1h")


def test_gcp_token_expires_an_hour_after_the_request() -> None:
    """The answer announces nothing."""
    with StandIn(answer(200, GCP_BODY)) as server:
        grant = client(server.url).fetch_gcp()
        assert grant.root == AccountRoot("123", "gcp", "optimizely-e3-123", "v1/account_id=123/")
        assert grant.credential == GcpCredential("gcp-secret", NOW + 3600)
        assert not grant.announced
        assert server.seen[0].target == "/v2/export/credentials/gcp"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused),
        (401, TokenRefused),
        (403, TokenRefused),
        (404, NoExport),
        (410, NoExport),
        (418, InvalidResponse),
        (429, ServiceUnavailable),
        (500, ServiceUnavailable),
        (503, ServiceUnavailable),
    ],
)
def test_refusals(status: int, kind: type[OptfsError]) -> None:
    """Each is an error of its kind, in one line, with the API's code and uuid for the log and no token anywhere."""
    with StandIn(refusal(status, message=f"bad\r\ntoken {TOKEN}")) as server, pytest.raises(kind) as caught:
        client(server.url).fetch_gcp()
    assert type(caught.value) is kind
    assert caught.value.message.isprintable()
    assert "SOME_CODE" in caught.value.detail
    assert "uuid-1" in caught.value.detail
    assert TOKEN not in caught.value.message + caught.value.detail


@pytest.mark.parametrize("before", [0, 170, 199, 1000])
def test_a_long_message_is_cut_without_leaving_a_part_of_the_token(before: int) -> None:
    with StandIn(refusal(400, message="x" * before + TOKEN)) as server, pytest.raises(RequestRefused) as caught:
        client(server.url).fetch_gcp()
    assert TOKEN[:4] not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_repeated(status: int) -> None:
    """It would be refused again."""
    with StandIn(refusal(status)) as server:
        with pytest.raises(OptfsError):
            client(server.url).fetch_gcp()
        assert len(server.seen) == 1


@pytest.mark.parametrize("failure", [refusal(500), refusal(429), answer(200, b"<html>"), stand_in.reset])
def test_a_passing_failure_is_tried_again(failure: Answer) -> None:
    """Nobody notices it."""
    with StandIn(failure, failure, answer(200, GCP_BODY)) as server:
        assert client(server.url).fetch_gcp().root.account == "123"
        assert len(server.seen) == 3


def test_tries_have_an_end() -> None:
    """A service that stays down isn't asked for ever, and the pauses grow."""
    pauses = Pauses()
    with StandIn(refusal(500)) as server:
        with pytest.raises(ServiceUnavailable):
            client(server.url, pause=pauses).fetch_gcp()
        assert len(server.seen) == 4
    assert len(pauses.seconds) == 3
    for seconds, bound in zip(pauses.seconds, (FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE), strict=True):
        assert bound / 2 <= seconds <= bound


@pytest.mark.parametrize("asked", ["7", email.utils.format_datetime(datetime.datetime.fromtimestamp(NOW + 7, datetime.UTC), usegmt=True)])
def test_retry_after_is_honoured(asked: str) -> None:
    """In seconds and as a date; before the first grant also a long one."""
    pauses = Pauses()
    with StandIn(refusal(429, {"Retry-After": asked}), answer(200, GCP_BODY)) as server:
        client(server.url, pause=pauses).fetch_gcp()
    assert pauses.seconds == [7.0]


@pytest.mark.parametrize("asked", ["0", email.utils.format_datetime(datetime.datetime.fromtimestamp(NOW - 60, datetime.UTC), usegmt=True)])
def test_a_retry_after_that_asks_for_no_pause_gets_the_ordinary_one(asked: str) -> None:
    """A date is past for a clock that is fast."""
    pauses = Pauses()
    with StandIn(refusal(429, {"Retry-After": asked}), answer(200, GCP_BODY)) as server:
        client(server.url, pause=pauses).fetch_gcp()
    assert len(pauses.seconds) == 1
    assert FIRST_PAUSE / 2 <= pauses.seconds[0] <= FIRST_PAUSE


def test_a_long_retry_after_is_told_at_once_when_there_are_readers() -> None:
    """They would wait for the API's sake; before the first grant there are none."""
    pauses = Pauses()
    asking = [refusal(429, {"Retry-After": "2"}), refusal(429, {"Retry-After": "7"})]
    with StandIn(answer(200, GCP_BODY), *asking, answer(200, GCP_BODY)) as server:
        renewing = client(server.url, pause=pauses)
        renewing.fetch_gcp()
        with pytest.raises(ServiceUnavailable, match="overloaded"):
            renewing.fetch_gcp()
        assert pauses.seconds == [2.0]
        renewing.fetch_gcp()


def test_retry_after_beyond_the_deadline_ends_at_once() -> None:
    """Waiting would be in vain; the caller learns how long."""
    pauses = Pauses()
    with StandIn(refusal(429, {"Retry-After": "3600"})) as server, pytest.raises(ServiceUnavailable) as caught:
        client(server.url, pause=pauses).fetch_gcp()
    assert caught.value.retry_after == 3600
    assert pauses.seconds == []


@pytest.mark.parametrize("asked", ["soon", "", "\u00b2", "-5", "Mon, 99 Nov 2026 99:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_ignored(asked: str) -> None:
    """The ordinary pause is made."""
    pauses = Pauses()
    with StandIn(refusal(503, {"Retry-After": asked}), answer(200, GCP_BODY)) as server:
        client(server.url, pause=pauses).fetch_gcp()
    assert 0 < pauses.seconds[0] < 1


def test_no_redirect_is_followed() -> None:
    """The token must get to no other host."""
    with StandIn(answer(200, GCP_BODY)) as other, StandIn(answer(302, b"", {"Location": f"{other.url}/export/credentials/gcp"})) as server:
        with pytest.raises(ServiceError, match="redirects"):
            client(server.url).fetch_gcp()
        assert other.seen == []


def test_netrc_and_proxies_do_not_come_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.netrc` would replace the header; a proxy would see a token that is meant for loopback."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with StandIn(refusal(500)) as proxy, StandIn(answer(200, GCP_BODY)) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client(server.url).fetch_gcp()
        assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert proxy.seen == []


@pytest.mark.parametrize("slow", [stand_in.hang, stand_in.trickle_headers, stand_in.trickle_body])
def test_an_answer_that_never_ends_is_ended(slow: Answer) -> None:
    """Timeouts of single reads wouldn't: each trickling byte starts them anew."""
    with StandIn(slow) as server, pytest.raises(ServiceUnavailable, match=r"in time|too long"):
        client(server.url, timeout=1.5).fetch_gcp()


def test_a_silent_connection_is_given_a_companion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lost the way to the API has it again seconds after it is back, not when the time of the lost request is up."""
    monkeypatch.setattr(api, "PATIENCE", 0.05)
    with StandIn(*[stand_in.hang] * 5, answer(200, GCP_BODY)) as server:
        assert client(server.url, timeout=9.0).fetch_gcp().root.account == "123"
        assert len(server.seen) >= 6


def test_a_slow_answer_counts_also_when_others_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API that takes longer than our patience works all the same; what became of the others doesn't matter."""
    monkeypatch.setattr(api, "PATIENCE", 0.05)
    asked_again = threading.Event()

    def slow(connection: socket.socket, ended: threading.Event) -> None:
        assert asked_again.wait(30)
        answer(200, GCP_BODY)(connection, ended)

    def break_off(connection: socket.socket, ended: threading.Event) -> None:
        stand_in.reset(connection, ended)
        asked_again.set()

    with StandIn(slow, break_off, stand_in.hang) as server:
        assert client(server.url, timeout=9.0).fetch_gcp().root.account == "123"


def closed_while_it_asks(asking: ApiClient, reached: threading.Event) -> OptfsError:
    """Close a client once its request has come as far as `reached`; return what that ended it with."""
    failures: list[OptfsError] = []

    def ask() -> None:
        try:
            asking.fetch_gcp()
        except OptfsError as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert reached.wait(30)
    asking.close()
    thread.join(30)
    assert not thread.is_alive()
    return failures[0]


@pytest.mark.parametrize("slow", [stand_in.hang, stand_in.trickle_headers])
def test_closing_ends_a_request(slow: Answer) -> None:
    """A mount ends without waiting for the API."""
    came = threading.Event()

    def noticed(connection: socket.socket, ended: threading.Event) -> None:
        came.set()
        slow(connection, ended)

    with StandIn(noticed) as server:
        asking = client(server.url, timeout=300.0)
        failure = closed_while_it_asks(asking, came)
    assert isinstance(failure, ServiceUnavailable)


def test_a_pause_ends_with_the_mount() -> None:
    """However long the service asked for."""
    answered, pausing = threading.Event(), threading.Event()

    def clock() -> float:
        if answered.is_set():  # asked whether there is time for the pause
            pausing.set()
        return time.monotonic()

    def busy(connection: socket.socket, ended: threading.Event) -> None:
        answered.set()
        refusal(503, {"Retry-After": "200"})(connection, ended)

    with StandIn(busy, answer(200, GCP_BODY)) as server:
        asking = ApiClient(server.url, lambda _: TOKEN, timeout=300.0, clock=clock)
        failure = closed_while_it_asks(asking, pausing)
        assert len(server.seen) == 1
    assert isinstance(failure, ServiceUnavailable)


def test_nobody_listens() -> None:
    """A refused connection is a service that can't be reached."""
    with StandIn(refusal(500)) as server:
        url = server.url
    with pytest.raises(ServiceUnavailable, match="can't be reached"):
        client(url).fetch_gcp()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>proxy</html>",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"{}",
        b"x" * 1_000_000,
        {"token": "", "uri": "gs://optimizely-e3-123"},
        {"token": 5, "uri": "gs://optimizely-e3-123"},
        {"token": "a\r\nb", "uri": "gs://optimizely-e3-123"},
        {"token": "a"},
        {"token": "a", "uri": None},
    ],
)
def test_answers_that_make_no_sense(body: object) -> None:
    """None gets further than here."""
    with StandIn(answer(200, body)) as server, pytest.raises(InvalidResponse):
        client(server.url).fetch_gcp()


@pytest.mark.parametrize("missing", ["accessKeyId", "secretAccessKey", "sessionToken", "expiration"])
def test_aws_answers_with_a_part_missing(missing: str) -> None:
    """Each part is needed."""
    credentials = AWS_BODY["credentials"]
    assert isinstance(credentials, dict)
    body = AWS_BODY | {"credentials": {name: value for name, value in credentials.items() if name != missing}}
    with StandIn(answer(200, body)) as server, pytest.raises(InvalidResponse, match=missing):
        client(server.url).fetch_aws()


@pytest.mark.parametrize(
    ("expiration", "expected"),
    [(1_800_000_000_000, NOW), ("1800000000000", NOW), ("2027-01-15T08:00:00Z", NOW), ("2027-01-15T08:00:00", NOW)],
)
def test_forms_of_the_expiration(expiration: object, expected: float) -> None:
    """Milliseconds as documented, or what a careless change of the API may make of them."""
    credentials = AWS_BODY["credentials"]
    assert isinstance(credentials, dict)
    with StandIn(answer(200, AWS_BODY | {"credentials": credentials | {"expiration": expiration}})) as server:
        assert client(server.url).fetch_aws().credential.expires_at == expected


@pytest.mark.parametrize("expiration", [True, None, "soon", [], float("nan"), float("inf"), 10**400])
def test_expirations_that_make_no_sense(expiration: object) -> None:
    """A moment that isn't one would keep a renewal from ever being due."""
    credentials = AWS_BODY["credentials"]
    assert isinstance(credentials, dict)
    with (
        StandIn(answer(200, AWS_BODY | {"credentials": credentials | {"expiration": expiration}})) as server,
        pytest.raises(InvalidResponse),
    ):
        client(server.url).fetch_aws()


BAD_PLACES = [
    "s3://evil/v1/account_id=123",
    "s3://optimizely-events-data",
    "s3://optimizely-events-data/",
    "s3://optimizely-events-data/v1/account_id=",
    "s3://optimizely-events-data/v1/account_id=../x",
    "s3://optimizely-events-data/v1/account_id=1 2",
    "s3://optimizely-events-data/v1//account_id=123",
    "s3://optimizely-events-data/v1/account_id=123/../account_id=9",
    "s3://optimizely-events-data/v1/account_id=123/type=events",
    "s3://optimizely-events-data/v1/account_id=123\n",
    "s3://optimizely-events-data/v1/account_id=123?x",
    "https://optimizely-events-data/v1/account_id=123",
    "optimizely-events-data/v1/account_id=123",
]


@pytest.mark.parametrize("place", BAD_PLACES)
def test_places_that_are_not_the_documented_ones(place: str) -> None:
    """An answer can't point the mount at another folder."""
    with StandIn(answer(200, AWS_BODY | {"s3Path": place})) as server, pytest.raises(InvalidResponse):
        client(server.url).fetch_aws()


@pytest.mark.parametrize(
    "place",
    ["gs://evil", "gs://optimizely-e3-", "gs://optimizely-e3-1/v1/account_id=2", "gs://optimizely-e3-1/../x", "s3://optimizely-e3-1"],
)
def test_places_on_gcs_that_are_not_the_documented_ones(place: str) -> None:
    """The same there."""
    with StandIn(answer(200, GCP_BODY | {"uri": place})) as server, pytest.raises(InvalidResponse):
        client(server.url).fetch_gcp()


def test_a_trailing_slash_changes_nothing() -> None:
    """Documented without, expected with."""
    with StandIn(answer(200, AWS_BODY | {"s3Path": "s3://optimizely-events-data/v1/account_id=123/"})) as server:
        assert client(server.url).fetch_aws().root.prefix == "v1/account_id=123/"
    with StandIn(answer(200, GCP_BODY | {"uri": "gs://optimizely-e3-123/v1/account_id=123/"})) as server:
        assert client(server.url).fetch_gcp().root.prefix == "v1/account_id=123/"


def test_another_account_than_the_one_asked_for() -> None:
    """A token of the wrong account is told, not mounted."""
    with StandIn(answer(200, GCP_BODY)) as server:
        assert client(server.url, account="123").fetch_gcp().root.account == "123"
        with pytest.raises(AccessError, match="not for 9"):
            client(server.url, account="9").fetch_gcp()


@given(st.text(max_size=60))
def test_no_place_leads_out_of_the_documented_one(text: str) -> None:
    """Whatever follows the scheme, what is believed is the documented bucket and a plain id."""
    for provider, scheme in (("aws", "s3"), ("gcp", "gs")):
        try:
            root = client("https://api.example")._root("aws" if provider == "aws" else "gcp", f"{scheme}://{text}", scheme)
        except InvalidResponse:
            continue
        assert root == documented_root(root.provider, root.account)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.optimizely.com",
        "http://api.optimizely.com/v2",
        "http://127.0.0.1.evil.com",
        "ftp://x",
        "https://u:p@x",
        "https://x:99999",
        "https://[x",
        "https://x?y=1",
    ],
)
def test_urls_that_a_token_is_not_sent_to(url: str) -> None:
    """Https, or http on loopback; told before anything is sent."""
    with pytest.raises(ConfigError, match="--api-url"):
        client(url)


@pytest.mark.parametrize("url", ["https://api.optimizely.com/v2", "http://127.0.0.2:1", "http://LOCALHOST:1", "http://[::1]:1/v2"])
def test_urls_that_a_token_is_sent_to(url: str) -> None:
    """Http to this computer by any of its own names, as the configuration has it."""
    assert parse_url(url)
    client(url)


def test_the_token_is_read_for_each_exchange() -> None:
    """A rotated one is used at the next renewal."""
    tokens = iter(["first", "second"])
    with StandIn(answer(200, GCP_BODY)) as server:
        asking = ApiClient(server.url, lambda _: next(tokens))
        asking.fetch_gcp()
        asking.fetch_gcp()
        assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer first", "Bearer second"]


def test_the_token_has_half_of_the_time() -> None:
    """A command that hangs is told to readers before their own time is up, and one that is slow leaves time for the API."""
    times: list[float] = []

    def read_token(timeout: float) -> str:
        times.append(timeout)
        raise ServiceUnavailable("the token command doesn't answer")

    with StandIn(answer(200, GCP_BODY)) as server, pytest.raises(ServiceUnavailable, match="token command"):
        ApiClient(server.url, read_token, timeout=3.0).fetch_gcp()
    assert times == [1.5]
    assert server.seen == []
