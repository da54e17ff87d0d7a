"""`optfs mount`: mount, in the background or in front; also as mount(8) calls it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from optfs import config
from optfs.cli import is_source
from optfs.cli.points import point
from optfs.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

START_LIMIT = 120.0
"""Seconds for a background mount to become usable beyond two `--timeout`s (credentials, first listing)."""


def settings(function: F) -> F:
    """Give a command every setting as an option, and `--config`. Values stay text: `optfs.config` reads them all by the same rules."""
    for setting in reversed(config.SETTINGS):
        shown = setting.help + (f" [{setting.default}]" if setting.default and not setting.flag else "")
        if setting.flag:
            option = click.option(f"--{setting.name}", setting.field, is_flag=True, flag_value="true", default=None, type=str, help=shown)
        else:
            option = click.option(f"--{setting.name}", setting.field, metavar=setting.metavar, default=None, help=shown)
        function = option(function)
    return click.option("--config", metavar="FILE", default=None, help="TOML file of these settings; also OPTFS_CONFIG, -o config=FILE.")(
        function
    )


def source_and_point(words: tuple[str, ...], options: dict[str, str | None]) -> Path:
    """Return the mount point of `[SOURCE] MOUNTPOINT`; an account as SOURCE becomes `--account`.

    Raises:
        ConfigError: the account contradicts `--account`.

    """
    source = words[0] if len(words) == 2 else ""
    name = source.rpartition("/")[2]
    if source.startswith("/") and is_source(name):
        source = name  # mount(8) made a whole path of it, as the current folder has something of that name
    source = source.removeprefix("optfs#")
    if source and source not in {"optfs", "none"}:
        if options.get("account") not in {None, source}:
            raise ConfigError(f"the source is account {source[:60]}, but --account says otherwise; give one of them")
        options["account"] = source
    return point(words[-1])


@click.command("mount")
@click.argument("words", nargs=-1, required=True, metavar="[SOURCE] MOUNTPOINT")
@click.option("--foreground", "-f", is_flag=True, help="Stay in front; ctrl-C, or the end of the terminal, unmounts.")
@click.option("-o", "mount_options", multiple=True, metavar="OPT[=VALUE],…", help="Settings as mount(8) and fstab write them.")
@settings
def command(words: tuple[str, ...], foreground: bool, mount_options: tuple[str, ...], **options: str | None) -> int:
    """Mount an account's export at MOUNTPOINT, an existing folder.

    Returns when the mount is usable; a background process serves it until it is unmounted.

    SOURCE is an account's id, or `optfs`, as in fstab. Each setting is also an environment variable, OPTFS_NAME, and a key of the TOML
    file. The token comes from --token-file, --token-command, OPTIMIZELY_API_TOKEN or OPTIMIZELY_PAT.
    """
    if len(words) > 2:
        raise click.UsageError("too many words: [SOURCE] MOUNTPOINT is expected")
    mountpoint = source_and_point(words, options)
    found = config.load(options, config.parse_mount_options(mount_options))

    from optfs.service import background

    def work(announce: Callable[[], None]) -> int:
        from optfs.service import running

        return running.run(found, mountpoint, announce, foreground=foreground)

    if foreground:
        return work(lambda: None)
    for warning in background.run(work, START_LIMIT + 2 * found.timeout, background.named((found.token_file, found.log_file))):
        click.echo(f"optfs: warning: {warning}", err=True)
    return 0
