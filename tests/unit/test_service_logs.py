"""Logs: no secret in them at any level, their formats, files of the owner alone, and rotation by others."""

import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from optfs.config import LogFormat
from optfs.errors import ConfigError
from optfs.service import logs
from optfs.values import MiB

SECRET = "verysecret0123456789"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Give logging back as it was."""
    root, own = logging.getLogger(), logging.getLogger("optfs")
    before = (root.handlers[:], root.level, own.level, logging.raiseExceptions)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], level, own_level, logging.raiseExceptions = before
    root.setLevel(level)
    own.setLevel(own_level)


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}', 'Accept': '*/*'}}",
        f"header: b'Authorization: Bearer {SECRET}\\r\\n'",
        f"Authorization: AWS4-HMAC-SHA256 Credential=ASIA{SECRET}/20261101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={'ab' * 32}",
        f"X-Amz-Security-Token: {SECRET}",
        f"'x-amz-security-token': '{SECRET}'",
        f"GET /key?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f'{{"credentials": {{"secretAccessKey": "{SECRET}", "sessionToken": "{SECRET}"}}}}',
        f'{{"token": "{SECRET}", "uri": "gs://b"}}',
        f"AwsCredential(secret_key='{SECRET}')",
        f"refresh_token={SECRET}&grant_type=x access_token={SECRET}",
        f"token ya29.{SECRET}-x_y",
    ],
)
def test_what_has_the_shape_of_a_secret_is_hidden(line: str) -> None:
    shown = logs.redact(line)
    assert SECRET not in shown
    assert "abab" not in shown
    assert logs.HIDDEN in shown


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/account_id=123/type=events/date=2026-11-01/event=token/part-0.parquet",
        "the token file /home/x/token may be read by others",
        "s3://optimizely-events-data/v1/account_id=123/: status 403, AccessDenied, request id 4442587FB7D0A2F9",
    ],
)
def test_ordinary_lines_stay_as_they_are(line: str) -> None:
    assert logs.redact(line) == line


def test_a_remembered_secret_is_hidden_wherever_it_comes_up() -> None:
    logs.remember_secret("2:odd-secret-value")
    logs.remember_secret("short")
    assert logs.redact("x2:odd-secret-valuex short") == f"x{logs.HIDDEN}x short"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.log_errors
def test_messages_arguments_and_tracebacks_of_every_logger_are_redacted(
    log_format: LogFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("google"), "propagate", True)  # google-auth turns it off where it was imported
    file = tmp_path / "log"
    logs.configure("debug", file, log_format, foreground=False)
    for name in ("optfs.stores", "urllib3.connectionpool", "botocore.auth", "google.auth"):
        logger = logging.getLogger(name)
        logger.debug("send %s", {"Authorization": f"Bearer {SECRET}"})
        try:
            raise ValueError(f"X-Amz-Security-Token: {SECRET}")
        except ValueError:
            logger.exception("failed")
    text = file.read_text()
    assert SECRET not in text
    assert text.count("failed") == 4
    assert text.count("ValueError") >= 4


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    logs.configure("info", tmp_path / "log", "json", foreground=False)
    logging.getLogger("optfs.x").warning("two\nlines %s", "é")
    entry = json.loads((tmp_path / "log").read_text())
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "optfs.x", "two\nlines é")


def test_what_would_break_a_line_is_escaped(tmp_path: Path) -> None:
    """A key or a header may hold anything; nobody forges a line by it, or has one dropped. A traceback keeps its lines."""
    logs.configure("info", tmp_path / "log", "text", foreground=False)
    try:
        raise ValueError("x\ny")
    except ValueError:
        logging.getLogger("optfs.x").warning("%s é", "a\r\n2026-11-26 INFO forged\udcff\x1b[2J\u2028", exc_info=True)
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first.endswith(r"optfs.x: a\r\n2026-11-26 INFO forged\udcff\x1b[2J\u2028 é")
    assert rest[0].startswith("Traceback")


def test_libraries_are_heard_at_debug_only(tmp_path: Path) -> None:
    logs.configure("info", tmp_path / "log", "text", foreground=False)
    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("optfs").info("ours")
    logging.getLogger("optfs").debug("detail")
    assert [line.rpartition(": ")[2] for line in (tmp_path / "log").read_text().splitlines()] == ["ours"]


def test_the_file_is_the_owners_alone_and_made_anew_when_it_was_moved(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure("info", file, "text", foreground=False)
    logging.getLogger("optfs").info("first")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.rename(tmp_path / "log.1")
    logging.getLogger("optfs").info("second")
    assert "first" in (tmp_path / "log.1").read_text()
    assert "second" in file.read_text()
    assert logs.destination() == str(file)


@pytest.mark.parametrize("name", ["urllib3.connectionpool", "google.auth._default"])
def test_what_libraries_warn_of_that_is_no_failure_is_not_logged(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred listings at once were a hundred lines on connections that aren't kept."""
    monkeypatch.setattr(logging.getLogger("google"), "propagate", True)  # google-auth turns it off where it was imported
    file = tmp_path / "log"
    logs.configure("info", file, "text", foreground=False)
    logging.getLogger(name).warning("Connection pool is full")
    logging.getLogger("botocore.auth").warning("something else")
    assert [line.rpartition(": ")[2] for line in file.read_text().splitlines()] == ["something else"]


