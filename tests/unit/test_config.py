"""Settings: where values come from, which win, and what is refused without showing a secret."""

import os
import threading
from pathlib import Path

import pytest

from optfs import config
from optfs.config import Config, load, parse_mount_options
from optfs.errors import ConfigError
from optfs.units import Address, FreeFloor
from optfs.values import MiB

GiB = 1024 * MiB


@pytest.fixture(autouse=True)
def no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the user's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def read(text: str, tmp_path: Path, **options: str) -> Config:
    """Load a TOML file."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load({"config": str(path), **options}, environ={})


def test_a_start_from_a_folder_that_was_removed_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token's command runs in `/` then."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert load({}, environ={}).folder == tmp_path / "gone"
    (tmp_path / "gone").rmdir()
    assert load({"cache_dir": str(tmp_path)}, environ={}).folder == Path("/")


def test_paths_that_begin_in_a_folder_that_was_removed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for options in ({"cache_dir": "cache"}, {"config": "config.toml"}, {"token_command": "./give"}):
        with pytest.raises(ConfigError, match="current folder, which was removed"):
            load(options, environ={})
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: f"cache/{name}")
    with pytest.raises(ConfigError, match=r"cache/optfs.*current folder, which was removed"):
        load({}, environ={})


def test_a_file_in_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="configuration file '~nosuchuser/x' begins with the home of a user who isn't known"):
        load({"config": "~nosuchuser/x"}, environ={})


def test_defaults_are_those_that_the_table_promises(tmp_path: Path) -> None:
    found = load({}, environ={})
    assert (found.provider, found.binding, found.log_level, found.log_format) == ("auto", "auto", "info", "text")
    assert found.carrier == "direct"
    assert found.api_url == "https://api.optimizely.com/v2"
    assert (found.cache_size, found.memory, found.cache_min_free) == (10 * GiB, 256 * MiB, FreeFloor(0, 0.05))
    assert (found.credential_duration, found.listing_ttl, found.timeout) == (3600.0, 60.0, 30.0)
    assert (found.uid, found.gid, found.umask, found.allow_other) == (os.getuid(), os.getgid(), 0o222, False)
    assert (found.token_file, found.token_command, found.account, found.s3_endpoint_url, found.metrics) == (None,) * 5
    assert found.cache_dir == tmp_path / "home/.cache/optfs"


def test_an_option_beats_mount_options_the_environment_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('memory = "11MiB"')
    options: dict[str, str | None] = {"config": str(path)}
    environ = {"OPTFS_MEMORY": "12MiB"}
    assert load(options, environ={}).memory == 11 * MiB
    assert load(options, environ=environ).memory == 12 * MiB
    assert load(options, {"memory": "13MiB"}, environ).memory == 13 * MiB
    assert load({**options, "memory": "14MiB"}, {"memory": "13MiB"}, environ).memory == 14 * MiB


def test_an_empty_environment_variable_is_as_good_as_none() -> None:
    assert load({}, environ={"OPTFS_MEMORY": "", "OPTFS_CONFIG": "", "AWS_ENDPOINT_URL": ""}).memory == 256 * MiB


def test_the_providers_own_endpoint_variables_are_honoured_behind_optfs_own() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    assert load({}, environ=environ).s3_endpoint_url == "http://127.0.0.1:1"
    environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:2"
    assert load({}, environ=environ).s3_endpoint_url == "http://127.0.0.1:2"
    environ["OPTFS_S3_ENDPOINT_URL"] = "http://127.0.0.1:3"
    assert load({}, environ=environ).s3_endpoint_url == "http://127.0.0.1:3"
    assert load({}, environ={"STORAGE_EMULATOR_HOST": "localhost:4443"}).gcs_endpoint_url == "http://localhost:4443"
    assert load({}, environ={"STORAGE_EMULATOR_HOST": "http://localhost:4443/"}).gcs_endpoint_url == "http://localhost:4443"
    ignored = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert load({}, environ=ignored).s3_endpoint_url is None


@pytest.mark.parametrize(
    ("provider", "name"), [("GCP", "AWS_ENDPOINT_URL"), ("gcp", "AWS_ENDPOINT_URL_S3"), ("aws", "STORAGE_EMULATOR_HOST")]
)
def test_a_variable_of_a_provider_that_is_not_mounted_is_left_alone(provider: str, name: str) -> None:
    """It is there for another program, and may hold what optfs can't use; it is refused where that provider may be mounted."""
    environ = {name: "https://gateway.example/path"}
    config = load({"provider": provider}, environ=environ)
    assert (config.s3_endpoint_url, config.gcs_endpoint_url) == (None, None)
    with pytest.raises(ConfigError, match=name):
        load({}, environ=environ)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1KiB", 1024),
        ("10GiB", 10 * GiB),
        ("10G", 10 * GiB),
        ("1.5 m", 3 * MiB // 2),
        ("500MB", 500_000_000),
        ("2tib", 2048 * GiB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert load({"cache_size": text}, environ={}).cache_size == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("60s", 60), ("60", 60), ("2m", 120), ("1h", 3600), ("0.5h", 1800), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert load({"listing_ttl": text}, environ={}).listing_ttl == seconds


@pytest.mark.parametrize(
    ("text", "floor"),
    [("5%", FreeFloor(0, 0.05)), ("0", FreeFloor(0, 0.0)), ("2GiB", FreeFloor(2 * GiB, 0.0)), ("12.5%", FreeFloor(0, 0.125))],
)
def test_free_space_is_a_part_or_a_size(text: str, floor: FreeFloor) -> None:
    assert load({"cache_min_free": text}, environ={}).cache_min_free == floor


@pytest.mark.parametrize(("text", "address"), [("127.0.0.1:9100", Address("127.0.0.1", 9100)), ("[::1]:0", Address("::1", 0))])
def test_addresses(text: str, address: Address) -> None:
    assert load({"metrics": text}, environ={}).metrics == address


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *[("cache_size", text) for text in ("", "ten", "-1", "1XB", "1e9", "10GiB/s", "9" * 400, "9" * 300 + "T", "8388608TiB")],
        *[(field, "~nosuchuser/x") for field in ("cache_dir", "token_file", "log_file", "token_command")],
        *[("memory", text) for text in ("1MiB", "0")],
        *[("timeout", text) for text in ("0", "-1s", "2d", "soon")],
        *[("credential_duration", text) for text in ("14m", "61m", "2h")],
        *[("cache_min_free", text) for text in ("101%", "-1%", "x%")],
        *[("umask", text) for text in ("18", "0888", "1777", "u=rwx", "-1")],
        *[("uid", text) for text in ("root", "-1", "4294967295")],
        *[("provider", text) for text in ("azure", "")],
        *[("account", text) for text in ("../1", "..", "-1", "a/b", "a b", "")],
        *[("metrics", text) for text in ("9100", "host:port", ":1", "h:70000")],
        *[
            ("api_url", text)
            for text in (
                "ftp://x",
                "api.optimizely.com",
                "http://api.optimizely.com/v2",
                "https://u:p@h/v2",
                "https://h/?q=1",
                "https://h:x/",
            )
        ],
        *[("api_url", text) for text in ("https://h:0/", "https://h/?", "https://h/#", "https://h/v 2", "https://h/v\u20282")],
        *[("s3_endpoint_url", text) for text in ("http://10.0.0.1", "http://localhost.example.com", "http://127.0.0.1.nip.io")],
        *[(f"{service}_endpoint_url", f"https://h/{path}") for service in ("s3", "gcs") for path in ("minio", "storage/v1/", "?x=1")],
        *[("token_command", text) for text in ("", "   ", "'unclosed")],
        ("gcs_user_project", "a b"),
        ("log_level", "loud"),
        ("carrier", "boto3"),
    ],
)
def test_bad_values_are_refused_with_the_name_of_what_was_given(field: str, text: str) -> None:
    name = field.replace("_", "-")
    with pytest.raises(ConfigError, match=f"^--{name}: ") as caught:
        load({field: text}, environ={})
    assert "\n" not in caught.value.message
    if text:
        with pytest.raises(ConfigError, match=f"^OPTFS_{field.upper()}: "):
            load({}, environ={f"OPTFS_{field.upper()}": text})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_http_is_for_loopback(host: str) -> None:
    assert load({"api_url": f"http://{host}:80/v2/"}, environ={}).api_url == f"http://{host}:80/v2"


