"""A user's own credentials, by the real SDKs without a network."""

import json
import logging
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from optfs.credentials.api import documented_root
from optfs.credentials.chain import LIFETIME, AwsSource, GoogleSource, fetch_gcp
from optfs.credentials.protocol import AwsCredential, GcpCredential
from optfs.credentials.renewal import RenewingSource
from optfs.errors import AccessError, ConfigError, ServiceUnavailable
from tests.support.api_stand_in import StandIn, answer
from tests.support.mounting import eventually

AWS = documented_root("aws", "123")
GCP = documented_root("gcp", "123")
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the user's own files and the metadata servers out of the way."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("BOTO_CONFIG", str(tmp_path / "boto"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # google-auth turns this off for the whole process at its first request; put back afterwards, so that other tests don't depend on ours.
    monkeypatch.setattr(logging.getLogger("google"), "propagate", True)


def test_aws_keys_of_a_file(tmp_path: Path) -> None:
    """They announce no expiry; a rejection looks the file up again."""
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = AKID1\naws_secret_access_key = very-secret\n")
    source = AwsSource(AWS)
    try:
        first = source.current(0.0)
        assert first == AwsCredential("AKID1", "very-secret", None, None)
        assert source.root == AWS
        assert source.status().expires_at is None
        file.write_text("[default]\naws_access_key_id = AKID2\naws_secret_access_key = very-secret\naws_session_token = t\n")
        assert source.reject(first, 30.0) == AwsCredential("AKID2", "very-secret", "t", None)
    finally:
        source.close(30.0)


def test_aws_keys_of_a_program_expire_when_it_says(tmp_path: Path) -> None:
    """The expiry that botocore keeps decides when to renew."""
    answer_file = tmp_path / "answer.json"
    answer_file.write_text(
        json.dumps(
            {"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "b", "SessionToken": "c", "Expiration": "2099-01-01T00:00:00+00:00"}
        )
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {answer_file}\n")
    source = AwsSource(AWS)
    try:
        assert source.current(0.0) == AwsCredential("A", "b", "c", 4_070_908_800.0)
    finally:
        source.close(30.0)


def test_no_aws_credentials() -> None:
    """The message says what can be done."""
    with pytest.raises(ConfigError, match="--token-file"):
        AwsSource(AWS)


def test_an_aws_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name."""
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(ConfigError, match="nosuch"):
        AwsSource(AWS)


def test_an_aws_program_that_fails(tmp_path: Path) -> None:
    """A login that is over is missing access."""
    (tmp_path / "config").write_text("[default]\ncredential_process = false\n")
    with pytest.raises(AccessError, match="log in again"):
        AwsSource(AWS)


def service_account(folder: Path, token_uri: str) -> Path:
    """Return a key file of a service account that gets its tokens from `token_uri`."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "key.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "p",
                "private_key_id": "k",
                "private_key": pem.decode(),
                "client_email": "a@p.example",
                "token_uri": token_uri,
            }
        )
    )
    return path


def test_a_google_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token expires as announced; a rejection gets another one."""
    first, second = ({"access_token": f"token-{number}", "expires_in": 1800} for number in (1, 2))
    with StandIn(answer(200, first), answer(200, second)) as server:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, server.url)))
        source = GoogleSource(GCP, lambda: NOW)
        try:
            credential = source.current(0.0)
            assert isinstance(credential, GcpCredential)
            assert credential.token == "token-1"
            assert credential.expires_at is not None
            fresh = source.reject(credential, 30.0)
            assert isinstance(fresh, GcpCredential)
            assert fresh.token == "token-2"
        finally:
            source.close(30.0)


@pytest.mark.parametrize(("announced", "token"), [(1800, "token-2"), (None, "token-3")])
def test_a_rejected_google_token_shortens_guessed_lives_only(
    announced: int | None, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announced expiry is believed, though the token before was revoked at a tenth of it."""
    now = 1000.0
    more = {} if announced is None else {"expires_in": announced}
    with StandIn(*(answer(200, {"access_token": f"token-{number}", **more}) for number in range(1, 5))) as server:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, server.url)))
        source = RenewingSource("gcp", partial(fetch_gcp, GCP), requested=LIFETIME, clock=lambda: now)
        source.start()
        try:
            first = source.current(0.0)
            now += 180
            source.accept(source.reject(first, 30.0))
            now += 400

            def held() -> str:
                found = source.current(30.0)
                assert isinstance(found, GcpCredential)
                return found.token

            eventually(lambda: held() == token, "the credential that is expected")
        finally:
            source.close(30.0)


def test_google_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was deleted is missing access."""
    with StandIn(answer(400, {"error": "invalid_grant", "error_description": "key is gone"})) as server:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, server.url)))
        with pytest.raises(AccessError, match="gcloud auth"):
            GoogleSource(GCP, lambda: NOW)


def test_google_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is down is told as that."""
    with StandIn(answer(500, b"")) as server:
        url = server.url
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, url)))
    with pytest.raises(ServiceUnavailable, match="Google"):
        GoogleSource(GCP, lambda: NOW)


def test_no_google_credentials() -> None:
    """The message says what can be done."""
    with pytest.raises(ConfigError, match="--token-file"):
        GoogleSource(GCP, lambda: NOW)
