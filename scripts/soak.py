"""Soak: one mount under random load for a long time, with short-lived credentials and faults on purpose.

    python scripts/soak.py [--minutes 60] [--seed 1] [--provider aws|gcp] [--binding auto|fuse3|fuse2]
        [--carrier direct|sdk]

Readers read random ranges and whole files and compare each byte with what the bucket holds; walkers list folders and compare names;
credentials live 30 seconds; 1 % of the data requests are reset, 1 % answer 503, some bodies end early or stall; objects are overwritten all
along, with other sizes, one of three every 0.4 seconds. In the first third of the time the mount is now and then unmounted and mounted again,
or killed and mounted over its dead mount point; after that one process lives to the end, so that its memory can be compared.

A finding is: a wrong byte or name; an error from the mount that isn't explained by a transition under way; a mount that doesn't come back, or
ends with another code than 0 after SIGTERM; a thread that hangs; on AWS a request signed with an expired credential (GCS tells no expiry);
memory of the last process that grew by more than 12 MiB between the medians of its first and last quarter, or descriptors by more than 4.
The last lines say what was done and found; the exit code is 1 when something was found.
"""

import argparse
import array
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optfs.demo.faults import Answer, Fault, Reset, Stall, Truncate
from optfs.demo.services import Services
from optfs.demo.traffic import Request
from optfs.values import KiB, MiB

ACCOUNT = "123"
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
CREDENTIAL_LIFETIME = 30.0
DAYS = 6
SMALL_FILES = 40
BIG_FILES = 3
BIG_SIZE = 48 * MiB
HOT_FILES = 3
HOT_SIZE = 300_000
HOT_PAUSE = 0.4
HOT_SHARE = 0.2
VERSIONS_KEPT = 5
HOT_VERSIONS_KEPT = 40  # 48 seconds' worth: a listing is believed for 5, and longer while it can't be refreshed
GROWTH_ALLOWED = 12 * MiB
DESCRIPTORS_ALLOWED = 4


HOT_KEYS = [f"type=decisions/date=2026-01-02/experiment=hot{number}/part-0.parquet" for number in range(HOT_FILES)]


