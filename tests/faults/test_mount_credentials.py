"""Credentials that end too early, and an Authentication API that fails in every way, under a real mount of both services.

Nobody notices a renewal that works. Where none works, what is cached can be read all the same, the rest is EACCES in time, all recovers
within seconds of the cause being gone, and the log tells each change of state once.
"""

import errno
import itertools
import os
import random
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optfs.demo.faults import Action, Answer, Delay, Fault, Html, Redirect, Reset, Stall
from optfs.demo.services import Services
from optfs.demo.traffic import Entry
from optfs.values import MiB
from tests.support.broken import SLACK, TIMEOUT, Ground, all_at_once, ground, read, readable

CONTENT = random.Random(5).randbytes(300_000)
BIG = random.Random(6).randbytes(24 * MiB)
PROVIDERS = ("aws", "gcp")
FILES = 600


def key_of(provider: str, number: int) -> str:
    """Return the key of a file that only one of the services has; each lies in a folder of its own, so that no walk fetches it ahead."""
    return f"type={provider}/date=2026-11-01/experiment={number:04}/part-0.parquet"


def fill(services: Services, count: int) -> None:
    """Put files into each service that the other one hasn't."""
    for provider, bucket in (("aws", services.s3_bucket), ("gcp", services.gcs_bucket)):
        for number in range(count):
            bucket.put(services.prefix + key_of(provider, number), CONTENT)


def refused(entries: list[Entry]) -> dict[str, int]:
    """Return how many requests each store turned away."""
    return {
        provider: sum(entry.service == service and entry.status >= 400 for entry in entries)
        for provider, service in (("aws", "s3"), ("gcp", "gcs"))
    }


