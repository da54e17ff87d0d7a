"""What is looked at before a mount begins."""

from pathlib import Path

import pytest

from optfs.config import load
from optfs.errors import ConfigError
from optfs.service.running import check_hidden


@pytest.mark.parametrize("place", ["mnt/tok", "mnt", "link/deep/tok", "mnt/../mnt/tok"])
@pytest.mark.parametrize("setting", ["token_file", "token_command", "log_file", "cache_dir"])
def test_what_the_mount_would_hide_cannot_be_used_by_it(tmp_path: Path, setting: str, place: str) -> None:
    """`optfs mount --token-file ~/token ~` would mount, and find no token for the first renewal. That it has a file there is no reason."""
    point = tmp_path / "mnt"
    point.mkdir()
    (tmp_path / "link").symlink_to(point)
    name = f"--{setting.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"^{name}: .* lies in the mount point"):
        check_hidden(load({setting: str(tmp_path / place)}, environ={}), point)


def test_what_lies_elsewhere_may_be_used(tmp_path: Path) -> None:
    """Also where its name begins like the mount point's, where it isn't needed, and where it is a command that is looked for."""
    point = tmp_path / "mnt"
    point.mkdir()
    check_hidden(load({"token_file": str(tmp_path / "mnt-token"), "log_file": "/dev/stderr"}, environ={}), point)
    check_hidden(load({"token_command": "mnt", "cache_size": "0", "cache_dir": str(point)}, environ={}), point)
