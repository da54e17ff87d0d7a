"""`optfs demo`: the embedded services with a generated export, mounted."""

from pathlib import Path

import click

from optfs.cli.points import point


@click.command("demo")
@click.argument("mountpoint", required=False, type=point)
@click.option("--once", is_flag=True, help="Show the main job, check the answers, and unmount.")
@click.option("--days", type=click.IntRange(min=3), default=30, show_default=True, help="How many days to generate.")
def command(mountpoint: Path | None, once: bool, days: int) -> None:
    """Mount a generated export from embedded services: no account is needed.

    It stays mounted (at MOUNTPOINT, an existing folder, or else at a temporary one) until ctrl-C or `optfs umount`.
    """
    if once and mountpoint is not None:
        raise click.UsageError("--once shows its own temporary mount; leave MOUNTPOINT out")

    from optfs.demo import walkthrough

    if once:
        walkthrough.show(days, click.echo)
    else:
        walkthrough.keep_mounted(days, mountpoint, click.echo)
