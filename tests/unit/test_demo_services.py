"""The embedded services behave as Optimizely's API, S3 and GCS do, judged by the services' own client libraries."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from google.cloud import storage
from google.oauth2.credentials import Credentials

from optfs.demo.services import Services

BUCKET = "optimizely-events-data"
GCS_BUCKET = "optimizely-e3-123"


CLIENTS = contextlib.ExitStack()
"""What the clients of the running test need to close."""


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """Close the clients that a test made."""
    with CLIENTS:
        yield


@pytest.fixture
def services() -> Iterator[Services]:
    """Services of an account with a few objects."""
    with Services(page_size=2) as running:
        for name in ("a/1", "a/2", "b c/é%3A+", "d", "e/1"):
            running.put("type=x/" + name, name.encode() * 10)
        yield running


def grant(services: Services, path: str = "", *, duration: str = "1h") -> Any:
    """Return what the API answers to a request for credentials."""
    headers = {"Authorization": f"Bearer {services.token}"}
    response = requests.get(f"{services.api_url}/export/credentials{path}", headers=headers, params={"duration": duration}, timeout=30)
    response.raise_for_status()
    return response.json()


def s3(services: Services, credentials: dict[str, Any] | None = None, **changes: str) -> Any:
    """Return a boto3 client with credentials of the API, some of them changed."""
    keys = credentials or grant(services)["credentials"]
    arguments = {
        "aws_access_key_id": keys["accessKeyId"],
        "aws_secret_access_key": keys["secretAccessKey"],
        "aws_session_token": keys["sessionToken"],
        **changes,
    }
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=services.s3_url, config=config, **arguments)
    CLIENTS.callback(client.close)
    return client


def refusal(call: Any, *arguments: Any, **keywords: Any) -> tuple[int, str]:
    """Return status and code of the error that a call of boto3 ends with."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **keywords)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_boto3_lists_all_pages_in_order_of_bytes(services: Services) -> None:
    """Pages join without a gap, and names with spaces, percent and plus signs survive the encoding."""
    pages = list(s3(services).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=services.prefix))
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    assert keys == [services.prefix + "type=x/" + name for name in ("a/1", "a/2", "b c/é%3A+", "d", "e/1")]
    assert len(pages) == 3
    assert services.requests.count("list") == 3


def test_a_delimiter_gives_each_common_prefix_once_over_pages(services: Services) -> None:
    """A common prefix that ends a page doesn't come again on the next."""
    pages = list(s3(services).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=services.prefix + "type=x/", Delimiter="/"))
    prefixes = [item["Prefix"].rpartition("type=x/")[2] for page in pages for item in page.get("CommonPrefixes", [])]
    assert prefixes == ["a/", "b c/", "e/"]
    assert [item["Key"][-1] for page in pages for item in page.get("Contents", [])] == ["d"]


def test_s3_answers_ranges_of_the_version_asked_for(services: Services) -> None:
    """If-Match pins a version; a new put makes the old one fail with 412."""
    client = s3(services)
    key = services.prefix + "type=x/d"
    answer = client.get_object(Bucket=BUCKET, Key=key, Range="bytes=2-4")
    assert (answer["Body"].read(), answer["ContentRange"]) == (b"ddd", "bytes 2-4/10")
    assert client.get_object(Bucket=BUCKET, Key=key, IfMatch=answer["ETag"])["Body"].read() == b"d" * 10
    services.put("type=x/d", b"d" * 10)
    assert refusal(client.get_object, Bucket=BUCKET, Key=key, IfMatch=answer["ETag"]) == (412, "PreconditionFailed")
    assert refusal(client.get_object, Bucket=BUCKET, Key=key, Range="bytes=10-") == (416, "InvalidRange")
    assert refusal(client.get_object, Bucket=BUCKET, Key=key + "x") == (404, "NoSuchKey")


