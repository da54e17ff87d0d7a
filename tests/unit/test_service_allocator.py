"""Limits of the process."""

import os
import resource
import subprocess
import sys

from optfs.service import allocator


def test_the_allocator_is_limited_where_it_is_glibcs() -> None:
    glibc = "CS_GNU_LIBC_VERSION" in os.confstr_names
    assert allocator.limit_arenas() or not glibc


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
