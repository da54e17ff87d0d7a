"""The status document of a running mount, for the control socket, `optfs status` and metrics: counters, times and names, never a secret.

Moments are ISO 8601 in UTC, sizes bytes, spans seconds. Fields are added over time and never change their meaning.
"""

import dataclasses
import os
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optfs
from optfs.credentials.renewal import RenewalStatus
from optfs.reading.counters import Counters
from optfs.service.composition import Mount


def document(mount: Mount) -> dict[str, Any]:
    """Return the document."""
    reading = mount.files.counters()
    cache = dataclasses.asdict(mount.cache_stats())
    looked_up = reading if cache["state"] != "off" else Counters()  # without a cache nothing is missed
    cache |= {"hits": looked_up.disk_hits, "misses": looked_up.misses, "hit_bytes": looked_up.disk_bytes}
    snapshots = [each.counters.snapshot() for each in mount.connected]
    requests: Counter[str] = Counter({"list": 0, "get": 0})
    statuses: Counter[str] = Counter()
    for snapshot in snapshots:
        requests.update(snapshot.requests)
        statuses.update({str(status): count for status, count in snapshot.statuses.items()})
    return {
        "mountpoint": str(mount.mountpoint),
        "account": mount.account,
        "providers": [each.provider for each in mount.connected],
        "binding": mount.binding,
        "carrier": mount.config.carrier,
        "version": optfs.__version__,
        "pid": os.getpid(),
        "started": moment(mount.started_at),
        "uptime": round(time.time() - mount.started_at, 1),
        "credentials": [_credential(each.source.status()) for each in mount.connected],
        "cache": {"folder": str(mount.config.cache_dir), **cache},
        "requests": dict(requests),
        "statuses": dict(statuses),
        "bytes_fetched": sum(snapshot.bytes_fetched for snapshot in snapshots),
        "bytes_read": reading.read_bytes,
        "retries": sum(snapshot.retries for snapshot in snapshots),
        "errors": sum(snapshot.errors for snapshot in snapshots),
        "memory": {"limit": mount.config.memory, "buffered": reading.resident_bytes, "resident": resident()},
        "readahead": {"unused": reading.unused_bytes, "waiting": reading.fresh_bytes},
        "blocks": {"memory_hits": reading.memory_hits, "disk_hits": reading.disk_hits, "misses": reading.misses},
        "listings": dataclasses.asdict(mount.catalog.statistics()),
        "open_files": mount.filesystem.open_files(),
    }


def moment(at: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601; None for none, or for 0, which stands for never."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else None


def resident() -> int:
    """Return this process's resident memory, bytes; 0 where the system doesn't tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _credential(status: RenewalStatus) -> dict[str, Any]:
    fields = dataclasses.asdict(status)
    fields["expires_at"] = moment(status.expires_at)
    fields["expires_in"] = round(status.expires_at - time.time()) if status.expires_at else None
    fields["last_refresh"] = moment(status.last_refresh)
    fields["last_error"] = status.last_error or None
    return fields
