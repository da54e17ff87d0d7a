"""`optfs umount`."""

import shlex
from pathlib import Path

import click

from optfs.cli.points import point
from optfs.errors import MountBusy
from optfs.units import parse_duration_within

_duration = parse_duration_within(0, 86400, "0 to 24h")


def _seconds(text: str) -> float:
    try:
        return float(_duration(text))
    except ValueError as error:
        raise click.UsageError(f"--timeout: {text[:60]!r} {error}") from None


@click.command("umount")
@click.argument("mountpoint", type=point)
@click.option(
    "-l", "-z", "--lazy", is_flag=True, help="Take it out of sight even while it is in use, and wait a second at most for its end."
)
@click.option(
    "--timeout", type=_seconds, default="15s", show_default=True, metavar="TIME", help="How long to wait for the background process."
)
def command(mountpoint: Path, lazy: bool, timeout: float) -> None:
    """Unmount, and wait until the background process has ended."""
    from optfs.service import running

    try:
        line = running.unmount(mountpoint, lazy=lazy, timeout=timeout)
    except MountBusy as error:
        if lazy:
            raise
        quoted = shlex.quote(str(mountpoint))
        raise MountBusy(
            f"{error.message}; see who uses it: fuser -vm {quoted}, or unmount it all the same: optfs umount --lazy {quoted}"
        ) from None
    if line is not None:
        click.echo(line)
