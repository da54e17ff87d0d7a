"""Process-wide limits that keep memory small and secrets off the disk.

glibc gives each thread an arena of its own, and what one frees another can't use: 24 fetching threads with buffers of mixed sizes held
210 MiB of resident memory, 120 MiB with two arenas. Elsewhere (musl, macOS) there is nothing to set.

A core file would hold the token and credentials, so none is written. `PR_SET_DUMPABLE` would do the same, but it takes /proc/self away from a
process that isn't root's, which tools of the user's own need.
"""

import ctypes
import resource

_M_ARENA_MAX = -8  # glibc's malloc.h
ARENAS = 2


def limit_arenas() -> bool:
    """Let malloc use two arenas at most; return whether it took that."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(_M_ARENA_MAX, ARENAS))


def forbid_core_files() -> None:
    """Write no core file when this process crashes."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit does: every reader of the mount costs none, but connections and blocks do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
