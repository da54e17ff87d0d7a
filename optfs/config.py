"""What one mount is told: every setting, where its value comes from, and what values it takes.

One table, `SETTINGS`, drives the command line's options, the environment variables `OPTFS_<NAME>`, the keys of the TOML file and those of
mount(8) (`-o name=value`). Each value is text until its setting's parser (`optfs.units`) has read it, so that all sources obey the same
rules.

Precedence: the command line (an option before the same name in `-o`), the environment, the file, the default. The providers' own variables
(`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `STORAGE_EMULATOR_HOST`) count as environment, behind optfs's own, unless `provider` names the
other one. `token-file` and `token-command` are two ways to say one thing: the one from the better place counts, and both from one place are
refused.

Rules: a bad value is a ConfigError that names the source and the setting. The personal access token is no setting: it never passes
through here, and a file or `-o` that holds one is refused without showing it. An empty environment variable is as good as none.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from optfs.errors import ConfigError
from optfs.units import (
    Address,
    FreeFloor,
    Parser,
    absolute,
    parse_account,
    parse_address,
    parse_choice,
    parse_command,
    parse_duration_within,
    parse_endpoint,
    parse_flag,
    parse_floor,
    parse_id,
    parse_memory,
    parse_path,
    parse_size,
    parse_umask,
    parse_url,
    parse_word,
)

ProviderChoice = Literal["aws", "gcp", "auto"]
Carrier = Literal["direct", "sdk"]
BindingChoice = Literal["auto", "fuse3", "fuse2"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one mount. Sizes are bytes, durations seconds, paths absolute; None: not given."""

    provider: ProviderChoice
    token_file: Path | None
    token_command: tuple[str, ...] | None
    account: str | None
    api_url: str
    s3_endpoint_url: str | None
    gcs_endpoint_url: str | None
    credential_duration: float
    gcs_user_project: str | None
    carrier: Carrier
    cache_dir: Path
    cache_size: int
    cache_min_free: FreeFloor
    memory: int
    listing_ttl: float
    timeout: float
    allow_other: bool
    uid: int
    gid: int
    umask: int
    binding: BindingChoice
    log_level: LogLevel
    log_file: Path | None
    log_format: LogFormat
    metrics: Address | None
    folder: Path
    """Where the token's command runs: where optfs was started, `/` where that is no place any more. Not a setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: as an option, without the dashes in front.
        parse: reads text; raises ValueError with what is wrong.
        default: text, or None: nothing.
        shown: whether a bad value may be repeated in a message.
        number: whether TOML may give a number (bytes, seconds, ids).

    """

    name: str
    parse: Parser
    default: str | None
    metavar: str
    help: str
    shown: bool = True
    number: bool = False
    flag: bool = False

    @property
    def field(self) -> str:
        """Name of the field of `Config`, and of the option's parameter."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return "OPTFS_" + self.field.upper()


_SECRET_KEYS = {
    "token",
    "api_token",
    "apitoken",
    "pat",
    "api_key",
    "secret",
    "password",
    "optimizely_api_token",
    "optimizely_pat",
    "access_token",
}
_MOST_BYTES = 2**20
_NEVER_HERE = "a token is never given {}: write it to a file of your own (chmod 600) and use token-file, or use token-command"

IGNORED_MOUNT_OPTIONS = frozenset(
    {
        # What mount(8) hands to every helper: they say how and by whom a line of fstab is mounted, or what any optfs mount is anyway.
        *("ro", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "dev", "nodev"),
        *("suid", "nosuid", "exec", "noexec", "async", "sync", "atime", "noatime", "relatime", "norelatime", "strictatime", "diratime"),
        *("nodiratime", "lazytime", "nolazytime", "default_permissions"),
    }
)


SETTINGS: tuple[Setting, ...] = (
    Setting("provider", parse_choice(*get_args(ProviderChoice)), "auto", "aws|gcp|auto", "Which service; auto: what the account has."),
    Setting("token-file", parse_path, None, "FILE", "File of yours alone that holds the personal access token."),
    Setting("token-command", parse_command, None, "CMD", "Command that prints the personal access token.", shown=False),
    Setting("account", parse_account, None, "ID", "Account id; needed with the provider's own credentials.", number=True),
    Setting("api-url", parse_url, "https://api.optimizely.com/v2", "URL", "The API that gives credentials.", shown=False),
    Setting("s3-endpoint-url", parse_endpoint, None, "URL", "Another S3: an emulator, a private endpoint.", shown=False),
    Setting("gcs-endpoint-url", parse_endpoint, None, "URL", "Another Google Cloud Storage.", shown=False),
    Setting(
        "credential-duration", parse_duration_within(900, 3600, "15m to 1h"), "1h", "TIME", "Lifetime of AWS credentials.", number=True
    ),
    Setting("gcs-user-project", parse_word, None, "PROJECT", "Project that is billed for requests (GCP)."),
    Setting(
        "carrier",
        parse_choice(*get_args(Carrier)),
        "direct",
        "direct|sdk",
        "sdk: the SDKs' own clients, slower, where only they get through.",
    ),
    Setting("cache-dir", parse_path, None, "FOLDER", "Folder of the block cache; default: the user's cache folder."),
    Setting("cache-size", parse_size, "10GiB", "SIZE", "Limit of the block cache; 0 turns it off.", number=True),
    Setting("cache-min-free", parse_floor, "5%", "SIZE|PERCENT", "Free space that the cache leaves on its disk.", number=True),
    Setting("memory", parse_memory, "256MiB", "SIZE", "Bound on buffered data, over all open files.", number=True),
    Setting("listing-ttl", parse_duration_within(0, 86400, "0 to 24h"), "60s", "TIME", "How long a listing is believed.", number=True),
    Setting("timeout", parse_duration_within(0.1, 3600, "100ms to 1h"), "30s", "TIME", "How long one operation may wait.", number=True),
    Setting("allow-other", parse_flag, "false", "", "Let other users see the mount.", flag=True),
    Setting("uid", parse_id, None, "ID", "Owner of all files; default: you.", number=True),
    Setting("gid", parse_id, None, "ID", "Group of all files; default: yours.", number=True),
    Setting("umask", parse_umask, "0222", "OCTAL", "Permission bits that are taken away."),
    Setting("binding", parse_choice(*get_args(BindingChoice)), "auto", "auto|fuse3|fuse2", "libfuse 3 (mfusepy) or libfuse 2 (fusepy)."),
    Setting("log-level", parse_choice(*get_args(LogLevel)), "info", "LEVEL", "debug, info, warning or error."),
    Setting("log-file", parse_path, None, "FILE", "Where to log; default: syslog, or stderr in the foreground."),
    Setting("log-format", parse_choice(*get_args(LogFormat)), "text", "text|json", "Lines of text, or of JSON."),
    Setting("metrics", parse_address, None, "HOST:PORT", "Serve Prometheus metrics there."),
)
"""All settings, in the order in which `--help` shows them."""

_BY_FIELD = {setting.field: setting for setting in SETTINGS}


def parse_mount_options(texts: Sequence[str]) -> dict[str, str]:
    r"""Return settings by field from options as mount(8) hands them over: `ro,allow_other,cache-size=1GiB`.

    A comma within a value is written `\,`. What says how a line of fstab is mounted (`noauto`, `x-systemd.…`) is ignored.

    Raises:
        ConfigError: there is no such option, or it lacks its value.

    """
    found: dict[str, str] = {}
    for word in (word for text in texts for word in re.split(r"(?<!\\),", text)):
        name, equals, value = word.replace("\\,", ",").strip().partition("=")
        if not name or name in IGNORED_MOUNT_OPTIONS or name.startswith("x-") or name == "comment":
            continue
        field = name.replace("-", "_")
        if field in _SECRET_KEYS:
            raise ConfigError(f"-o {name}: " + _NEVER_HERE.format("among a mount's options"))
        setting = _BY_FIELD.get(field)
        if setting is None and field != "config":
            raise ConfigError(f"-o {name}: there is no such option; see optfs mount --help")
        if not equals and not (setting and setting.flag):
            raise ConfigError(f"-o {name}: a value is missing; write {name}=…")
        found[field] = value if equals else "true"
    return found


def load(
    options: Mapping[str, str | None], mount_options: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Return the settings of a mount.

    Args:
        options: text by field from the command line (`cache_size`), also `config`, the file; None: not given.
        mount_options: from `parse_mount_options`.
        environ: None: `os.environ`.

    Raises:
        ConfigError: see the module.

    """
    environ = os.environ if environ is None else environ
    mount_options = mount_options or {}
    path, from_file = _read_file(options.get("config") or mount_options.get("config") or environ.get("OPTFS_CONFIG") or None)
    given: dict[str, _Given] = {}
    for setting in SETTINGS:
        candidates = (
            (options.get(setting.field), f"--{setting.name}"),
            (mount_options.get(setting.field), f"-o {setting.name}"),
            (environ.get(setting.variable) or None, setting.variable),
            _provider_variable(setting.field, environ, given["provider"].text.strip().lower() if given else "auto"),
            (from_file.get(setting.field), f"{setting.name} in {path}"),
            (setting.default, f"--{setting.name}"),
        )
        ranked = (_Given(rank, text, origin) for rank, (text, origin) in enumerate(candidates) if text is not None)
        if (first := next(ranked, None)) is not None:
            given[setting.field] = first
    _choose_token(given)
    values: dict[str, Any] = {
        setting.field: _parsed(setting, given[setting.field]) if setting.field in given else None for setting in SETTINGS
    }
    values["cache_dir"] = values["cache_dir"] or default_cache_dir()
    values["uid"] = os.getuid() if values["uid"] is None else values["uid"]
    values["gid"] = os.getgid() if values["gid"] is None else values["gid"]
    return Config(**values, folder=_here())


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return Path("/")


