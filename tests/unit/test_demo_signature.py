"""Signatures are checked against what came over the wire, and ranges are read as the RFC says."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from optfs.demo import ranges
from optfs.demo.services import Services


@pytest.fixture
def services() -> Iterator[Services]:
    """Services with one object of an odd name."""
    with Services(gcs=False) as running:
        running.put("event=a b%3A(é)+/x", b"0123456789")
        yield running


def signed(services: Services, target: str, headers: dict[str, str], *, region: str = "us-east-1") -> dict[str, str]:
    """Return the headers that botocore would send."""
    keys = services.issuer.issue_keys(3600)
    request = AWSRequest("GET", services.s3_url + target, headers=headers)
    S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.session_token), "s3", region).add_auth(request)
    return dict(request.headers.items())


def send(services: Services, target: str, headers: dict[str, str]) -> tuple[int, str]:
    """Send exactly this, and return the status with the body."""
    host = urlsplit(services.s3_url)
    with requests.Session() as session:
        session.trust_env = False
        prepared = session.prepare_request(requests.Request("GET", services.s3_url, headers=headers))
        prepared.url = f"{host.scheme}://{host.netloc}{target}"
        response = session.send(prepared, timeout=30)
        return response.status_code, response.text


KEY = "/optimizely-events-data/v1/account_id%3D123/event%3Da%20b%253A%28%C3%A9%29%2B/x"
LIST = "/optimizely-events-data?encoding-type=url&list-type=2&prefix=v1%2Faccount_id%3D123%2F"


def test_odd_names_are_signed_as_they_are_encoded(services: Services) -> None:
    """What botocore signs is accepted, for objects and for listings."""
    assert send(services, KEY, signed(services, KEY, {"Range": "bytes=1-3"})) == (206, "123")
    status, body = send(services, LIST, signed(services, LIST, {}))
    assert status == 200
    assert "<Key>v1/account_id%3D123/event%3Da+b%253A%28%C3%A9%29%2B/x</Key>" in body


def test_what_was_not_signed_is_refused(services: Services) -> None:
    """Another path or query, another value of a signed header, an x-amz header outside the signature, an old day's scope."""
    refused = (403, "SignatureDoesNotMatch")
    headers = signed(services, KEY, {"Range": "bytes=1-3"})
    changed = headers | {"Range": "bytes=0-9"}
    extra = headers | {"x-amz-extra": "1"}
    payload = headers | {"X-Amz-Content-SHA256": "0" * 64}
    unscoped = headers | {"Authorization": headers["Authorization"].replace("/20", "/19", 1)}
    for target, sent in ((LIST, headers), (KEY + "?a=b", headers), (KEY, changed), (KEY, extra), (KEY, payload), (KEY, unscoped)):
        status, body = send(services, target, sent)
        assert (status, body.partition("<Code>")[2].partition("<")[0]) == refused, sent


def test_malformed_authorizations_are_refused(services: Services) -> None:
    """Another algorithm, another region, no date, nothing at all."""
    headers = signed(services, LIST, {})
    undated = {name: value for name, value in headers.items() if name != "X-Amz-Date"}
    for sent in (headers | {"Authorization": "AWS x:y"}, signed(services, LIST, {}, region="eu-west-1"), undated):
        status, body = send(services, LIST, sent)
        assert (status, "AuthorizationHeaderMalformed" in body) == (400, True)
    assert send(services, LIST, {})[0] == 403


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 8)),
        ("bytes=2-99", (2, 8)),
        ("bytes=-3", (7, 3)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    """Of ten bytes."""
    assert ranges.resolve(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_ranges_beyond_the_end(header: str) -> None:
    """Nothing of them exists."""
    with pytest.raises(ranges.Unsatisfiable):
        ranges.resolve(header, 10)
