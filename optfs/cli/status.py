"""`optfs status`: what is mounted and how it fares, for people or as JSON."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from optfs.cli.points import point

Document = dict[str, Any]


@click.command("status")
@click.argument("mountpoint", required=False, type=point)
@click.option("--json", "as_json", is_flag=True, help='One JSON document: {"mounts": […]}.')
def command(mountpoint: Path | None, as_json: bool) -> int:
    """Show all mounts, or the one at MOUNTPOINT: credentials, cache, requests.

    The exit code is 1 when MOUNTPOINT isn't mounted or its process doesn't answer.
    """
    from optfs.service import survey

    found = survey.mounts(mountpoint)
    if as_json:
        click.echo(json.dumps({"mounts": found}, indent=2))
    elif found:
        click.echo("\n\n".join("\n".join(map(visible, lines(mount))) for mount in found))
    else:
        click.echo("nothing is mounted" if mountpoint is None else f"{mountpoint} is not mounted by optfs", err=mountpoint is not None)
    return 1 if mountpoint is not None and not any(mount["state"] == "mounted" for mount in found) else 0


def lines(mount: Document) -> list[str]:
    """Return what people read of one mount."""
    if mount["state"] != "mounted":
        command = f"optfs umount {shlex.quote(mount['mountpoint'])}"
        advice = (
            f"unmount it: {command}"
            if mount["state"] == "dead"
            else "it is another user's, was moved or bound there, or is busy; see its log"
        )
        return [f"{mount['mountpoint']}: {mount['state']}; {advice}"]
    cache, requests, blocks = mount["cache"], mount["requests"], mount["blocks"]
    carrier = f", carrier {mount['carrier']}" if mount.get("carrier", "direct") != "direct" else ""  # older versions told none
    shown = [
        f"{mount['mountpoint']}: account {mount['account']}, {' and '.join(mount['providers'])}, {mount['binding']}{carrier}",
        f"  process     {mount['pid']}, optfs {mount['version']}, up {span(mount['uptime'])}, {size(mount['memory']['resident'])} resident",
    ]
    for credential in mount["credentials"]:
        expiry = f"expires in {span(credential['expires_in'])}" if credential["expires_in"] is not None else "no known expiry"
        refreshed = f", last refresh {credential['last_refresh']}" if credential["last_refresh"] else ""
        shown.append(
            f"  {credential['provider']}         {credential['bucket']}: {expiry}{refreshed}, {credential['last_error'] or 'no error'}"
        )
    shown += [
        f"  cache       {cache['state']}: {size(cache['size'])} of {size(cache['limit'])}, {cache['hits']} hits, {cache['misses']} misses",
        f"  requests    {requests.get('list', 0)} listings, {requests.get('get', 0)} reads, {mount['retries']} retries, {mount['errors']} errors",
        (
            f"  bytes       {size(mount['bytes_fetched'])} fetched, {size(mount['bytes_read'])} read, "
            f"{size(mount['readahead']['unused'])} fetched ahead in vain"
        ),
        f"  blocks      {blocks['memory_hits']} from memory, {blocks['disk_hits']} from the cache, {blocks['misses']} from the network",
    ]
    for state, words in (("failing", "can't be listed now"), ("refusing", "refuses listings")):
        if providers := mount["listings"].get(state):  # a mount that was begun by an older version tells less
            shown.append(f"  listings    {' and '.join(providers)} {words}; what was last seen is shown")
    return shown


def visible(text: str) -> str:
    """Return a line with what would control a terminal escaped: it may be another user's."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def size(count: float) -> str:
    """Return bytes as people read them: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float) -> str:
    """Return a time span as people read it: `2h 05m`, `3m 12s`."""
    if seconds < 0:
        return "-" + span(-seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"