def default_cache_dir() -> Path:
    """Return the platform's user cache folder for optfs.

    Raises:
        ConfigError: it isn't absolute, and the current folder was removed.

    """
    import platformdirs  # noqa: PLC0415 - only where no folder is given

    found = Path(platformdirs.user_cache_dir("optfs"))
    try:
        return absolute(found)
    except ValueError as error:
        raise ConfigError(f"the cache folder {str(found)!r} {error}") from None


def default_file() -> Path:
    """Return where the TOML file is looked for when none is named."""
    import platformdirs  # noqa: PLC0415 - only where no file is named

    return Path(platformdirs.user_config_dir("optfs")) / "config.toml"


@dataclass(frozen=True, slots=True)
class _Given:
    """A setting's text, where it comes from, and the rank of that; 0 beats all."""

    rank: int
    text: str
    origin: str


def _choose_token(given: dict[str, _Given]) -> None:
    """Leave one source of the token, the one of the better rank.

    Raises:
        ConfigError: both have the same.

    """
    file, command = given.get("token_file"), given.get("token_command")
    if file is None or command is None:
        return
    if file.rank == command.rank:
        raise ConfigError(f"{file.origin} and {command.origin} can't be given both; choose one")
    del given["token_file" if command.rank < file.rank else "token_command"]


