"""What is measured. Each test reads the mount as a user's program would, and counts only if it succeeds.

Random reads are made by the benchmark itself, the others by programs of their own. Where a test gives a count of lines, bytes or rows, that is
checked; `dd` to /dev/null gives none: its exit code is.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optfs.values import KiB, MiB

COLUMN = """
import sys, pyarrow.dataset, pyarrow.compute
table = pyarrow.dataset.dataset(sys.argv[1], format="parquet").to_table(columns=["revenue"])
print(table.num_rows, pyarrow.compute.sum(table["revenue"]))
"""


LIMIT = 120.0
"""Seconds that a test may take: peers that list each of 7,666 folders by itself take ten minutes for `tree`. Of the random reads the one under
way is waited for."""


class Failed(Exception):
    """A test gave a wrong answer or ended badly."""


class Stopped(Exception):
    """A test took longer than `LIMIT`, and was ended."""


@dataclass(frozen=True)
class Measure:
    """One test.

    Attributes:
        run: reads below the account's folder; raises Failed.
        read: bytes that it reads; 0 where seconds are what counts.

    """

    name: str
    title: str
    run: Callable[[Path], None]
    read: int = 0
    again: bool = False


def _shell(line: str, *arguments: str) -> str:
    process = subprocess.Popen(
        ["bash", "-c", line, "bash", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    except BaseException as error:  # a signal may end the benchmark meanwhile
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Stopped from error
        raise
    if process.returncode:
        raise Failed(err.strip()[-300:])
    return out.strip()


def _expect(answer: str, expected: str) -> None:
    if answer != expected:
        raise Failed(f"got {answer!r} instead of {expected!r}")


def _ls(root: Path) -> None:
    _expect(_shell('ls -l "$1" | wc -l', f"{root}/type=events/date=2026-11-03/event=wide"), "10001")


def _tree(root: Path) -> None:
    _expect(_shell('find "$1" -type f -size +0 | wc -l', f"{root}/type=decisions"), "14600")


def _first(root: Path) -> None:
    _expect(
        _shell('dd if="$1" bs=1M count=1 status=none | wc -c', f"{root}/type=events/date=2026-11-01/event=big/part-0.parquet"), str(MiB)
    )


def _sequential(root: Path) -> None:
    # dd to /dev/null: a pipe to another program would take a share of two cores that is not the mount's.
    _shell('dd if="$1" of=/dev/null bs=1M status=none', f"{root}/type=events/date=2026-11-01/event=big/part-0.parquet")


def _parallel(root: Path) -> None:
    _shell(
        'pids=(); for file in "$1"/*; do dd if="$file" of=/dev/null bs=1M status=none & pids+=($!); done; '
        'for pid in "${pids[@]}"; do wait "$pid" || exit 1; done',
        f"{root}/type=events/date=2026-11-01/event=par8",
    )


def _tar(root: Path) -> None:
    size = int(_shell('set -o pipefail; tar cf - -C "$1" event=small | wc -c', f"{root}/type=events/date=2026-11-02"))
    if size < 1000 * MiB:
        raise Failed(f"tar wrote {size} bytes")


def _random(length: int) -> Callable[[Path], None]:
    def run(root: Path) -> None:
        dice = random.Random(length)  # noqa: S311 - reproducible offsets
        files = sorted((root / "type=events/date=2026-11-01/event=par8").iterdir())
        handles = [os.open(file, os.O_RDONLY) for file in files]
        until = time.monotonic() + LIMIT
        try:
            for _ in range(200):
                if time.monotonic() > until:
                    raise Stopped
                handle = dice.choice(handles)
                if len(os.pread(handle, length, dice.randrange(256 * MiB - length))) != length:
                    raise Failed("a short read")
        finally:
            for handle in handles:
                os.close(handle)

    return run


def _column(date: str, rows: int) -> Callable[[Path], None]:
    def run(root: Path) -> None:
        line = [sys.executable, "-c", COLUMN, f"{root}/type=events/date={date}/event=purchase"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=LIMIT)
        except subprocess.TimeoutExpired as error:
            raise Stopped from error
        if done.returncode:
            raise Failed(done.stderr.strip()[-300:])
        if not done.stdout.startswith(f"{rows} "):
            raise Failed(done.stdout)

    return run


def measures() -> list[Measure]:
    """Return every test in the order of the table."""
    return [
        Measure("ls10k", "ls -l of 10,000 files", _ls),
        Measure("tree", "find over 365 × 20 folders", _tree),
        Measure("ttfb", "first MiB of 1 GiB", _first),
        Measure("seq", "1 GiB in one stream", _sequential, 1024 * MiB),
        Measure("par8", "8 streams of 256 MiB", _parallel, 2048 * MiB),
        Measure("small1k", "tar of 1000 × 1 MiB", _tar, 1000 * MiB),
        Measure("rand4k", "200 random reads of 4 KiB", _random(4 * KiB)),
        Measure("rand256k", "200 random reads of 256 KiB", _random(256 * KiB)),
        Measure("columns", "a column of 100 Parquet files", _column("2026-11-04", 1_200_000)),
        Measure("large", "a column of 24 Parquet files of 32 MB", _column("2026-11-05", 9_600_000)),
        Measure("again", "the stream after a remount", _sequential, 1024 * MiB, again=True),
    ]


def raw(url: str, access_key: str, secret_key: str, path: str, size: int) -> float:
    """Return the seconds that 24 threads take to fetch `size` bytes in ranges of 4 MiB with urllib3, signed by botocore, and no mount."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - of this function alone

    import urllib3  # noqa: PLC0415 - as above
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - as above
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as above
    from botocore.credentials import Credentials  # noqa: PLC0415 - as above

    pool = urllib3.PoolManager(maxsize=24)
    signer = S3SigV4Auth(Credentials(access_key, secret_key), "s3", "us-east-1")

    def fetch(start: int) -> None:
        request = AWSRequest("GET", f"{url}/{path}", headers={"Range": f"bytes={start}-{min(size, start + 4 * MiB) - 1}"})
        signer.add_auth(request)
        response = pool.request("GET", f"{url}/{path}", headers=dict(request.headers.items()), preload_content=False)
        if response.status != 206:
            raise Failed(f"raw: status {response.status}")
        while response.read(256 * KiB):
            pass
        response.release_conn()

    started = time.perf_counter()
    with ThreadPoolExecutor(24) as threads:
        list(threads.map(fetch, range(0, size, 4 * MiB)))
    return time.perf_counter() - started