def test_s3_denies_all_but_listing_and_reading_the_accounts_folder(services: Services) -> None:
    """HeadBucket, HeadObject, GetBucketLocation, the root's listing and other accounts are denied."""
    client = s3(services)
    for call, keywords in (
        (client.head_bucket, {}),
        (client.head_object, {"Key": services.prefix + "type=x/d"}),
        (client.get_bucket_location, {}),
        (client.list_objects_v2, {}),
        (client.list_objects_v2, {"Prefix": "v1/account_id=123"}),
        (client.get_object, {"Key": "v1/account_id=9/x"}),
        (client.delete_object, {"Key": services.prefix + "type=x/d"}),
    ):
        assert refusal(call, Bucket=BUCKET, **keywords)[0] == 403


def test_s3_checks_keys_token_and_signature(services: Services) -> None:
    """Each wrong part of a credential has S3's own code; static keys work without a session token."""
    arguments = {"Bucket": BUCKET, "Prefix": services.prefix}
    assert refusal(s3(services, aws_access_key_id="ASIAX").list_objects_v2, **arguments) == (403, "InvalidAccessKeyId")
    assert refusal(s3(services, aws_secret_access_key="x").list_objects_v2, **arguments) == (403, "SignatureDoesNotMatch")
    assert refusal(s3(services, aws_session_token="x").list_objects_v2, **arguments) == (400, "InvalidToken")
    keys = services.static_keys()
    static = {"accessKeyId": keys.access_key, "secretAccessKey": keys.secret_key, "sessionToken": None}
    assert s3(services, static).list_objects_v2(**arguments)["KeyCount"] == 2


def test_credentials_expire_by_the_clock_and_on_demand() -> None:
    """Keys and tokens stop to work after their lifetime, and at once after `expire_credentials`."""
    now = [time.time()]
    with Services(credential_lifetime=60, clock=lambda: now[0]) as services:
        keys = grant(services)["credentials"]
        assert keys["expiration"] == int((now[0] + 60) * 1000)
        client = s3(services, keys)
        token = grant(services, "/gcp")["token"]
        assert client.list_objects_v2(Bucket=BUCKET, Prefix=services.prefix)["KeyCount"] == 0
        assert gcs_status(services, token) == 200
        now[0] += 61
        assert refusal(client.list_objects_v2, Bucket=BUCKET, Prefix=services.prefix) == (400, "ExpiredToken")
        assert gcs_status(services, token) == 401
        fresh = grant(services, "/gcp")["token"]
        assert gcs_status(services, fresh) == 200
        services.expire_credentials()
        assert gcs_status(services, fresh) == 401


def test_s3_refuses_a_clock_that_is_off() -> None:
    """A request signed more than 15 minutes ago is too skewed."""
    with Services(clock=lambda: time.time() + 16 * 60) as services:
        assert refusal(s3(services).list_objects_v2, Bucket=BUCKET, Prefix=services.prefix) == (403, "RequestTimeTooSkewed")


def gcs_status(services: Services, token: str) -> int:
    """Return the status of a listing with an OAuth token."""
    url = f"{services.gcs_url}/storage/v1/b/{GCS_BUCKET}/o"
    return requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code


def test_where_it_is_not_strict_other_programs_may_read_gcs_their_way() -> None:
    """Without a token, with an empty page token, and by the XML API's addresses, all of which is refused otherwise."""
    for strict, expected in ((False, [200, 206]), (True, [401, 401])):
        with Services(strict=strict) as services:
            services.put("type=a/part 0", b"0123456789")
            key = f"{services.prefix}type=a/part 0"
            listed = requests.get(
                f"{services.gcs_url}/storage/v1/b/{GCS_BUCKET}/o", {"pageToken": "", "prefix": services.prefix}, timeout=30
            )
            got = requests.get(f"{services.gcs_url}/{GCS_BUCKET}/{key}", headers={"Range": "bytes=2-4"}, timeout=30)
            assert [listed.status_code, got.status_code] == expected
            if not strict:
                assert [item["name"] for item in listed.json()["items"]] == [key]
                assert got.content == b"234"


