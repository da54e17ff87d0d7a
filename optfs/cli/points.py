"""Mount points on the command line.

click's own type for paths isn't used: it asks the file system about them, and a mount whose process is stopped never answers.
"""

from pathlib import Path

import click

from optfs.units import absolute


def point(text: str) -> Path:
    """Return the mount point that a word names.

    Raises:
        click.UsageError: it is empty, as an unset variable is, and would name the folder that one is in; or that was removed.

    """
    if not text:
        raise click.UsageError("MOUNTPOINT is empty; name a folder")
    try:
        return absolute(Path(text))
    except ValueError as error:
        raise click.UsageError(f"MOUNTPOINT {text!r} {error}") from None
