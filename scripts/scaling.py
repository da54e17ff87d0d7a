"""How a walk over the whole tree grows with the number of objects: seconds, listings, and resident memory.

    python scripts/scaling.py [--objects 10000,100000,1000000] [--latency-ms 30]

Each size is 500 days × 20 experiments of an account on the embedded services (in a process of their own), walked twice by `find -size +0` on
a fresh mount: the first time everything is listed, the second time nothing is, while the listings are believed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import Server
from benchmark.programs import Mounted, programs

from optfs.values import MiB


def walk(root: Path) -> tuple[int, float]:
    """Return how many files `find` finds, and the seconds it takes."""
    started = time.perf_counter()
    found = subprocess.run(["find", str(root), "-type", "f", "-size", "+0"], stdout=subprocess.PIPE, check=True).stdout
    return found.count(b"\n"), time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", default="10000,100000,1000000", help="multiples of 10,000")
    parser.add_argument("--latency-ms", type=float, default=30)
    arguments = parser.parse_args()
    optfs = next(program for program in programs() if program.name == "optfs-nocache")
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d')}, uid {os.geteuid()}")
    for wanted in map(int, arguments.objects.split(",")):
        with tempfile.TemporaryDirectory(prefix="optfs-scaling-") as name:
            server = Server(Path(name), arguments.latency_ms / 1000, 0, "--objects", str(wanted))
            try:
                mounted = Mounted(optfs, server.service, Path(name))
                try:
                    server.counts()
                    _, before = mounted.usage()
                    found, first = walk(mounted.root)
                    lists = server.counts().get("list", 0)
                    cpu, after = mounted.usage()
                    _, second = walk(mounted.root)
                finally:
                    mounted.close()
            finally:
                server.close()
        if found != wanted:
            raise SystemExit(f"found {found} files instead of {wanted}")
        memory = f"{after / MiB:.0f} MiB resident at most, {(after - before) / wanted:.0f} bytes an object"
        print(f"{wanted:9} objects: {first:6.2f} s, {lists} LIST, cpu {cpu:.2f} s, {memory}; again {second:.2f} s", flush=True)


if __name__ == "__main__":
    main()
