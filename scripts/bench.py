"""Measure optfs beside its peers on the embedded services: same data and latency, in turns, each time on a fresh mount with an empty cache.

    python scripts/bench.py [--runs 3] [--tests seq,par8,…] [--programs optfs,s3fs,…] [--latency-ms 30] [--rate-mb 80] [--picture FILE]

A peer that is not installed is left out and named. Medians are printed with the smallest and largest run, then the ratio of the best peer
to optfs (over 1: optfs is faster); at the end all of them in one table. A test that takes more than two minutes is ended, and one of more
than ten seconds isn't repeated for that program. Memory, CPU seconds and requests belong to the program and the test alone. The data lies in
memory where /dev/shm has 4 GiB free, else in the folder for temporary files.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark.measures import LIMIT, Failed, Measure, Stopped, measures, raw
from benchmark.programs import BUCKET, PREFIX, Mounted, NotMountedError, Program, Service, programs

from optfs.values import MiB

BIG = f"{BUCKET}/{PREFIX}/type%3Devents/date%3D2026-11-01/event%3Dbig/part-0.parquet".replace("account_id=", "account_id%3D")


LONG = 10.0
"""Seconds; slower than any test by optfs, and where chance matters little."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One run of one test on one program.

    Attributes:
        cpu: seconds.
        peak: resident memory, bytes.
        ready: seconds until the mount could be used.
        fetched: bytes that optfs fetched, and those of them that were fetched ahead and not read.
        stopped: it took longer than `measures.LIMIT`, and was ended.

    """

    seconds: float
    cpu: float
    peak: int
    ready: float
    lists: int
    gets: int
    fetched: tuple[int, int] | None
    stopped: bool


class Server:
    """The services' process."""

    def __init__(self, folder: Path, latency: float, rate: int, *more: str) -> None:
        line = [sys.executable, "-m", "benchmark.server", "--folder", str(folder), "--latency", str(latency), "--rate", str(rate), *more]
        self._process = subprocess.Popen(line, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.service = Service(**self._answer())

    def counts(self) -> dict[str, int]:
        """Return requests by kind since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the embedded services ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def forget_pages() -> None:
    """Drop the kernel's page cache, where the process may."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def run_once(measure: Measure, program: Program, server: Server, folder: Path) -> Result:
    """Mount with an empty cache, run one test, unmount."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        mounted = Mounted(program, server.service, place)
        try:
            if measure.again:
                measure.run(mounted.root)
                time.sleep(2)  # caches are written behind the reader's back
                mounted.close()
                forget_pages()
                mounted = Mounted(program, server.service, place)
            server.counts()
            before, _ = mounted.usage()
            started = time.perf_counter()
            stopped = False
            try:
                measure.run(mounted.root)
            except Stopped:
                stopped = True
            seconds = time.perf_counter() - started
            after, peak = mounted.usage()
            counts = server.counts()
            fetched = mounted.fetched()
        finally:
            mounted.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Result(seconds, after - before, peak, mounted.ready, counts.get("list", 0), counts.get("get", 0), fetched, stopped)


def speed(measure: Measure, seconds: float) -> str:
    """Return a figure as the table shows it."""
    return f"{measure.read / seconds / 1e6:.0f} MB/s" if measure.read else f"{seconds:.2f} s"


def report(measure: Measure, results: dict[str, list[Result]]) -> dict[str, float]:
    """Print one test's lines and return the medians of seconds."""
    medians = {}
    for name, rows in results.items():
        if not rows:
            continue
        seconds = [row.seconds for row in rows]
        medians[name] = statistics.median(seconds)
        middle = sorted(rows, key=lambda row: row.seconds)[len(rows) // 2]
        spread = f"({min(seconds):.2f}–{max(seconds):.2f} s)"
        amount = f", {middle.fetched[0] / MiB:.0f} MiB, {middle.fetched[1] / MiB:.0f} in vain" if middle.fetched else ""
        if middle.stopped:
            print(f"{measure.name:9} {name:15} more than {LIMIT:.0f} s: ended")
            continue
        rest = f"cpu {middle.cpu:.2f} s, peak {max(row.peak for row in rows) / MiB:.0f} MiB, ready {middle.ready:.2f} s"
        print(
            f"{measure.name:9} {name:15} {speed(measure, medians[name]):>9} {spread:>16}  {rest}, {middle.lists} LIST, {middle.gets} GET{amount}",
            flush=True,
        )
    peers = {name: value for name, value in medians.items() if not name.startswith("optfs")}
    if peers:
        best = min(peers, key=lambda name: peers[name])
        for name in medians.keys() - peers.keys():
            least = "at least " if results[best][0].stopped else ""
            print(f"{measure.name:9} {name} is {least}{peers[best] / medians[name]:.2f} times as fast as the best peer, {best}", flush=True)
    return medians


def print_table(results: dict[Measure, dict[str, list[Result]]]) -> None:
    """Print all medians as one table in Markdown, a row a test, and below them what belongs to the programs."""
    names = list(dict.fromkeys(name for by_name in results.values() for name, rows in by_name.items() if rows))

    def row(title: str, cell: Callable[[str], str]) -> str:
        return f"| {title} | " + " | ".join(cell(name) for name in names) + " |"

    def median(measure: Measure, name: str) -> str:
        rows = results[measure].get(name, [])
        if not rows or rows[0].stopped:
            return f"over {LIMIT:.0f} s" if rows else ""
        return speed(measure, statistics.median(each.seconds for each in rows))

    def of_all(name: str) -> list[Result]:
        return [each for by_name in results.values() for each in by_name.get(name, [])]

    print("\n" + row("", str))
    print("|---" * (len(names) + 1) + "|")
    for measure in results:
        print(row(measure.title, lambda name, measure=measure: median(measure, name)))  # type: ignore[misc]  # mypy can't infer its default
    streams = [measure for measure in results if measure.name == "seq"]
    for measure in streams:
        cpu = {name: [each.cpu for each in rows if not each.stopped] for name, rows in results[measure].items()}
        print(row("CPU seconds of the stream", lambda name, cpu=cpu: f"{statistics.median(cpu[name]):.2f}" if cpu.get(name) else ""))  # type: ignore[misc]  # as above
    print(row("usable after", lambda name: f"{statistics.median(each.ready for each in of_all(name)):.2f} s"))
    print(row("largest resident memory", lambda name: f"{max(each.peak for each in of_all(name)) / MiB:.0f} MiB"))


def picture(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Draw one group of bars a test, seconds on a logarithmic scale."""
    import matplotlib as mpl  # noqa: PLC0415 - only with --picture

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    names = list(dict.fromkeys(name for medians in table.values() for name in medians))
    figure, axes = pyplot.subplots(figsize=(12, 5))
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        points = [(index + at * width, medians[name]) for index, medians in enumerate(table.values()) if name in medians]
        axes.bar([x for x, _ in points], [y for _, y in points], width, label=name)
    axes.set_xticks([index + 0.4 for index in range(len(table))], list(table))
    axes.set_yscale("log")
    axes.set_ylabel("seconds (less is better)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"the picture is {path}")


def data_folder() -> Path:
    """Return where the data is put: memory, where there is enough of it."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    if memory.is_dir() and shutil.disk_usage(memory).free > 4096 * MiB:
        return memory
    return Path(tempfile.gettempdir())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tests", default=",".join(measure.name for measure in measures()))
    parser.add_argument("--programs", default=",".join(program.name for program in programs()))
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument("--rate-mb", type=float, default=80, help="MB/s of one response; 0: no limit")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and data are cleaned up
    known = {program.name: program for program in programs()}
    chosen = [known[name] for name in arguments.programs.split(",")]
    tests = [measure for measure in measures() if measure.name in arguments.tests.split(",")]
    for program in [program for program in chosen if not program.installed()]:
        print(f"{program.name} is not installed here: left out")
        chosen.remove(program)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d')}, uid {os.geteuid()}")
    table: dict[str, dict[str, float]] = {}
    all_results: dict[Measure, dict[str, list[Result]]] = {}
    with tempfile.TemporaryDirectory(prefix="optfs-bench-", dir=data_folder()) as name:
        folder = Path(name)
        server = Server(folder, arguments.latency_ms / 1000, int(arguments.rate_mb * 1e6))
        try:
            rates = [
                1024 * MiB / raw(server.service.s3, server.service.access_key, server.service.secret_key, BIG, 1024 * MiB) / 1e6
                for _ in range(arguments.runs)
            ]
            print(f"raw fetch, 24 threads of 4 MiB ranges, no mount: {statistics.median(rates):.0f} MB/s", flush=True)
            for measure in tests:
                results: dict[str, list[Result]] = {program.name: [] for program in chosen}
                for _ in range(arguments.runs):
                    for program in list(chosen):
                        if any(result.stopped or result.seconds > LONG for result in results[program.name]):
                            continue
                        try:
                            results[program.name].append(run_once(measure, program, server, folder))
                        except Failed as error:
                            print(f"{measure.name:9} {program.name:15} failed: {error}", flush=True)
                        except NotMountedError as error:
                            print(f"{program.name} can't be mounted here and is left out: {error}", flush=True)
                            chosen.remove(program)
                table[measure.name] = report(measure, results)
                all_results[measure] = results
            print_table(all_results)
        finally:
            server.close()
    if arguments.picture:
        picture(arguments.picture, table)


if __name__ == "__main__":
    main()
