"""What each service's own errors become, by every carrier, and how requests are addressed."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from optfs.config import Carrier
from optfs.credentials.protocol import AwsCredential, GcpCredential
from optfs.demo.faults import Action, Answer, Fault, Reset, Truncate
from optfs.demo.services import Services
from optfs.errors import AccessDenied, AccessError, InvalidResponse, OptfsError, ReadDenied, ServiceError, ServiceUnavailable, VersionGone
from optfs.service.providers import NAMES
from optfs.stores.counters import StoreCounters
from optfs.stores.rejection import RejectedCredential
from optfs.stores.s3 import S3Store
from optfs.stores.s3_requests import Signer
from optfs.values import AccountRoot, ListPage, ObjectInfo, Provider
from tests.support.stores import CARRIERS, PREFIX, ROOTS, DemoGround, HeldSource, deadline, demo_ground, find, list_all, read

AWS_KEYS = AwsCredential("AKIAIOSFODNN7EXAMPLE", "secret", None, None)


def xml(code: str, more: str = "") -> bytes:
    """Return an error of S3."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>m</Message>{more}</Error>'.encode()


def reasons(reason: str) -> bytes:
    """Return an error of GCS."""
    return json.dumps({"error": {"code": 1, "message": "m", "errors": [{"reason": reason}]}}).encode()


def outcome(ground: DemoGround, kind: str, answer: Action) -> OptfsError:
    """Return what the store without retries raises for an answer to one request of a kind."""
    ground.put("p", b"data")
    info = find(ground.raw, "p")
    ground.services.faults.add(Fault(lambda request: request.kind == kind, answer, 1))
    with pytest.raises(OptfsError) as caught:
        list_all(ground.raw) if kind == "list" else read(ground.raw, info)
    return caught.value


