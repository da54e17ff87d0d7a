"""Limits of the process."""

import os
import resource
import subprocess
import sys


def test_freed_buffers_are_used_again_where_the_allocator_is_glibcs() -> None:
    """Else each buffer of libfuse's costs 256 page faults."""
    program = (
        "import resource; from optfs.service import allocator; tuned = allocator.tune_malloc();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "use = lambda: [bytearray(1 << 20) for _ in range(24)] and None;"
        "use(); before = faults(); [use() for _ in range(10)]; print(int(tuned), faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    tuned, faults = map(int, done.stdout.split())
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:
        assert tuned
        assert faults < 6 * 1024  # a tenth of what they would be


def test_no_core_files_and_as_many_open_files_as_allowed() -> None:
    program = (
        "import resource; from optfs.service import allocator; allocator.forbid_core_files(); allocator.raise_file_limit();"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    core, files = map(int, done.stdout.split())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert core == 0
    assert files == resource.RLIM_INFINITY or files >= soft or files >= min(hard, 65536)
