"""What the fault tests share."""

from pathlib import Path

import pytest

from tests.support.caches import KEYS, fill, make_cache


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Make a cache folder with all of KEYS in it, and no process that uses it."""
    cache = make_cache(tmp_path / "cache")
    fill(cache, *KEYS)
    cache.close()
    return tmp_path / "cache"
