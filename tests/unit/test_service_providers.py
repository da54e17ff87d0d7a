"""Which providers are mounted, and how soon a mount that can't be made fails."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from optfs.config import Config, load
from optfs.credentials.api import documented_root
from optfs.demo.faults import Answer, Fault
from optfs.demo.services import Services
from optfs.errors import (
    AccessDenied,
    AccessError,
    ConfigError,
    CredentialRejected,
    NoExport,
    OptfsError,
    RequestRefused,
    ServiceError,
    ServiceUnavailable,
    TokenRefused,
)
from optfs.service import checks, providers
from optfs.service.providers import Connected, Outcome, choose, connect
from optfs.values import Provider


class _Closable:
    def __init__(self, account: str = "123") -> None:
        self.closed = False
        self.root = documented_root("aws", account)

    def close(self, timeout: float = 0) -> None:
        del timeout
        self.closed = True


def answered(provider: Provider, *, data: bool = True, account: str = "123") -> Connected:
    """Return a provider that answered."""
    nothing: Any = None
    return Connected(provider, cast("Any", _Closable(account)), cast("Any", _Closable()), nothing, data)


def chosen(**outcomes: Outcome) -> list[str]:
    """Return which providers are used."""
    return [each.provider for each in choose(cast("dict[Provider, Outcome]", outcomes))]


def test_providers_with_data_are_used() -> None:
    aws, gcp, empty = answered("aws"), answered("gcp"), answered("gcp", data=False)
    assert chosen(aws=aws, gcp=gcp) == ["aws", "gcp"]
    assert chosen(aws=aws, gcp=empty) == ["aws"]
    assert cast("_Closable", empty.store).closed
    assert cast("_Closable", empty.source).closed
    assert not cast("_Closable", aws.store).closed
    assert chosen(aws=NoExport("none"), gcp=gcp) == ["gcp"]


def test_an_account_without_any_data_yet_is_mounted_all_the_same() -> None:
    assert chosen(aws=answered("aws", data=False), gcp=answered("gcp", data=False)) == ["aws", "gcp"]


def test_a_provider_that_refuses_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(aws=AccessDenied("refused"), gcp=answered("gcp")) == ["gcp"]
    assert "S3 is left out of the mount: refused" in caplog.text


def test_a_provider_that_the_api_has_no_credentials_for_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """400 is declared, and perhaps what it says of an account that isn't on S3; alone it fails the mount."""
    assert chosen(aws=RequestRefused("refused"), gcp=answered("gcp")) == ["gcp"]
    assert "S3 is left out of the mount: refused" in caplog.text
    with pytest.raises(RequestRefused):
        chosen(aws=RequestRefused("refused"), gcp=NoExport("none"))


def test_two_accounts_are_no_mount() -> None:
    """With data; which one is meant can't be told."""
    aws, gcp = answered("aws"), answered("gcp", account="456")
    with pytest.raises(ConfigError, match=r"123 on S3 and 456 on Google Cloud Storage.*--account or --provider"):
        chosen(aws=aws, gcp=gcp)
    assert cast("_Closable", aws.store).closed
    assert cast("_Closable", gcp.source).closed
    assert chosen(aws=answered("aws"), gcp=answered("gcp", account="456", data=False)) == ["aws"]


def test_a_provider_that_cannot_be_reached_fails_the_mount_and_says_how_to_mount_the_other() -> None:
    gcp = answered("gcp")
    with pytest.raises(ServiceUnavailable, match=r"S3: down; --provider gcp mounts without it"):
        chosen(aws=ServiceUnavailable("down"), gcp=gcp)
    assert cast("_Closable", gcp.store).closed


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NoExport("none"), TokenRefused("refused"), TokenRefused),
        (NoExport("none"), AccessDenied("refused"), AccessDenied),
        (ConfigError("nothing found"), AccessDenied("refused"), AccessDenied),
        (TokenRefused("refused"), ServiceUnavailable("down"), ServiceUnavailable),
        (NoExport("none"), NoExport("none"), NoExport),
        (NoExport("none"), ConfigError("nothing found"), ConfigError),
    ],
)
def test_the_most_telling_failure_is_raised(one: OptfsError, other: OptfsError, expected: type[OptfsError]) -> None:
    for outcomes in ({"aws": one, "gcp": other}, {"gcp": one, "aws": other}):
        with pytest.raises(expected):
            chosen(**outcomes)


@pytest.fixture
def services() -> Iterator[Services]:
    """An account with data on both."""
    with Services() as services:
        services.put("type=events/date=2026-11-01/_SUCCESS", b"")
        yield services


