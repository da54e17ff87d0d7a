"""Each fault that tests can install does what its name says, and none keeps the services from ending."""

import http.client
import threading
import time
from collections.abc import Iterator

import pytest

from optfs.demo.faults import (
    Action,
    Answer,
    Corrupt,
    Delay,
    Fault,
    Html,
    Redirect,
    Reset,
    Stall,
    Truncate,
    WrongContentRange,
    WrongLength,
)
from optfs.demo.services import Services

BODY = bytes(range(256)) * 800  # more than what is sent at once


@pytest.fixture
def services() -> Iterator[Services]:
    """Services with one object on GCS."""
    with Services() as running:
        running.put("x", BODY)
        yield running


class Client:
    """One kept-alive connection to the GCS service."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._token = services.issuer.issue_token()
        self.connection = http.client.HTTPConnection(services.gcs_url.removeprefix("http://"), timeout=30)

    def send(self, extent: str = "bytes=0-") -> None:
        """Ask for the object."""
        key = (self._services.prefix + "x").replace("/", "%2F")
        headers = {"Authorization": f"Bearer {self._token}", "Range": extent}
        self.connection.request("GET", f"/storage/v1/b/optimizely-e3-123/o/{key}?alt=media", headers=headers)

    def get(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask, and return the answer with its body."""
        self.send()
        response = self.connection.getresponse()
        return response, response.read()


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    """Return a client, and close it at the end."""
    made = Client(services)
    yield made
    made.connection.close()


def install(services: Services, action: Action, times: int | None = None) -> Fault:
    """Install a fault on gets."""
    return services.faults.add(Fault(lambda request: request.kind == "get", action, times))


def test_an_answer_is_replaced_as_often_as_asked(services: Services, client: Client) -> None:
    """The rule applies to so many requests, and counts them; the log has the status that was sent."""
    fault = install(services, Answer(503, b"slow down", {"Retry-After": "1"}), times=2)
    answers = [client.get() for _ in range(3)]
    assert [response.status for response, _ in answers] == [503, 503, 206]
    assert (answers[0][1], answers[0][0].headers["Retry-After"]) == (b"slow down", "1")
    assert fault.hits == 2
    assert [entry.status for entry in services.requests.entries("get")] == [503, 503, 206]


def test_the_first_matching_rule_applies(services: Services, client: Client) -> None:
    """Rules apply in the order of their installing; a removed one no longer does."""
    services.faults.add(Fault(lambda request: request.kind == "list", Answer(500)))
    first = install(services, Answer(502))
    install(services, Answer(504))
    assert client.get()[0].status == 502
    services.faults.remove(first)
    assert client.get()[0].status == 504


def test_captive_portals_and_redirections(services: Services, client: Client) -> None:
    """HTML comes with status 200; a redirection has its location."""
    install(services, Html(), times=1)
    install(services, Redirect("http://127.0.0.1:1/"), times=1)
    response, body = client.get()
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html")
    assert body.startswith(b"<!DOCTYPE html>")
    response, _ = client.get()
    assert (response.status, response.headers["Location"]) == (302, "http://127.0.0.1:1/")


def test_distorted_answers(services: Services, client: Client) -> None:
    """A false Content-Range, none, a wrong length, a flipped byte: all else is the proper answer."""
    for action in (WrongContentRange("bytes 7-8/9"), WrongContentRange(None), WrongLength(-3), WrongLength(2), Corrupt()):
        install(services, action, times=1)
    response, body = client.get()
    assert (response.headers["Content-Range"], body) == ("bytes 7-8/9", BODY)
    response, body = client.get()
    assert ("Content-Range" in response.headers, body) == (False, BODY)
    response, body = client.get()
    assert (response.headers["Content-Length"], body) == (str(len(BODY) - 3), BODY[:-3])
    response, body = client.get()
    assert (response.headers["Content-Range"], body) == (f"bytes 0-{len(BODY) - 1}/{len(BODY)}", BODY + b"\0\0")
    assert client.get()[1] == b"\xff" + BODY[1:]
    assert client.get()[1] == BODY


def test_a_reset_before_the_headers(services: Services, client: Client) -> None:
    """The client sees its connection reset, and the log no status."""
    install(services, Reset(), times=1)
    with pytest.raises(ConnectionError):
        client.get()
    assert [entry.status for entry in services.requests.entries("get")] == [0]


def test_a_reset_within_the_body(services: Services, client: Client) -> None:
    """What was sent before arrives."""
    install(services, Reset(after=1000), times=1)
    client.send()
    response = client.connection.getresponse()
    assert response.read(1000) == BODY[:1000]
    with pytest.raises(ConnectionError):
        response.read(1)


def test_a_truncated_body_ends_in_order(services: Services, client: Client) -> None:
    """Content-Length tells of more than what comes."""
    install(services, Truncate(1000), times=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.get()
    assert caught.value.partial == BODY[:1000]


@pytest.mark.parametrize("after", [None, 1000])
def test_a_stall_lasts_until_its_fault_is_removed(services: Services, client: Client, after: int | None) -> None:
    """Nothing more comes while the fault is there, and all the rest afterwards."""
    fault = install(services, Stall(after))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(client.get()[1]))
    reader.start()
    assert services.requests.wait_for(bool)
    reader.join(0.1)
    assert reader.is_alive()
    services.faults.remove(fault)
    reader.join(30)
    assert got == [BODY]


def test_stalls_and_delays_never_block_the_end() -> None:
    """The services end at once although answers stall, and their clients see the connections end."""
    with Services() as services:
        services.put("x", BODY)
        clients = [Client(services) for _ in range(3)]
        actions: list[Action] = [Stall(), Stall(5), Delay(1000)]
        for client, action in zip(clients, actions, strict=True):
            install(services, action, times=1)
            client.send()
        assert services.requests.wait_for(lambda entries: len(entries) == 3)
        began = time.monotonic()
    assert time.monotonic() - began < 15
    for client in clients:
        with pytest.raises((http.client.HTTPException, OSError)):
            client.connection.getresponse().read()
        client.connection.close()


def test_an_outage_ends_stalls_too(services: Services, client: Client) -> None:
    """A stalled answer's connection ends with an outage, although its fault stays."""
    install(services, Stall())
    client.send()
    assert services.requests.wait_for(bool)
    services.outage()
    with pytest.raises((http.client.HTTPException, OSError)):
        client.connection.getresponse()


def test_a_rate_holds_back_a_body(services: Services, client: Client) -> None:
    """With a rate, a body takes at least its length divided by the rate."""
    services.pace.rate = len(BODY) * 4
    began = time.monotonic()
    assert client.get()[1] == BODY
    assert time.monotonic() - began >= 0.25


def test_latency_precedes_an_answer(services: Services, client: Client) -> None:
    """With latency, an answer takes at least that long."""
    services.pace.latency = 0.1
    began = time.monotonic()
    assert client.get()[1] == BODY
    assert time.monotonic() - began >= 0.1