def test_google_cloud_storage_lists_and_reads(services: Services) -> None:
    """Google's client sees the same objects, folders and ranges, pinned by generation; who bills is written down."""
    token = grant(services, "/gcp")["token"]
    client = storage.Client(project="p", credentials=Credentials(token), client_options={"api_endpoint": services.gcs_url})
    CLIENTS.callback(client._http.close)
    bucket = client.bucket(GCS_BUCKET, user_project="payer")
    blobs = list(client.list_blobs(bucket, prefix=services.prefix, fields="items(name,size,generation,updated),nextPageToken"))
    assert [blob.name for blob in blobs] == services.gcs_bucket.keys()
    assert all(entry.query["userProject"] == "payer" for entry in services.requests.entries("list"))
    listing = client.list_blobs(bucket, prefix=services.prefix + "type=x/", delimiter="/")
    assert [blob.name[-1] for blob in listing] == ["d"]
    assert sorted(prefix.rpartition("x/")[2] for prefix in listing.prefixes) == ["a/", "b c/", "e/"]
    odd = blobs[2]
    assert odd.download_as_bytes(start=1, end=3) == ("b c/é%3A+".encode() * 10)[1:4]
    old = requests.Request("GET", f"{services.gcs_url}/storage/v1/b/{GCS_BUCKET}/o/{blobs[3].name.replace('/', '%2F')}")
    old.params = {"alt": "media", "generation": str(blobs[3].generation)}
    old.headers = {"Authorization": f"Bearer {token}"}
    with requests.Session() as session:
        assert session.send(session.prepare_request(old), timeout=30).content == b"d" * 10
        services.put("type=x/d", b"new")
        assert session.send(session.prepare_request(old), timeout=30).status_code == 404
        metadata = f"{services.gcs_url}/storage/v1/b/{GCS_BUCKET}"
        assert session.get(metadata, headers=old.headers, timeout=30).status_code == 403
    anonymous = requests.get(f"{services.gcs_url}/storage/v1/b/{GCS_BUCKET}/o", timeout=30)
    assert anonymous.status_code == 401


def test_the_api_answers_as_documented() -> None:
    """Wrong token 401, wrong duration 400, no data there 404; a revoked token can come back."""
    with Services(s3=True, gcs=False, account="77") as services:
        assert grant(services)["s3Path"] == "s3://optimizely-events-data/v1/account_id=77"
        url = f"{services.api_url}/export/credentials"
        good = {"Authorization": f"Bearer {services.token}"}
        wrong = requests.get(url, headers={"Authorization": "Bearer x"}, timeout=30)
        assert wrong.status_code == 401
        assert set(wrong.json()) == {"code", "message", "messages", "uuid"}
        for duration, status in {"14m": 400, "61m": 400, "2h": 400, "1d": 400, "x": 400, "15m": 200, "60m": 200}.items():
            assert requests.get(url, headers=good, params={"duration": duration}, timeout=30).status_code == status
        assert requests.get(url + "/gcp", headers=good, timeout=30).status_code == 404
        services.revoke()
        assert requests.get(url, headers=good, timeout=30).status_code == 401
        services.restore()
        assert requests.get(url, headers=good, timeout=30).status_code == 200
        assert {entry.key for entry in services.requests.entries("credentials")} == {"aws", "gcp"}


def test_files_are_served_by_ranges(tmp_path: Path) -> None:
    """A folder becomes a bucket; contents come from the files."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "big").write_bytes(bytes(range(256)) * 4096)
    with Services(gcs=False) as services:
        services.put("big", tmp_path / "sub" / "big")
        body = s3(services).get_object(Bucket=BUCKET, Key=services.prefix + "big", Range="bytes=255-600000")["Body"].read()
        assert body == (bytes(range(256)) * 4096)[255:600001]


def test_an_outage_refuses_and_ends(services: Services) -> None:
    """During an outage nothing answers; afterwards the same address does."""
    url = services.api_url
    services.outage()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=30)
    services.end_outage()
    assert requests.get(url, timeout=30).status_code == 401
