"""A link that all requests share and that is slow: what is fetched ahead must not keep a reader from its own bytes."""

import random
from pathlib import Path
from urllib.parse import urlsplit

from optfs.demo.services import Services
from optfs.values import MiB
from tests.support.broken import mounted, read
from tests.support.links import narrow_link

KEY = "type=decisions/date=2026-11-01/experiment=1/part-0"
BIG = random.Random(1).randbytes(64 * MiB)
RATE = 3e6
"""Bytes a second. Of fifteen blocks that came at once a MiB each would take 5.2 s."""
PATIENCE = 4.0
"""`--timeout`, seconds."""


def test_a_stream_over_a_slow_link_goes_on(tmp_path: Path) -> None:
    """It failed after 16 MB on one of 1 MB/s, with the default `--timeout`: 33 requests were under way, and took it in turns."""
    services = Services()
    services.put(KEY, BIG)
    with services:
        url = urlsplit(services.s3_url)
        assert url.hostname is not None
        assert url.port is not None
        with narrow_link(url.hostname, url.port, RATE) as port:
            options = ("--timeout", f"{PATIENCE:.0f}s", "--s3-endpoint-url", f"http://127.0.0.1:{port}")
            with mounted(services, tmp_path, "aws", "auto", *options) as ready:
                got = read(ready.path(KEY))
    assert got.errno == 0
    assert got.content == BIG