def test_a_file_that_cannot_be_made_anew_costs_lines_alone(tmp_path: Path) -> None:
    """Whoever logs goes on: a listing failed, and a renewal counted as failed, since its folder was gone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "log"
    logs.configure("info", file, "text", foreground=False)
    logger = logging.getLogger("optfs")
    logger.info("first")
    folder.rename(tmp_path / "aside")
    logger.info("second")
    folder.touch()
    logger.info("third")
    folder.unlink()
    folder.mkdir()
    logger.info("fourth")
    logger.info("fifth")
    assert [line.rpartition(" ")[2] for line in file.read_text().splitlines()] == ["fourth", "fifth"]


def test_an_existing_file_is_taken_from_others(tmp_path: Path) -> None:
    """As is one that logrotate made anew."""
    file = tmp_path / "log"
    file.write_text("before\n")
    file.chmod(0o644)
    logs.configure("info", file, "text", foreground=False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "before\n"
    file.rename(tmp_path / "log.1")
    file.touch(0o644)
    logging.getLogger("optfs").info("hello")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_special_files_and_those_of_others_keep_their_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's /dev/stderr may be a terminal that others may write to."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    pipe.chmod(0o622)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        logs.configure("info", pipe, "text", foreground=False)
        logging.getLogger("optfs").info("hello")
        assert b"hello" in os.read(reading, 1000)
        assert stat.S_IMODE(pipe.stat().st_mode) == 0o622
    finally:
        os.close(reading)
    file.touch()
    file.chmod(0o640)
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    logs.configure("info", file, "text", foreground=False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--log-file"):
        logs.configure("info", tmp_path / "no" / "log", "text", foreground=False)


def test_without_syslog_a_background_mount_logs_to_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SYSLOG", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    logs.configure("info", None, "text", foreground=False)
    logging.getLogger("optfs").info("hello")
    file = Path(logs.destination())
    assert file.is_relative_to(tmp_path)
    assert "hello" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    former = file.with_name("optfs.log.1")
    for _ in range(5):
        logging.getLogger("optfs").info("x" * MiB)
    assert "hello" in former.read_text()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, former)] == [0o600, 0o600]


def test_configuring_again_replaces_the_destination(tmp_path: Path) -> None:
    logs.configure("info", tmp_path / "a", "text", foreground=False)
    logs.configure("info", tmp_path / "b", "text", foreground=False)
    logging.getLogger("optfs").info("hello")
    assert (tmp_path / "a").read_text() == ""
    assert "hello" in (tmp_path / "b").read_text()
