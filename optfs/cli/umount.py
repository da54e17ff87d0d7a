"""`optfs umount`."""

import math
from pathlib import Path

import click

from optfs.cli.points import point


def _seconds(text: str | float) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:  # nor is nan
        raise ValueError
    return seconds


@click.command("umount")
@click.argument("mountpoint", type=point)
@click.option("--lazy", is_flag=True, help="Take it out of sight even while it is in use, and don't wait for its end.")
@click.option(
    "--timeout", type=_seconds, default=15.0, show_default=True, metavar="SECONDS", help="How long to wait for the background process."
)
def command(mountpoint: Path, lazy: bool, timeout: float) -> None:
    """Unmount, and wait until the background process has ended."""
    from optfs.service import running

    line = running.unmount(mountpoint, lazy=lazy, timeout=timeout)
    if line is not None:
        click.echo(line)