CASES: list[tuple[Provider, str, Answer, type[OptfsError], str]] = [
    ("aws", "list", Answer(400, xml("ExpiredToken")), RejectedCredential, "credential"),
    ("aws", "get", Answer(400, xml("ExpiredToken")), RejectedCredential, "credential"),
    ("aws", "get", Answer(403, xml("InvalidAccessKeyId")), RejectedCredential, "credential"),
    ("aws", "get", Answer(403, xml("SignatureDoesNotMatch")), RejectedCredential, "credential"),
    ("aws", "get", Answer(400, xml("TokenRefreshRequired")), RejectedCredential, "credential"),
    ("aws", "list", Answer(403, xml("AccessDenied")), AccessDenied, "optimizely-events-data/v1/account_id=123/"),
    ("aws", "list", Answer(403), AccessDenied, "denies"),
    ("aws", "list", Answer(404, xml("NoSuchBucket")), AccessDenied, "no bucket optimizely-events-data"),
    ("aws", "get", Answer(403, xml("AccessDenied")), ReadDenied, "denies"),
    ("gcp", "get", Answer(403, reasons("forbidden")), ReadDenied, "denies"),
    ("aws", "get", Answer(404, xml("NoSuchBucket")), AccessDenied, "no bucket"),
    ("aws", "get", Answer(404, xml("NoSuchKey")), VersionGone, "'p' was changed or deleted"),
    ("aws", "get", Answer(412, xml("PreconditionFailed")), VersionGone, "open it again"),
    ("aws", "get", Answer(416, xml("InvalidRange")), VersionGone, "open it again"),
    ("aws", "list", Answer(301, xml("PermanentRedirect"), {"x-amz-bucket-region": "eu-central-1"}), ServiceError, "in eu-central-1"),
    (
        "aws",
        "list",
        Answer(400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")),
        ServiceError,
        "in eu-west-1, not in us-east-1",
    ),
    ("aws", "list", Answer(400, xml("RequestTimeout")), ServiceUnavailable, "try again"),
    ("aws", "get", Answer(503, xml("SlowDown")), ServiceUnavailable, "try again"),
    ("aws", "get", Answer(400, xml("KMS.ThrottlingException")), ServiceUnavailable, "try again"),
    ("aws", "get", Answer(400, xml("ThrottledException")), ServiceUnavailable, "try again"),
    ("aws", "list", Answer(400, xml("InvalidArgument")), ServiceError, "InvalidArgument"),
    ("aws", "list", Answer(400, xml("Odd&#10;2026-11-26 INFO forged")), ServiceError, r"Odd\n2026"),
    ("gcp", "list", Answer(400, reasons("odd\n2026-11-26 INFO forged")), ServiceError, r"odd\n2026"),
    ("aws", "list", Answer(206, b"<ListBucketResult></ListBucketResult>"), InvalidResponse, "unexpected status 206"),
    ("gcp", "list", Answer(206, b"{}"), InvalidResponse, "unexpected status 206"),
    ("gcp", "list", Answer(401), RejectedCredential, "credential"),
    ("gcp", "get", Answer(401), RejectedCredential, "credential"),
    ("gcp", "list", Answer(403, reasons("forbidden")), AccessDenied, "optimizely-e3-123/v1/account_id=123/"),
    ("gcp", "get", Answer(403, reasons("userRateLimitExceeded")), ServiceUnavailable, "try again"),
    ("gcp", "list", Answer(403, reasons("rateLimitExceeded")), ServiceUnavailable, "try again"),
    ("gcp", "list", Answer(400, reasons("required")), AccessDenied, "--gcs-user-project"),
    ("gcp", "list", Answer(400, reasons("userProjectMissing")), AccessDenied, "--gcs-user-project"),
    ("gcp", "list", Answer(404, reasons("notFound")), AccessDenied, "no bucket optimizely-e3-123"),
    ("gcp", "get", Answer(404, reasons("notFound")), VersionGone, "open it again"),
    ("gcp", "get", Answer(416), VersionGone, "open it again"),
    ("gcp", "get", Answer(412), VersionGone, "open it again"),
    ("gcp", "get", Answer(206, b"data", {"Content-Range": "bytes 0-3/4", "X-Goog-Generation": "7"}), VersionGone, "open it again"),
    ("aws", "get", Answer(206, b"data", {"Content-Range": "bytes 0-3/4", "ETag": '"other"'}), VersionGone, "open it again"),
    ("aws", "get", Answer(206, b"data", {"Content-Range": "bytes 0-3/4"}), InvalidResponse, "a proxy or a sign-in page"),
    ("gcp", "get", Answer(206, b"data", {"Content-Range": "bytes 0-3/4"}), InvalidResponse, "a proxy or a sign-in page"),
    ("aws", "get", Answer(200, b"<a/>", {"Content-Type": "text/html"}), InvalidResponse, "a proxy or a sign-in page"),
    ("gcp", "get", Answer(200, b"<a/>", {"Content-Type": "text/html"}), InvalidResponse, "a proxy or a sign-in page"),
    ("aws", "list", Answer(200, b'<?xml version="1.0" encoding="x-foo"?><ListBucketResult/>'), InvalidResponse, "isn't a listing"),
    ("aws", "list", Answer(503, b'<?xml version="1.0" encoding="x-foo"?><Error/>'), ServiceUnavailable, "try again"),
    ("gcp", "list", Answer(200, b'{"items":' + b"[" * 200_000), InvalidResponse, "isn't a listing"),
    ("gcp", "list", Answer(503, b"[" * 200_000), ServiceUnavailable, "try again"),
    ("gcp", "list", Answer(200, b'{"error": {"code": 503}}'), InvalidResponse, "isn't a listing"),
    ("gcp", "list", Answer(200, b'{"message": "please sign in"}'), InvalidResponse, "isn't a listing"),
    ("gcp", "list", Answer(400, reasons("invalid")), ServiceError, "invalid"),
    ("gcp", "list", Answer(429), ServiceUnavailable, "try again"),
]


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """Give each carrier in turn."""
    found: Carrier = request.param
    return found


@pytest.mark.parametrize(("provider", "kind", "answer", "error", "text"), CASES)
def test_a_services_errors_have_one_meaning_each(
    provider: Provider, kind: str, answer: Answer, error: type[OptfsError], text: str, carrier: Carrier
) -> None:
    """The class says what is done about it, the message what the user can do, in one line; one request is made."""
    with demo_ground(provider, carrier) as ground:
        raised = outcome(ground, kind, answer)
        assert ground.services.requests.count() == 2
        counted = ground.counters.snapshot()
        assert counted.requests == ({"list": 2} if kind == "list" else {"list": 1, "get": 1})
        assert sum(counted.statuses.values()) == 2
    assert type(raised) is error
    assert text in raised.message
    assert "\n" not in raised.message


@pytest.mark.parametrize(
    ("provider", "answer", "wanted"),
    [
        ("aws", Answer(503, xml("SlowDown"), {"x-amz-request-id": "REQ7"}), ("503", "SlowDown", "REQ7")),
        ("gcp", Answer(503, reasons("backendError"), {"X-GUploader-UploadID": "UP7"}), ("503", "backendError", "UP7")),
    ],
)
def test_the_log_gets_what_support_asks_for(provider: Provider, answer: Answer, wanted: tuple[str, ...], carrier: Carrier) -> None:
    """Status, code and the service's id of the request."""
    with demo_ground(provider, carrier) as ground:
        detail = outcome(ground, "get", answer).detail
    assert [text for text in wanted if text not in detail] == []


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_a_refusal_names_the_credential_that_was_used(provider: Provider, carrier: Carrier) -> None:
    """So that one which was replaced meanwhile isn't renewed once more. It isn't shown."""
    with demo_ground(provider, carrier) as ground:
        ground.put("p", b"data")
        used = ground.source.held
        ground.services.expire_credentials()
        with pytest.raises(RejectedCredential) as caught:
            list_all(ground.raw)
        assert caught.value.credential is used
        secret = used.secret_key if isinstance(used, AwsCredential) else used.token
        assert secret not in repr(caught.value) + str(caught.value) + caught.value.detail


def test_a_project_is_billed_only_when_asked_for(carrier: Carrier) -> None:
    """`userProject` is in each request or in none."""
    for project in (None, "my-project"):
        with Services(account="123") as services:
            ground = DemoGround(services, "gcp", carrier, user_project=project)
            ground.put("p", b"data")
            read(ground.store, find(ground.store, "p"))
            assert [entry.query.get("userProject") for entry in services.requests.entries()] == [project, project]
            ground.store.close()


@pytest.mark.parametrize(
    ("bucket", "host", "path"),
    [
        ("optimizely-events-data", "optimizely-events-data.s3.us-east-1.amazonaws.com", ""),
        ("with.dots", "s3.us-east-1.amazonaws.com", "/with.dots"),
    ],
)
def test_amazon_is_addressed_by_the_buckets_host_name(bucket: str, host: str, path: str) -> None:
    """Unless the certificate wouldn't cover it."""
    root = AccountRoot("1", "aws", bucket, "v1/account_id=1/")
    store = S3Store(root, HeldSource(root, lambda: AWS_KEYS), StoreCounters(), endpoint_url=None, timeout=30.0, user_agent="x")
    assert (store._transport.host, store._path) == (host, path)
    store.close()


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_a_credential_of_the_other_provider_is_refused(provider: Provider, carrier: Carrier) -> None:
    """With an error, before anything is sent."""
    with demo_ground(provider, carrier) as ground:
        ground.source.held = GcpCredential("t", None) if provider == "aws" else AWS_KEYS
        with pytest.raises(AccessError, match=NAMES[provider]):
            list_all(ground.store)
        assert ground.services.requests.count() == 0


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("optfs.stores.gcs", ("botocore", "boto3", "google")),
        ("optfs.stores.s3", ("boto3", "google", "botocore.client", "botocore.session")),
        ("optfs.stores.gcs_sdk", ("botocore", "boto3")),
        ("optfs.stores.s3_sdk", ("google",)),
        ("optfs.service.providers", ("botocore", "google", "optfs.stores.s3_sdk", "optfs.stores.gcs_sdk")),
    ],
)
def test_only_what_is_used_is_imported(module: str, unwanted: tuple[str, ...]) -> None:
    """A mount must be ready in a second."""
    program = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_roots_are_those_of_the_services() -> None:
    """A store tells where its data lies."""
    for provider in ROOTS:
        with demo_ground(provider) as ground:
            assert ground.store.root == ROOTS[provider]


