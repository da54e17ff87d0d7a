"""`optfs umount`."""

from pathlib import Path

import click

from optfs.cli.points import point


@click.command("umount")
@click.argument("mountpoint", type=point)
@click.option("--lazy", is_flag=True, help="Take it out of sight even while it is in use.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=15.0, show_default=True, help="Seconds to wait for the background process."
)
def command(mountpoint: Path, lazy: bool, timeout: float) -> None:
    """Unmount, and wait until the background process has ended."""
    from optfs.service import running

    line = running.unmount(mountpoint, lazy=lazy, timeout=timeout)
    if line is not None:
        click.echo(line)