def test_an_endpoint_is_a_server_without_a_path() -> None:
    """Told with the name of what was given before anything is asked for credentials; the slash that ends a URL is none."""
    assert load({"s3_endpoint_url": "https://h:9000/"}, environ={}).s3_endpoint_url == "https://h:9000"
    for name in ("AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST", "OPTFS_GCS_ENDPOINT_URL"):
        with pytest.raises(ConfigError, match=f"^{name}: must hold no path"):
            load({}, environ={name: "https://h:9000/minio"})


def test_the_file_takes_dashes_and_underscores_numbers_and_flags(tmp_path: Path) -> None:
    found = read("cache-size = 1048576\nlisting_ttl = 2.5\nallow-other = true\naccount = 123\numask = '0227'\n", tmp_path)
    assert (found.cache_size, found.listing_ttl, found.allow_other, found.account, found.umask) == (MiB, 2.5, True, "123", 0o227)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("cache-sise = '1GiB'", "cache-sise"),
        ("umask = 222", "umask"),
        ("provider = 1", "provider"),
        ("allow-other = 'yes'", "allow-other"),
        ("memory = true", "memory"),
        ("cache-size = -5", "cache-size"),
        ("[memory]\nsize = 1", "memory"),
        ("memory = '16MiB'\n'memory' = 1", "TOML"),
        ("cache-size = 1\ncache_size = 2", "cache-size"),
        ("memory = ", "end of document"),
        ("memory = " + "9" * 5000, "TOML"),
        ("memory = " + "[" * 5000, "TOML"),
    ],
)
def test_what_the_file_must_not_hold_is_named_with_the_file(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    assert key in caught.value.message
    assert str(tmp_path / "config.toml") in caught.value.message


@pytest.mark.parametrize("key", ["token", "api-token", "pat", "OPTIMIZELY_API_TOKEN", "password"])
def test_a_token_in_the_file_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token-file") as caught:
        read(f"{key} = '2:very-secret'", tmp_path)
    assert "very-secret" not in str(caught.value)


def test_broken_toml_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no valid TOML \(at line 2") as caught:
        read("memory = '16MiB'\ntoken = very-secret", tmp_path)
    assert "very-secret" not in str(caught.value)


def test_the_file_may_be_a_pipe_but_has_an_end(tmp_path: Path) -> None:
    """What is longer than a MiB is refused, and so is a device without an end."""
    with pytest.raises(ConfigError, match="the configuration file /dev/zero is too long"):
        load({"config": "/dev/zero"}, environ={})
    with pytest.raises(ConfigError, match="too long"):
        read("#" * (MiB + 1), tmp_path)
    read("#" * MiB, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('account = "7"',))
    writer.start()
    assert load({"config": str(tmp_path / "pipe")}, environ={}).account == "7"
    writer.join()


def test_each_duration_in_the_file_may_be_a_number_of_seconds(tmp_path: Path) -> None:
    found = read("credential-duration = 900\ntimeout = 7\nlisting-ttl = 8", tmp_path)
    assert (found.credential_duration, found.timeout, found.listing_ttl) == (900, 7, 8)


def test_a_named_file_must_exist_the_default_one_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="doesn't exist"):
        load({"config": str(tmp_path / "missing.toml")}, environ={})
    with pytest.raises(ConfigError, match="doesn't exist"):
        load({}, environ={"OPTFS_CONFIG": str(tmp_path / "missing.toml")})
    monkeypatch.setattr(config, "default_file", lambda: tmp_path / "config.toml")
    assert load({}, environ={}).provider == "auto"
    (tmp_path / "config.toml").write_text("provider = 'gcp'")
    assert load({}, environ={}).provider == "gcp"


def test_token_file_and_token_command_from_one_place_exclude_one_another(tmp_path: Path) -> None:
    both = {"token_file": "/x", "token_command": "y"}
    with pytest.raises(ConfigError, match=r"^--token-file and --token-command can't be given both"):
        load(both, environ={})
    with pytest.raises(ConfigError, match="both"):
        load({}, both, environ={})
    with pytest.raises(ConfigError, match="both"):
        load({}, environ={"OPTFS_TOKEN_FILE": "/x", "OPTFS_TOKEN_COMMAND": "y"})
    with pytest.raises(ConfigError, match="both"):
        read("token-file = '/x'\ntoken-command = 'y'", tmp_path)


@pytest.mark.parametrize(("better", "worse"), [("token_file", "token_command"), ("token_command", "token_file")])
def test_the_tokens_source_from_the_better_place_counts(better: str, worse: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"{worse} = '/worse'")
    file = {"config": str(path)}
    for found in (
        load({**file, better: "/better"}, environ={}),
        load(file, {better: "/better"}, environ={}),
        load(file, environ={f"OPTFS_{better.upper()}": "/better"}),
        load({better: "/better"}, environ={f"OPTFS_{worse.upper()}": "/worse"}),
        load({better: "/better"}, {worse: "/worse"}, environ={}),
    ):
        given = {"token_file": Path("/better"), "token_command": ("/better",)}
        assert (getattr(found, better), getattr(found, worse)) == (given[better], None)


def test_values_that_may_hold_secrets_are_not_repeated() -> None:
    for field, text in (("api_url", "https://user:very-secret@host/"), ("token_command", "echo 'very-secret")):
        with pytest.raises(ConfigError) as caught:
            load({field: text}, environ={})
        assert "very-secret" not in str(caught.value)


def test_paths_and_commands_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = load({"token_command": "./give 'a b'", "cache_dir": "cache", "log_file": "~/log"}, environ={})
    assert found.token_command == (f"{tmp_path}/give", "a b")
    assert (found.cache_dir, found.log_file) == (tmp_path / "cache", tmp_path / "home/log")
    assert load({"token_command": "pass show optfs"}, environ={}).token_command == ("pass", "show", "optfs")


def test_mount_options_as_fstab_has_them() -> None:
    texts = (
        "rw,_netdev,noauto,x-systemd.automount,x-systemd.idle-timeout=1min,user,comment=x",
        "allow_other,cache-size=1GiB,log_file=/a\\,b,listing-ttl=5s",
    )
    found = parse_mount_options(texts)
    assert found == {"allow_other": "true", "cache_size": "1GiB", "log_file": "/a,b", "listing_ttl": "5s"}
    assert load({}, found, {}).allow_other is True


@pytest.mark.parametrize(
    ("text", "message"), [("cache_sise=1", "no such option"), ("cache-size", "value is missing"), ("token=very-secret", "token-file")]
)
def test_mount_options_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_mount_options([text])
    assert "very-secret" not in str(caught.value)


def test_the_carrier_can_be_chosen_wherever_settings_come_from(tmp_path: Path) -> None:
    assert load({"carrier": "sdk"}, environ={}).carrier == "sdk"
    assert load({}, parse_mount_options(["carrier=sdk"]), {}).carrier == "sdk"
    assert load({}, environ={"OPTFS_CARRIER": "sdk"}).carrier == "sdk"
    assert read("carrier = 'sdk'", tmp_path).carrier == "sdk"
    assert read("carrier = 'sdk'", tmp_path, carrier="direct").carrier == "direct"


def test_a_configuration_file_can_be_named_among_mount_options(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("provider = 'aws'")
    assert load({}, parse_mount_options([f"config={tmp_path}/c.toml"]), {}).provider == "aws"