def settings(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: str) -> Config:
    """Return settings that lead to the services; the token lies in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("OPTIMIZELY_API_TOKEN", services.token)
    return load(options, environ=services.environment)


def test_both_providers_are_asked_and_the_token_leaves_the_environment(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = connect(settings(services, monkeypatch, tmp_path))
    try:
        assert [each.provider for each in found] == ["aws", "gcp"]
        assert all(each.has_data for each in found)
        assert "OPTIMIZELY_API_TOKEN" not in os.environ
        assert {entry.kind for entry in services.requests.entries()} == {"credentials", "list"}
        assert services.requests.count("list") == 2
    finally:
        for each in found:
            each.close()


@pytest.mark.parametrize("carrier", ["direct", "sdk"])
def test_the_carrier_that_was_chosen_is_used(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, carrier: str) -> None:
    found = connect(settings(services, monkeypatch, tmp_path, carrier=carrier))
    for each in found:
        each.close()
    names = {"direct": ["S3Store", "GcsStore"], "sdk": ["S3SdkStore", "GcsSdkStore"]}
    assert [type(each.store).__name__ for each in found] == names[carrier]
    assert all(each.has_data for each in found)


def test_an_explicit_provider_is_the_only_one_asked(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = connect(settings(services, monkeypatch, tmp_path, provider="gcp"))
    for each in found:
        each.close()
    assert [each.provider for each in found] == ["gcp"]
    assert "s3" not in {entry.service for entry in services.requests.entries()}


def test_an_account_on_one_provider_is_found_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Services(s3=False) as services:
        services.put("type=events/date=2026-11-01/_SUCCESS", b"")
        found = connect(settings(services, monkeypatch, tmp_path))
        for each in found:
            each.close()
        assert [each.provider for each in found] == ["gcp"]
        with pytest.raises(NoExport):
            connect(settings(services, monkeypatch, tmp_path, provider="aws"))


def test_a_revoked_token_is_refused(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services.revoke()
    with pytest.raises(TokenRefused):
        connect(settings(services, monkeypatch, tmp_path))


def test_no_token_and_no_account_names_the_ways(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = settings(services, monkeypatch, tmp_path)
    monkeypatch.delenv("OPTIMIZELY_API_TOKEN")
    with pytest.raises(ConfigError, match=r"--token-file.*--token-command.*OPTIMIZELY_API_TOKEN.*--account"):
        connect(found)


def test_a_service_that_refuses_connections_fails_within_seconds(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = settings(services, monkeypatch, tmp_path)
    services.outage()
    began = time.monotonic()
    with pytest.raises(ServiceError):
        connect(found)
    assert time.monotonic() - began < 20  # not the 30 s of --timeout


def test_an_unreachable_store_fails_the_mount(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = dataclasses.replace(settings(services, monkeypatch, tmp_path), s3_endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match="--provider gcp"):
        connect(found)


def test_a_short_outage_at_mount_time_is_waited_out(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services.faults.add(Fault(match=lambda request: request.kind == "list", action=Answer(503, b""), times=2))
    for each in connect(settings(services, monkeypatch, tmp_path)):
        each.close()


@pytest.mark.parametrize(
    ("provider", "answer"), [("aws", Answer(400, b"<Error><Code>InvalidAccessKeyId</Code></Error>")), ("gcp", Answer(401))]
)
def test_a_credential_that_is_refused_at_mount_time_is_renewed_once(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str, answer: Answer
) -> None:
    """As later; one that was just renewed and is refused, too, fails the mount."""
    given = settings(services, monkeypatch, tmp_path, provider=provider)
    services.faults.add(Fault(match=lambda request: request.kind == "list", action=answer, times=1))
    for each in connect(given):
        each.close()
    assert services.requests.count("credentials") == 2
    services.faults.add(Fault(match=lambda request: request.kind == "list", action=answer, times=None))
    monkeypatch.setenv("OPTIMIZELY_API_TOKEN", services.token)
    with pytest.raises(CredentialRejected):
        connect(given)
    assert services.requests.count("credentials") == 4


def test_a_store_that_refuses_the_listing_is_an_access_error(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = b"<Error><Code>AccessDenied</Code></Error>"
    services.faults.add(Fault(match=lambda request: request.service == "s3", action=Answer(403, body), times=None))
    with pytest.raises(AccessError):
        connect(settings(services, monkeypatch, tmp_path, provider="aws"))


def test_a_token_command_runs_once_for_both_providers(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "give"
    script.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho '{services.token}'\n")
    script.chmod(0o700)
    for each in connect(settings(services, monkeypatch, tmp_path, token_command=str(script))):
        each.close()
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_token_command_that_fails_at_the_start_is_a_wrong_setting(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exit code 1; run it by hand"):
        connect(settings(services, monkeypatch, tmp_path, token_command=f"cat {tmp_path}/none"))


def test_the_doctor_finds_everything_in_order_and_tells_each_failure(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = settings(services, monkeypatch, tmp_path, cache_dir=str(tmp_path / "cache"))
    findings = {finding.name: finding for finding in checks.run(found)}
    for name in ("token", "aws credentials", "aws listing", "gcp credentials", "gcp listing", "cache"):
        assert findings[name].ok is True, findings[name]
    services.revoke()
    found = settings(services, monkeypatch, tmp_path, cache_dir=str(tmp_path / "config.toml" / "x"))
    (tmp_path / "config.toml").write_text("")
    findings = {finding.name: finding for finding in checks.run(found)}
    assert findings["aws credentials"].ok is False
    assert findings["cache"].ok is False
    assert services.token not in repr(findings)
    for options, ok in (({"cache_size": "500KiB"}, None), ({"cache_size": "0"}, None), ({"cache_dir": str(tmp_path / "open")}, False)):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(0o777)
        found = settings(services, monkeypatch, tmp_path, **options)
        assert [finding.ok for finding in checks.run(found) if finding.name == "cache"] == [ok], options


def test_the_doctor_says_of_providers_what_mount_does(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that the API refuses is none to use, where the other works; two accounts fail."""
    config = settings(services, monkeypatch, tmp_path)
    nothing: Any = None

    def refuse() -> Any:
        raise RequestRefused("refused")

    def open_as(account: str) -> Any:
        return lambda: _Closable(account)

    def reach(_config: Config, provider: Provider, source: Any) -> Connected:
        return Connected(provider, source, cast("Any", _Closable()), nothing, has_data=True)

    monkeypatch.setattr(providers, "has_token", lambda _config: True)
    monkeypatch.setattr(providers, "reach", reach)
    for aws, expected in ((refuse, None), (open_as("456"), False)):
        monkeypatch.setattr(providers, "openers", lambda _config, aws=aws: {"aws": aws, "gcp": open_as("123")})
        found = {finding.name: finding.ok for finding in checks.run(config)}
        assert found["aws credentials" if expected is None else "providers"] is expected
