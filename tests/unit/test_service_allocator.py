"""Limits of the process."""

import os
import resource
import subprocess
import sys

import pytest


def test_freed_buffers_are_used_again_where_the_allocator_is_glibcs() -> None:
    """Else each buffer of libfuse's costs 256 page faults."""
    program = (
        "import resource; from optfs.service import allocator; tuned = allocator.tune_malloc();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "use = lambda: [bytearray(1 << 20) for _ in range(6)] and None;"
        "use(); before = faults(); [use() for _ in range(10)]; print(int(tuned), faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    tuned, faults = map(int, done.stdout.split())
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        assert tuned
        assert faults < 6 * 256  # a tenth of what they would be


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="core files are forbidden here already")
def test_no_core_files_are_written() -> None:
    program = (
        "import resource; from optfs.service import allocator; _, hard = resource.getrlimit(resource.RLIMIT_CORE);"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)); allocator.forbid_core_files();"
        "print(resource.getrlimit(resource.RLIMIT_CORE) == (0, hard))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_as_many_open_files_as_the_hard_limit_allows() -> None:
    """Where it is more than anyone needs, 65536."""
    program = (
        "import resource; from optfs.service import allocator; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, {})); allocator.raise_file_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for given, wanted in (("hard", 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)), ("100", 100)):
        done = subprocess.run([sys.executable, "-c", program.format(given)], capture_output=True, text=True, check=True, timeout=60)
        assert int(done.stdout.split()[0]) == wanted
