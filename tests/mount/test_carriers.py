"""A mount by the SDKs' own clients shows the same bytes as one by the direct carrier, and asks for nothing else."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from optfs.demo.services import Services
from tests.mount.conftest import CONTENT, fill
from tests.support.mounting import Mounted, require

BIG = bytes(range(251)) * 50_000  # more than a block, and than what one request asks for


def contents(folder: Path) -> dict[bytes, bytes]:
    """Return the bytes of every file below a folder, by its path there."""
    top = os.fsencode(folder)
    found: dict[bytes, bytes] = {}
    for path, _, names in os.walk(top):
        for name in names:
            file = os.path.join(path, name)  # noqa: PTH118 - of bytes, as names may be no text
            with open(file, "rb") as opened:
                found[os.path.relpath(file, top)] = opened.read()
    return found


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_both_carriers_show_the_same_tree(provider: str, tmp_path: Path) -> None:
    """Odd names, folders of many pages and files of many ranges included; a credential that expires on the way costs nothing."""
    require("fuse3")
    with Services(page_size=7) as services, ExitStack() as stack:
        fill(services)
        services.put("type=decisions/date=2026-11-02/experiment=42/big.parquet", BIG)
        mounts = {
            carrier: stack.enter_context(Mounted(services, tmp_path / carrier, provider, "fuse3", "--carrier", carrier))
            for carrier in ("direct", "sdk")
        }
        direct = contents(mounts["direct"].account)
        asked = len(services.requests.entries())
        services.expire_credentials()
        by_sdk = contents(mounts["sdk"].account)
        assert by_sdk == direct
        assert by_sdk[b"type=decisions/date=2026-11-02/experiment=42/big.parquet"] == BIG
        assert CONTENT in by_sdk.values()
        entries = services.requests.entries()
        assert len(entries) > asked, "the second mount must not live by the first one's requests"
        assert {entry.method for entry in entries if entry.service != "api"} == {"GET"}
        assert {entry.kind for entry in entries} == {"credentials", "list", "get"}
        assert all(entry.key.startswith(services.prefix) for entry in entries if entry.kind != "credentials")
        assert "optfs.stores" not in mounts["sdk"].text(), "no request failed for good"