def content(generation: int, size: int) -> bytes:
    """Return the bytes of one version of an object: each 8 of them tell the generation, which no other object has, and where they stand."""
    first = generation << 32
    return array.array("Q", range(first, first + size // 8 + 1)).tobytes()[:size]


def origin(data: bytes, offset: int) -> str:
    """Return which generations and places the bytes that were read at `offset` come from: for each stretch, where it begins and what it shows."""
    skip = -offset % 8
    words = array.array("Q", data[skip : skip + (len(data) - skip) // 8 * 8])
    found: list[str] = []
    last: tuple[int, int] | None = None
    for index, word in enumerate(words):
        at = offset + skip + index * 8
        shown = (word >> 32, (word & 0xFFFFFFFF) * 8 - at)
        if shown != last:
            found.append(f"from {at} on generation {shown[0]}" + (f" moved by {shown[1]}" if shown[1] else ""))
            last = shown
    return ", ".join(found[:6])


@dataclass
class Truth:
    """What the bucket holds. `lock` guards all fields.

    `versions` keeps for each key its latest contents, newest first: a listing is believed for a while, so a file rightly shows a former one, also
    where it was overwritten twice meanwhile.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    versions: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    generation: int = 0

    def put(self, services: Services, key: str, size: int) -> None:
        """Put a new version of an object."""
        with self.lock:
            self.generation += 1
            data = content(self.generation, size)
            kept = HOT_VERSIONS_KEPT if key in HOT_KEYS else VERSIONS_KEPT
            self.versions[key] = (data, *self.versions.get(key, ()))[:kept]
            services.put(key, data)

    def of(self, key: str) -> tuple[bytes, ...]:
        """Return the latest contents, newest first."""
        with self.lock:
            return self.versions[key]

    def list_keys(self) -> list[str]:
        """Return all keys."""
        with self.lock:
            return sorted(self.versions)


@dataclass
class Tally:
    """What was done and found. Any thread may call any method."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def count(self, what: str, by: int = 1) -> None:
        """Add to a count."""
        with self.lock:
            self.counts[what] += by

    def finding(self, text: str) -> None:
        """Write a finding down, and say it at once."""
        with self.lock:
            self.findings.append(text)
        print("FINDING:", text, flush=True)


class Transitions:
    """Says whether an operation overlapped a moment when the mount was going, gone or coming.

    `epoch` is odd during a transition. An operation is undisturbed when it saw the same even epoch at its start and at its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0

    def epoch(self) -> int:
        """Return the present epoch."""
        with self._lock:
            return self._epoch

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Mark a transition."""
        with self._lock:
            self._epoch += 1
        try:
            yield
        finally:
            with self._lock:
                self._epoch += 1


class Mount:
    """The program under test, as its own process."""

    def __init__(self, services: Services, folder: Path, arguments: argparse.Namespace) -> None:
        self.point = folder / "mnt"
        self.point.mkdir()
        self._log = folder / "optfs.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_", "OPTFS_", "OPTIMIZELY_"))},
            **services.environment,
        }
        self._line = [sys.executable, "-m", "optfs", "mount", "--foreground", "--provider", arguments.provider]
        self._line += ["--binding", arguments.binding, "--carrier", arguments.carrier]
        self._line += ["--cache-dir", str(folder / "cache"), "--cache-size", "256MiB", "--memory", "64MiB", "--listing-ttl", "5s"]
        self._line += ["--timeout", "20s", "--log-file", str(self._log), str(self.point)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mount, and return when the account's folder is there."""
        self.process = subprocess.Popen(self._line, env=self._environment)
        for _ in range(600):
            with contextlib.suppress(OSError):  # the dead mount that it takes the place of
                os.statvfs(self.point)  # the kernel still answers `stat` for that one, for a second
                if self.point.is_mount() and (self.point / ACCOUNT).is_dir():
                    return
            if self.process.poll() is not None:
                raise SystemExit(f"the mount ended with {self.process.returncode}; see {self._log}")
            time.sleep(0.05)
        raise SystemExit("the mount did not become usable in 30 s")

    def stop(self) -> int:
        """Unmount by SIGTERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End the process without warning; the mount point stays dead."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def clean(self) -> None:
        """Leave nothing mounted or running."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        subprocess.run(["fusermount3", "-u", "-z", str(self.point)], capture_output=True, check=False)

    def resident(self) -> tuple[int, int]:
        """Return resident bytes and the number of open descriptors."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return kilobytes * KiB, len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


class Load:
    """Readers and walkers, each a thread."""

    def __init__(self, mount: Mount, truth: Truth, tally: Tally, transitions: Transitions, stop: threading.Event) -> None:
        self._root = mount.point / ACCOUNT
        self._truth = truth
        self.tally = tally
        self.transitions = transitions
        self.stop = stop

    def repeat(self, name: str, seed: int, operation: Callable[[random.Random], None]) -> threading.Thread:
        """Run one operation again and again until the end."""

        def run() -> None:
            dice = random.Random(f"{seed}/{name}")  # noqa: S311 - reproducible load
            while not self.stop.is_set():
                before = self.transitions.epoch()
                try:
                    operation(dice)
                except OSError as error:
                    self._explain(name, error, before)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _explain(self, name: str, error: OSError, before: int) -> None:
        disturbed = before % 2 == 1 or self.transitions.epoch() != before
        if disturbed:
            self.tally.count("errors during a transition")
            time.sleep(0.2)
        elif error.errno == 116:  # ESTALE: the version was overwritten while it was open
            self.tally.count("stale handles after an overwrite")
        else:
            self.tally.finding(f"{name}: {error}")
            time.sleep(1)  # one cause, not thousands of lines

    def read_range(self, dice: random.Random) -> None:
        """Read one random range of one random file."""
        key = self._choose(dice)
        versions = self._truth.of(key)
        with open(self._root / key, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(dice.randint(1, 6)):
                offset = dice.randrange(max(1, size))
                length = dice.choice([1, 4 * KiB, 100_000, MiB])
                self._compare(key, read_exactly(file.fileno(), length, offset), offset, length, versions)

    def read_whole(self, dice: random.Random) -> None:
        """Read one random file from its start to its end."""
        key = self._choose(dice)
        versions = self._truth.of(key)
        data = (self._root / key).read_bytes()
        self._compare(key, data, 0, 1 << 40, versions)

    def _choose(self, dice: random.Random) -> str:
        return dice.choice(HOT_KEYS if dice.random() < HOT_SHARE else self._truth.list_keys())

    def walk(self, dice: random.Random) -> None:
        """List one day, names and sizes."""
        day = dice.randrange(DAYS)
        folder = self._root / f"type=decisions/date=2026-01-{day + 1:02}"
        prefix = str(folder.relative_to(self._root)) + "/"
        before = self.transitions.epoch()
        expected = {key for key in self._truth.list_keys() if key.startswith(prefix)}
        found = {str(path.relative_to(self._root)) for path in folder.rglob("*") if path.is_file()}
        self.tally.count("walks")
        undisturbed = before % 2 == 0 and self.transitions.epoch() == before  # `rglob` sees nothing where it can't look
        if found != expected and undisturbed:
            self.tally.finding(f"names below {folder.name}: {sorted(found ^ expected)[:3]}")
        time.sleep(dice.random())

    def _compare(self, key: str, data: bytes, offset: int, length: int, versions: tuple[bytes, ...]) -> None:
        self.tally.count("reads")
        self.tally.count("bytes compared", len(data))
        candidates = [*versions, *self._truth.of(key)]
        if not any(data == version[offset : offset + length] for version in candidates):
            held = [f"{int.from_bytes(version[:8], 'little') >> 32} of {len(version)}" for version in candidates]
            self.tally.finding(
                f"wrong bytes: {key} at {offset}, asked {length}, got {len(data)}: {origin(data, offset)}; right: {', '.join(held)}"
            )


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """Return `length` bytes, fewer only at the file's end. Where a read fails half-way, the kernel first returns what it has, as POSIX wants."""
    data = os.pread(descriptor, length, offset)
    while 0 < len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def fill(truth: Truth, services: Services, seed: int) -> None:
    """Put the first version of every object."""
    dice = random.Random(seed)  # noqa: S311 - reproducible data
    for day in range(DAYS):
        for number in range(SMALL_FILES):
            truth.put(services, f"type=decisions/date=2026-01-{day + 1:02}/experiment={number}/part-0.parquet", dice.randint(8, 2 * MiB))
    for key in HOT_KEYS:
        truth.put(services, key, HOT_SIZE)
    for number in range(BIG_FILES):
        truth.put(services, f"type=decisions/date=2026-01-01/experiment=big{number}/part-0.parquet", BIG_SIZE)


def install_faults(services: Services, seed: int, tally: Tally) -> None:
    """Let one in a hundred data requests be reset and one answer 503; fewer end early or stall."""
    dice = random.Random(seed)  # noqa: S311 - reproducible faults
    lock = threading.Lock()

    def rarely(name: str, share: float) -> Callable[[Request], bool]:
        def match(request: Request) -> bool:
            with lock:
                hit = request.kind in ("get", "list") and dice.random() < share
            if hit:
                tally.count(name)
            return hit

        return match

    services.faults.add(Fault(rarely("resets", 0.01), Reset(after=3000)))
    services.faults.add(Fault(rarely("503", 0.01), Answer(503, SLOW_DOWN)))
    services.faults.add(Fault(rarely("truncated", 0.002), Truncate(at=5000)))
    stall = rarely("stalls", 0.001)
    services.faults.add(Fault(stall, Stall(after=1000)))


def churn_thread(truth: Truth, services: Services, load: Load, seed: int) -> threading.Thread:
    """Overwrite one of the hot files again and again."""

    def run() -> None:
        dice = random.Random(f"{seed}/churn")  # noqa: S311 - reproducible load
        while not load.stop.wait(HOT_PAUSE):
            truth.put(services, dice.choice(HOT_KEYS), dice.randint(8, HOT_SIZE))
            load.tally.count("overwrites of hot files")

    thread = threading.Thread(target=run, name="churn", daemon=True)
    thread.start()
    return thread


def transitions_thread(mount: Mount, truth: Truth, services: Services, load: Load, arguments: argparse.Namespace) -> threading.Thread:
    """Overwrite an object every few seconds; in the first third remount or kill every few minutes."""
    tally, transitions, stop, seed = load.tally, load.transitions, load.stop, arguments.seed
    last_remount = time.monotonic() + arguments.minutes * 20

    def run() -> None:
        dice = random.Random(f"{seed}/transitions")  # noqa: S311 - reproducible load
        next_remount = time.monotonic() + 120
        while not stop.wait(dice.uniform(2, 8)):
            key = dice.choice([key for key in truth.list_keys() if "big" not in key and key not in HOT_KEYS])
            truth.put(services, key, dice.randint(8, 2 * MiB))
            tally.count("overwrites")
            if not next_remount <= time.monotonic() < last_remount:
                continue
            next_remount = time.monotonic() + 240
            with transitions.under_way():
                if dice.random() < 0.5:
                    code = mount.stop()
                    tally.count("remounts")
                    if code != 0:
                        tally.finding(f"the mount ended with {code} after SIGTERM")
                else:
                    mount.kill()
                    tally.count("kills")
                try:
                    mount.start()
                except SystemExit as failure:
                    tally.finding(str(failure))
                    stop.set()

    thread = threading.Thread(target=run, name="transitions", daemon=True)
    thread.start()
    return thread


def watch(mount: Mount, transitions: Transitions, minutes: float, stop: threading.Event) -> list[tuple[int, int]]:
    """Sample memory and descriptors of the last process every 2 seconds until the time is over, or the mount is lost."""
    samples: list[tuple[int, int]] = []
    epoch = transitions.epoch()
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end and not stop.wait(2):
        if transitions.epoch() != epoch:
            epoch = transitions.epoch()
            samples.clear()
        if epoch % 2 == 0:
            with contextlib.suppress(OSError, StopIteration):
                samples.append(mount.resident())
                if len(samples) % 60 == 1:
                    print(f"memory {samples[-1][0] / MiB:.1f} MiB, descriptors {samples[-1][1]}", flush=True)
    return samples


def quarters(values: list[int]) -> tuple[float, float]:
    """Return the medians of the first and the last quarter, the first tenth (warming up) left out."""
    steady = values[len(values) // 10 :]
    part = max(1, len(steady) // 4)
    return statistics.median(steady[:part]), statistics.median(steady[-part:])


def signed_with_expired(services: Services, provider: str) -> int:
    """Return how many data requests a store refused for an expired credential. GCS tells no expiry, so one a lifetime is its due there."""
    log = services.requests.entries()
    return sum(1 for entry in log if provider == "aws" and entry.service == "s3" and entry.status == 400)


def main() -> int:
    """Run, print what was done and found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--provider", choices=["aws", "gcp"], default="aws")
    parser.add_argument("--binding", choices=["auto", "fuse3", "fuse2"], default="auto")
    parser.add_argument("--carrier", choices=["direct", "sdk"], default="direct")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays mounted
    tally, truth, transitions, stop = Tally(), Truth(), Transitions(), threading.Event()
    services = Services(
        account=ACCOUNT, s3=arguments.provider == "aws", gcs=arguments.provider == "gcp", credential_lifetime=CREDENTIAL_LIFETIME
    )
    with tempfile.TemporaryDirectory(prefix="optfs-soak-") as name, services:
        fill(truth, services, arguments.seed)
        mount = Mount(services, Path(name), arguments)
        try:
            mount.start()
            install_faults(services, arguments.seed, tally)
            load = Load(mount, truth, tally, transitions, stop)
            threads = [load.repeat(f"range-{number}", arguments.seed, load.read_range) for number in range(3)]
            threads.append(load.repeat("whole", arguments.seed, load.read_whole))
            threads.append(load.repeat("walk", arguments.seed, load.walk))
            threads.append(churn_thread(truth, services, load, arguments.seed))
            threads.append(transitions_thread(mount, truth, services, load, arguments))
            samples = watch(mount, transitions, arguments.minutes, stop)
            stop.set()
            for thread in threads:
                thread.join(60)
                if thread.is_alive():
                    tally.finding(f"{thread.name} hangs")
            with transitions.under_way():
                if (code := mount.stop()) != 0:
                    tally.finding(f"the mount ended with {code} after SIGTERM")
        finally:
            stop.set()
            mount.clean()
        expired = signed_with_expired(services, arguments.provider)
        if expired:
            tally.finding(f"{expired} requests were signed with an expired credential")
        tally.counts["renewals"] = services.requests.count("credentials")
    first, last = quarters([resident for resident, _ in samples])
    first_open, last_open = quarters([descriptors for _, descriptors in samples])
    if last - first > GROWTH_ALLOWED:
        tally.finding(f"memory grew from {first / MiB:.1f} to {last / MiB:.1f} MiB")
    if last_open - first_open > DESCRIPTORS_ALLOWED:
        tally.finding(f"descriptors grew from {first_open:.0f} to {last_open:.0f}")
    print(json.dumps(dict(sorted(tally.counts.items()))))
    print(f"memory, medians of the first and the last quarter: {first / MiB:.1f} and {last / MiB:.1f} MiB; ", end="")
    print(f"descriptors: {first_open:.0f} and {last_open:.0f}")
    print(f"{len(tally.findings)} findings in {arguments.minutes:g} minutes")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
