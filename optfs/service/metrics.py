"""Prometheus metrics of a mount, taken from the status document when they are asked for. Imported only with `--metrics`.

Names follow Prometheus's conventions: base units, `_total` for counters. Labels are the mount point and what a family is split by.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import start_http_server
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from optfs.errors import ConfigError
from optfs.units import Address

Document = dict[str, Any]

_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("optfs_fetched_bytes", "Bytes of objects fetched.", "bytes_fetched"),
    ("optfs_read_bytes", "Bytes handed out to readers.", "bytes_read"),
    ("optfs_retries", "Requests made again.", "retries"),
    ("optfs_errors", "Operations that failed for good.", "errors"),
    ("optfs_cache_hits", "Fetches that the cache answered.", "cache.hits"),
    ("optfs_cache_misses", "Fetches that the cache didn't answer, or not all of it.", "cache.misses"),
    ("optfs_readahead_unused_bytes", "Bytes fetched ahead and never read.", "readahead.unused"),
)
_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("optfs_cache_size_bytes", "What the cache takes on the disk.", "cache.size"),
    ("optfs_cache_limit_bytes", "What it may take.", "cache.limit"),
    ("optfs_memory_resident_bytes", "Resident memory of the mount's process.", "memory.resident"),
    ("optfs_memory_buffered_bytes", "Blocks in memory.", "memory.buffered"),
    ("optfs_open_files", "Files that are open.", "open_files"),
    ("optfs_uptime_seconds", "Since the mount began.", "uptime"),
)


class _MountCollector(Collector):
    def __init__(self, document: Callable[[], Document]) -> None:
        self._document = document

    def collect(self) -> Iterator[Metric]:
        document = self._document()
        point = str(document["mountpoint"])
        for name, text, path in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["mountpoint"])
            counter.add_metric([point], _at(document, path))
            yield counter
        for name, text, path in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["mountpoint"])
            gauge.add_metric([point], _at(document, path))
            yield gauge
        requests = CounterMetricFamily("optfs_requests", "Requests sent, by kind.", labels=["mountpoint", "kind"])
        for kind, count in document["requests"].items():
            requests.add_metric([point, kind], count)
        yield requests
        answers = CounterMetricFamily("optfs_answers", "Answers, by HTTP status.", labels=["mountpoint", "status"])
        for status, count in document["statuses"].items():
            answers.add_metric([point, status], count)
        yield answers
        expiry = GaugeMetricFamily(
            "optfs_credential_expiry_timestamp_seconds", "When credentials expire.", labels=["mountpoint", "provider"]
        )
        for credential in document["credentials"]:
            if credential["expires_at"]:
                expiry.add_metric([point, credential["provider"]], datetime.fromisoformat(credential["expires_at"]).timestamp())
        yield expiry
        failing = GaugeMetricFamily("optfs_credential_failing", "1 when the last renewal failed.", labels=["mountpoint", "provider"])
        for credential in document["credentials"]:
            failing.add_metric([point, credential["provider"]], float(credential["last_error"] is not None))
        yield failing


def _at(document: Document, path: str) -> float:
    value: Any = document
    for key in path.split("."):
        value = value[key]
    return float(value)


def serve(address: Address, document: Callable[[], Document]) -> Callable[[], None]:
    """Serve metrics at an address from a thread; return what ends it.

    Raises:
        ConfigError: nobody can listen there.

    """
    registry = CollectorRegistry()
    registry.register(_MountCollector(document))
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise ConfigError(f"--metrics: can't listen at {address.host}:{address.port}: {error.strerror or error}") from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2.0)

    return close