def _parsed(setting: Setting, given: _Given) -> Any:
    try:
        return setting.parse(given.text)
    except ValueError as error:
        value = f"{given.text[:60]!r} " if setting.shown else ""
        raise ConfigError(f"{given.origin}: {value}{error}") from None


def _provider_variable(field: str, environ: Mapping[str, str], provider: str) -> tuple[str | None, str]:
    """Return what the providers' own variables say of an endpoint. Of a provider that isn't mounted they are for other programs."""
    if field == "gcs_endpoint_url" and provider != "aws" and (host := environ.get("STORAGE_EMULATOR_HOST")):
        return host if "://" in host else f"http://{host}", "STORAGE_EMULATOR_HOST"
    if field == "s3_endpoint_url" and provider != "gcp" and environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if environ.get(name):
                return environ[name], name
    return None, ""


def _read_file(named: str | None) -> tuple[Path, dict[str, str]]:
    """Return the file's path and its settings as text by field."""
    try:
        path = parse_path(named) if named else default_file()
    except ValueError as error:
        raise ConfigError(f"the configuration file {named!r} {error}") from None
    try:
        with path.open("rb") as file:  # it may be a device without an end
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"the configuration file {path} doesn't exist") from None
        return path, {}
    except OSError as error:
        raise ConfigError(f"the configuration file {path} can't be read: {error.strerror}") from None
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"the configuration file {path} is too long; 1 MiB is the most")
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of numbers without end, of nesting
        where = re.search(r"\(at .*\)$", str(error))  # the rest of the message may repeat what the file holds
        raise ConfigError(f"the configuration file {path} is no valid TOML {where.group() if where else ''}".rstrip()) from None
    found: dict[str, str] = {}
    for key, value in document.items():
        field = key.replace("-", "_")
        if field.lower() in _SECRET_KEYS:
            raise ConfigError(f"{key[:40]} in {path}: " + _NEVER_HERE.format("in this file"))
        setting = _BY_FIELD.get(field)
        if setting is None:
            raise ConfigError(f"{key[:40]!r} in {path} is no setting of optfs; see optfs mount --help")
        if field in found:
            raise ConfigError(f"{setting.name} in {path} is given twice, with a dash and with an underscore")
        found[field] = _text(setting, value, path)
    return path, found


def _text(setting: Setting, value: object, path: Path) -> str:
    """Return a TOML value as the text that an option would have held."""
    if setting.flag:
        if isinstance(value, bool):
            return str(value).lower()
        raise ConfigError(f"{setting.name} in {path} must be true or false")
    if isinstance(value, str):
        return value
    if setting.number and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(
        f"{setting.name} in {path} must be a string" + (" or a number" if setting.number else "") + f', such as "{setting.default or "…"}"'
    )