def entry(key: str, *, size: str = "5", moment: str = "2026-11-01T00:00:01.500Z", tag: str = "abc-2") -> str:
    """Return one object of a listing of S3."""
    told = f"<ETag>&quot;{tag}&quot;</ETag>"
    return f"<Contents><Key>{key}</Key><LastModified>{moment}</LastModified>{told}<Size>{size}</Size></Contents>"


def page(body: str) -> bytes:
    """Return a listing of S3."""
    return f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{body}</ListBucketResult>'.encode()


def items(**changes: object) -> bytes:
    """Return a listing of GCS with one object that has other fields than it should."""
    item: dict[str, object] = {"name": PREFIX + "a", "size": "5", "updated": "2026-11-01T00:00:01.500Z", "generation": "17"}
    return json.dumps({"items": [{name: value for name, value in (item | changes).items() if value is not None}]}).encode()


OUTSIDE = ["v1/account_id=9/", "p/", PREFIX + "a"]
"""What is no common prefix below the account's."""

NO_LISTINGS: list[tuple[Provider, bytes]] = [
    ("aws", b""),
    ("aws", b"<html></html>"),
    ("aws", b"<Error><Code>InternalError</Code></Error>"),
    ("aws", b"\x00\xff"),
    ("aws", page("<IsTruncated>true</IsTruncated>")),
    ("aws", page(f"<Contents><Key>{PREFIX}a</Key></Contents>")),
    ("aws", page(entry("", size="1"))),
    ("aws", page(entry(PREFIX, size=""))),
    ("aws", page(entry(PREFIX, size="x"))),
    ("aws", page(entry(PREFIX, moment="yesterday"))),
    ("aws", page("<CommonPrefixes></CommonPrefixes>")),
    ("aws", page(entry(PREFIX + "a"))[:-30]),
    ("aws", page(entry("v1/account_id=9/a"))),
    ("aws", page(entry(PREFIX, size="-1"))),
    ("aws", page(entry(PREFIX, size=str(1 << 63)))),
    ("aws", page(entry(PREFIX, moment="2026-11-01T00:00:1e999Z"))),
    ("aws", page(entry(PREFIX, moment="2026-11-01T00:00:1e30Z"))),
    ("aws", page(entry(PREFIX, tag="a&#10;b"))),
    ("aws", page(entry(PREFIX, tag="\u20ac"))),
    ("aws", page(entry(PREFIX, tag=""))),
    ("aws", b'<!DOCTYPE x [<!ENTITY e "entities">]>' + page("<Name>&e;</Name>")),
    ("gcp", items(size=-1)),
    ("gcp", items(updated="2026-11-01T00:00:1e999Z")),
    ("gcp", items().replace(b'"17"', b"1e999")),
    ("gcp", items().replace(b'"5"', b"1e999")),
    *[("gcp", body) for body in (b"", b"[]", b"null", b"<html>", b'{"items": 5}', b'{"items": ["a"]}')],
    *[("gcp", items(**{name: None})) for name in ("name", "size", "updated", "generation")],
    ("gcp", items(name=5)),
    *[("aws", page(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>")) for name in OUTSIDE],
    *[("gcp", json.dumps({"prefixes": [name]}).encode()) for name in OUTSIDE],
    *[("gcp", items(**{name: "x"})) for name in ("name", "size", "updated", "generation")],
]


def test_requests_signed_before_the_clock_was_corrected_are_tried_again() -> None:
    """When a wrong clock is set right, all that are under way are refused: the first to hear of it corrected the clock, the others gave up."""
    signer = Signer(lambda: 1_000_000.0)
    signed = threading.Barrier(4, timeout=60)
    right, wrong = ({"Date": formatdate(moment, usegmt=True)} for moment in (1_000_000, 1_003_600))

    def refused(headers: Mapping[str, str]) -> type[OptfsError]:
        signer.signed("https://bucket.s3.amazonaws.com/key", {}, AWS_KEYS)
        signed.wait()
        return type(signer.correct(headers, "skewed"))

    with ThreadPoolExecutor(4) as threads:
        for headers in (wrong, right, wrong):
            assert list(threads.map(refused, [headers] * 4)) == [ServiceUnavailable] * 4
        assert list(threads.map(refused, [wrong] * 4)) == [AccessDenied] * 4


@pytest.mark.parametrize(("provider", "body"), NO_LISTINGS)
def test_what_is_no_listing_is_never_taken_for_one(provider: Provider, body: bytes, carrier: Carrier) -> None:
    """Not for an empty one, nor for a part of one."""
    with demo_ground(provider, carrier) as ground:
        assert type(outcome(ground, "list", Answer(200, body))) is InvalidResponse


@pytest.mark.parametrize("provider", ["aws", "gcp"])
@pytest.mark.parametrize("action", [Truncate(20), Reset(20)], ids=repr)
def test_a_listing_that_breaks_off_is_the_networks_failure(provider: Provider, action: Action, carrier: Carrier) -> None:
    """Not an answer that makes no sense, which is tried less often."""
    with demo_ground(provider, carrier) as ground:
        assert type(outcome(ground, "list", action)) is ServiceUnavailable


def test_what_listings_tell_is_the_same_by_every_carrier() -> None:
    """Names still encoded or not, times with fractions, ETags without quotes, the token of the next page."""
    for body, key in (
        (page("<EncodingType>url</EncodingType>" + entry(PREFIX.replace("=", "%3D") + "x+y%2Bz%253A%E9")), PREFIX + "x y+z%3A\udce9"),
        (page(entry(PREFIX + "a+b%3A")), PREFIX + "a+b%3A"),
    ):
        prefix = f"<CommonPrefixes><Prefix>{PREFIX}p/</Prefix></CommonPrefixes>".encode()
        more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t/+=</NextContinuationToken></ListBucketResult>"
        answer = Answer(200, body.replace(b"</ListBucketResult>", prefix + more))
        for carrier in CARRIERS:
            with demo_ground("aws", carrier) as ground:
                ground.services.faults.add(Fault(lambda _: True, answer, 1))
                found = ground.raw.list_page(PREFIX, delimiter=None, continuation=None, deadline=deadline())
            assert found == ListPage((ObjectInfo(key, 5, 1793491201.5, "abc-2", "aws"),), (PREFIX + "p/",), "t/+=")
