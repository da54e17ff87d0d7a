"""`optfs cache`: look at, empty or verify the block cache. Mounts may be using it meanwhile."""

from datetime import datetime
from pathlib import Path

import click

from optfs import config


@click.group("cache")
@click.option("--cache-dir", metavar="FOLDER", default=None, help="Folder of the block cache; default: as a mount would use.")
@click.option("--config", "config_file", metavar="FILE", default=None, help="TOML file of settings.")
@click.pass_context
def command(ctx: click.Context, cache_dir: str | None, config_file: str | None) -> None:
    """Look at, empty or verify the block cache."""
    ctx.obj = config.load({"cache_dir": cache_dir, "config": config_file})


@command.command("info")
@click.pass_obj
def info(settings: config.Config) -> None:
    """Show how much it holds."""
    from optfs.cache.maintenance import inspect_cache
    from optfs.cli.status import size

    if not _exists(settings.cache_dir):
        return
    found = inspect_cache(settings.cache_dir)
    click.echo(f"{settings.cache_dir}: {found.blocks} blocks, {size(found.data)} of data, {size(found.size)} on the disk")
    click.echo(f"limit {size(settings.cache_size)}")
    if found.oldest is not None and found.newest is not None:
        click.echo(f"oldest block {_moment(found.oldest)}, newest {_moment(found.newest)}")


@command.command("clear")
@click.pass_obj
def clear(settings: config.Config) -> None:
    """Remove every block. Mounts that use them fetch again."""
    from optfs.cache.maintenance import clear_cache
    from optfs.cli.status import size

    if not _exists(settings.cache_dir):
        return
    before = clear_cache(settings.cache_dir)
    click.echo(f"{settings.cache_dir}: {before.blocks} blocks removed, {size(before.size)} freed")


@command.command("verify")
@click.pass_obj
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
    if folder.exists():
        return True
    click.echo(f"{folder}: no cache yet")
    return False


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")