class Fresh:
    """Gives out files that nobody has read yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def paths(self, ready: Ground) -> dict[str, Path]:
        """Return one of each service, the last ones first: no walk over the files fetches them ahead."""
        number = 19 - next(self._numbers)
        return {provider: ready.path(key_of(provider, number)) for provider in PROVIDERS}


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Ground, Fresh]]:
    """A mount of both services with a block cache, and files that nobody has read."""
    services = Services()
    fill(services, 20)
    with ground(services, tmp_path, "auto", "fuse3", "--cache-size", "1GiB") as ready:
        yield ready, Fresh()


@pytest.mark.timeout(300)
def test_credentials_of_20_seconds_last_for_two_minutes_of_reading(tmp_path: Path) -> None:
    """Nothing fails. S3 never sees an expired credential; GCS, which announces no expiry, turns away one generation of them."""
    services = Services(credential_lifetime=20.0)
    fill(services, FILES)
    with ground(services, tmp_path, "auto", "fuse3", "--listing-ttl", "1s") as ready:
        order = list(range(FILES))
        random.Random(7).shuffle(order)
        began = time.monotonic()
        for done, number in enumerate(order, 1):
            if (age := time.monotonic() - began) > 120:
                break
            got = all_at_once({provider: ready.path(key_of(provider, number)) for provider in PROVIDERS}, read)
            assert {provider: outcome.errno for provider, outcome in got.items()} == dict.fromkeys(PROVIDERS, 0), f"after {age:.0f} s"
            assert all(outcome.content == CONTENT for outcome in got.values())
            time.sleep(max(0.0, began + 120 * done / FILES - time.monotonic()))
        entries = services.requests.entries()
        gets = [entry for entry in entries if entry.kind == "get"]
        assert {entry.service for entry in gets if entry.time > began + 60} == {"s3", "gcs"}
        turned_away = [entry for entry in entries if entry.service == "gcs" and entry.status >= 400]
        assert refused(entries)["aws"] == 0
        assert {entry.status for entry in turned_away} <= {401}
        # Requests that are under way together are turned away together: within the seconds that one renewal takes.
        assert all(entry.time - turned_away[0].time < 5 for entry in turned_away)
        assert ready.warnings() == []


API_FAULTS: dict[str, Action | None] = {
    "401, revoked": None,
    "403": Answer(403, b'{"code": "Forbidden", "message": "no", "uuid": "1"}'),
    "404": Answer(404, b'{"code": "NotFound", "message": "no", "uuid": "1"}'),
    "429": Answer(429, headers={"Retry-After": "600"}),
    "500": Answer(500),
    "garbage": Answer(200, b"\x00{]"),
    "empty": Answer(200),
    "a web page": Html(200),
    "redirect": Redirect("http://127.0.0.1:1/"),
    "reset": Reset(None),
    "after 60 s": Delay(60.0),
    "never": Stall(None),
}


@pytest.mark.parametrize("name", API_FAULTS)
def test_an_api_that_gives_no_credentials(both: tuple[Ground, Fresh], name: str) -> None:
    """What is cached stays readable, the rest is EACCES in time, all works seconds after the cause is gone, and the log has it once."""
    ready, fresh = both
    services = ready.services
    held = fresh.paths(ready)
    lost = [fresh.paths(ready) for _ in range(4)]
    for paths in [held, *lost]:
        for path in paths.values():
            path.stat()
    for path in held.values():
        readable(path, CONTENT)
    before = len(ready.mount.text())
    action = API_FAULTS[name]
    if action is None:
        services.revoke()
        fault = None
    else:
        fault = ready.break_all("credentials", action)
    services.expire_credentials()
    wanted = {f"{provider} {number}": path for number, paths in enumerate(lost) for provider, path in paths.items()}
    got = all_at_once(wanted, read)
    # Of an API that is silent a reader may learn at the very end of its time only.
    silent = {errno.ETIMEDOUT} if isinstance(action, Delay | Stall) else set()
    assert {key: outcome.errno for key, outcome in got.items() if outcome.errno not in {errno.EACCES} | silent} == {}
    assert max(outcome.seconds for outcome in got.values()) < TIMEOUT + SLACK
    for path in held.values():
        assert read(path).content == CONTENT
    if fault is None:
        services.restore()
    else:
        services.faults.remove(fault)
    for path in wanted.values():
        readable(path, CONTENT, 5 + SLACK)
    text = ready.mount.text()[before:]
    for provider in PROVIDERS:
        assert text.count(f"credentials for {provider} can't be renewed") == 1
        assert text.count(f"credentials for {provider} are renewed again") == 1
    assert len(ready.warnings(since=before)) <= 6, text


def test_a_token_command_that_hangs(tmp_path: Path) -> None:
    """Readers get EACCES before their time is up, the log names the command once, and all works seconds after it answers again."""
    services = Services()
    fill(services, 20)
    fresh = Fresh()
    stuck = tmp_path / "stuck"
    program = f"if test -e {shlex.quote(str(stuck))}; then sleep 600; fi; echo {services.token}"
    command = shlex.join(["sh", "-c", program])
    with ground(services, tmp_path, "auto", "fuse3", "--token-command", command) as ready:
        wanted = {f"{provider} {number}": path for number in range(3) for provider, path in fresh.paths(ready).items()}
        for path in wanted.values():
            path.stat()
        stuck.touch()
        services.expire_credentials()
        got = all_at_once(wanted, read)
        assert {outcome.errno for outcome in got.values()} == {errno.EACCES}
        stuck.unlink()
        for path in wanted.values():
            readable(path, CONTENT, 5 + SLACK)
        for provider in PROVIDERS:
            assert ready.mount.text().count(f"credentials for {provider} can't be renewed: the token command (sh) doesn't answer") == 1


def test_the_api_may_fail_while_the_credentials_live(both: tuple[Ground, Fresh]) -> None:
    """Nobody notices."""
    ready, fresh = both
    fault = ready.break_all("credentials", Answer(500))
    for path in fresh.paths(ready).values():
        got = read(path)
        assert (got.content, got.errno) == (CONTENT, 0)
    ready.services.faults.remove(fault)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_credentials_that_expire_within_a_read(both: tuple[Ground, Fresh], provider: str) -> None:
    """They end between two blocks of a stream: one renewal for all ranges that are under way, and every byte is right."""
    ready, fresh = both
    services = ready.services
    path = fresh.paths(ready)[provider]
    services.put(str(path.relative_to(ready.mount.account)), BIG)
    services.requests.clear()
    services.pace.rate = 16 * MiB
    fd = os.open(path, os.O_RDONLY)
    try:
        content = bytearray(os.read(fd, 128 * 1024))
        services.expire_credentials()
        while piece := os.read(fd, 128 * 1024):
            content += piece
    finally:
        os.close(fd)
    assert content == BIG
    assert [entry.key for entry in services.requests.entries("credentials")] == [provider]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_credentials_that_end_in_quick_succession(both: tuple[Ground, Fresh], provider: str) -> None:
    """Nobody notices: each was accepted before it ended, so each is renewed."""
    ready, fresh = both
    ready.services.requests.clear()
    for _ in range(4):
        ready.services.expire_credentials()
        got = read(fresh.paths(ready)[provider])
        assert (got.content, got.errno) == (CONTENT, 0)
    assert ready.services.requests.count("credentials") == 4
    assert ready.warnings() == []


EARLY: dict[str, tuple[str, Answer]] = {
    "ExpiredToken": ("s3", Answer(400, b"<Error><Code>ExpiredToken</Code></Error>")),
    "InvalidAccessKeyId": ("s3", Answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")),
    "401": ("gcs", Answer(401, b'{"error": {"code": 401, "errors": [{"reason": "authError"}]}}')),
}


@pytest.mark.parametrize("name", EARLY)
def test_a_store_that_refuses_a_credential_before_its_time(both: tuple[Ground, Fresh], name: str) -> None:
    """Once: one renewal and one more request. For ever: EACCES, after a bounded number of either; and all works again afterwards."""
    ready, fresh = both
    services = ready.services
    service, answer = EARLY[name]
    provider = "aws" if service == "s3" else "gcp"
    path, other, third = (fresh.paths(ready)[provider] for _ in range(3))
    for file in (path, other, third):
        file.stat()
    services.requests.clear()
    services.faults.add(Fault(lambda request: request.service == service, answer, times=1))
    got = read(path)
    assert (got.content, got.errno) == (CONTENT, 0)
    assert services.requests.count("get") == 2
    assert services.requests.count("credentials") == 1
    services.requests.clear()
    fault = services.faults.add(Fault(lambda request: request.service == service, answer))
    outcomes = [read(other) for _ in range(5)]
    assert {outcome.errno for outcome in outcomes} == {errno.EACCES}
    assert services.requests.count("credentials") <= 2
    assert services.requests.count("get") <= 12
    services.faults.remove(fault)
    readable(third, CONTENT, 5 + SLACK)
