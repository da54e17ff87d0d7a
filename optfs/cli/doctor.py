"""`optfs doctor`: checks everything that a mount needs, a line each."""

import click

from optfs import config
from optfs.cli.mount import settings


@click.command("doctor")
@click.option("-o", "mount_options", multiple=True, metavar="OPT[=VALUE],…", help="Settings as mount(8) and fstab write them.")
@settings
def command(mount_options: tuple[str, ...], **options: str | None) -> int:
    """Check the FUSE binding, the token, credentials, the listing and the cache folder.

    Takes the settings of `optfs mount`; logs where --log-file says only. The exit code is 1 when something fails.
    """
    found = config.load(options, config.parse_mount_options(mount_options))

    from optfs.service import checks, logs

    logs.configure(found.log_level if found.log_file else "error", found.log_file, found.log_format, foreground=True)
    failed = False
    for finding in checks.run(found):
        word = {True: "ok  ", False: "FAIL", None: "-   "}[finding.ok]
        click.echo(f"{word} {finding.name}: {logs.redact(finding.text)}")
        failed = failed or finding.ok is False
    return 1 if failed else 0
