"""Process-wide limits that keep memory small and secrets off the disk, and let enough files be open.

glibc gives each thread an arena of its own, and what one frees another can't use: 24 fetching threads with buffers of mixed sizes held
210 MiB of resident memory, 120 MiB with two arenas.

By itself it also gives freed memory back to the system, which clears new pages for the next answer of 1 MiB: a stream of 1 GiB met 75,000 to
105,000 page faults. So some is kept. Longer buffers, blocks among them, are mappings of their own (`buffers`; `reading.blocks` keeps spare ones): among
smaller ones they left holes, and 64 readers with a `--memory` of 256 MiB took 397 to 447 MiB. Now eight streams meet 5,000 page faults, and 64
readers take 308 to 321 MiB. Elsewhere (musl, macOS) there is nothing to set.

A core file would hold the token and credentials, so none is written. `PR_SET_DUMPABLE` would do the same, but it takes /proc/self away from a
process that isn't root's, which tools of the user's own need.
"""

import ctypes
import resource

from optfs.values import MiB

# glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_SETTINGS = {
    _M_ARENA_MAX: 2,
    _M_MMAP_THRESHOLD: MiB + 4096,  # an answer's 1 MiB is below, libfuse's buffer for requests (that and a page), never filled, isn't
    _M_TRIM_THRESHOLD: 8 * MiB,  # free memory at each arena's end that is kept; 16 and 32 saved no more
}


def tune_malloc() -> bool:
    """Let malloc use two arenas at most and keep freed buffers; return whether it took that."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return {bool(mallopt(parameter, value)) for parameter, value in _SETTINGS.items()} == {True}


def forbid_core_files() -> None:
    """Write no core file when this process crashes."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit does, 65,536 at most: every reader of the mount costs none, but connections and blocks do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
