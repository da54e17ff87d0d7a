"""`optfs cache`: look at, empty or verify the block cache. Mounts may be using it meanwhile."""

import functools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click

from optfs import config
from optfs.errors import ConfigError

T = TypeVar("T")


def _places(handler: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options that name the cache; both before and behind the subcommand, since users write either."""
    handler = click.option("--config", metavar="FILE", default=None, help="TOML file of settings.")(handler)
    return click.option("--cache-dir", metavar="FOLDER", default=None, help="Folder of the block cache; default: as a mount would use.")(
        handler
    )


def _with_settings(handler: Callable[[config.Config], T]) -> Callable[..., T]:
    """Hand the settings to a subcommand."""

    @_places
    @click.pass_context
    @functools.wraps(handler)
    def run(ctx: click.Context, /, **options: str | None) -> T:
        return handler(config.load({**ctx.obj, **{name: text for name, text in options.items() if text is not None}}))

    return run


@click.group("cache")
@_places
@click.pass_context
def command(ctx: click.Context, /, **options: str | None) -> None:
    """Look at, empty or verify the block cache."""
    ctx.obj = options


@command.command("info")
@_with_settings
def info(settings: config.Config) -> None:
    """Show how much it holds."""
    from optfs.cache.maintenance import inspect_cache
    from optfs.cli.status import size

    if not _exists(settings.cache_dir):
        return
    found = inspect_cache(settings.cache_dir)
    click.echo(f"{settings.cache_dir}: {found.blocks} blocks, {size(found.data)} of data, {size(found.size)} on the disk")
    click.echo(f"limit {size(settings.cache_size)}, by the settings of this command")
    if found.oldest is not None and found.newest is not None:
        click.echo(f"oldest block {_moment(found.oldest)}, newest {_moment(found.newest)}")


@command.command("clear")
@_with_settings
def clear(settings: config.Config) -> None:
    """Remove every block. Mounts that use them fetch again."""
    from optfs.cache.maintenance import clear_cache
    from optfs.cli.status import size

    if not _exists(settings.cache_dir):
        return
    before = clear_cache(settings.cache_dir)
    click.echo(f"{settings.cache_dir}: {before.blocks} blocks removed, {size(before.size)} freed")


@command.command("verify")
@_with_settings
def verify(settings: config.Config) -> int:
    """Check every block's checksum and identity; remove what fails. The exit code is 1 when something was damaged."""
    from optfs.cache.maintenance import verify_cache

    if not _exists(settings.cache_dir):
        return 0
    found = verify_cache(settings.cache_dir)
    click.echo(
        f"{settings.cache_dir}: {found.checked} blocks checked, {found.damaged} damaged and removed, {found.orphans + found.rows} left-overs removed"
    )
    return 1 if found.damaged else 0


def _exists(folder: Path) -> bool:
    """Tell whether there is a cache, and say where there is none: looking makes none in a folder that was mistyped.

    Raises:
        ConfigError: the folder can't be looked at.

    """
    from optfs.cache.folder import BLOCKS

    try:
        (folder / BLOCKS).stat()
    except FileNotFoundError:
        click.echo(f"{folder}: no cache yet")
        return False
    except OSError as error:
        raise ConfigError(f"--cache-dir: {folder} can't be used: {error.strerror}") from None
    return True


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")
