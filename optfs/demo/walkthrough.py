"""What `optfs demo` does: mounts a generated export from the embedded services, and shows it or keeps it mounted.

The mount is an ordinary one: `optfs mount` in a process of its own, told of the services by its environment. The account's older days lie
on S3, its newer ones on GCS, some on both, as real accounts have it while the store moves.

Rules: everything made lies in one temporary folder, and is taken away whatever happens, also on ctrl-C, SIGTERM and SIGHUP. The folder of the
mount is removed by `rmdir`, so that nothing is ever deleted through a mount, and only what the demo mounted is unmounted. What the background process
prints goes to a file: a pipe that it inherits would never end.
"""

import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from optfs.bridge import mounts
from optfs.demo.export import Part, Plan, parts
from optfs.demo.services import Services
from optfs.errors import AccessError, ConfigError, InvalidResponse, MountError, OptfsError, ServiceError
from optfs.service import running

Echo = Callable[[str], None]

ERRORS: dict[int, type[OptfsError]] = {2: ConfigError, 3: AccessError, 4: ServiceError}
"""Exit codes of `optfs mount`, as exceptions that end the demo with the same code."""

LOOK_AGAIN = 1.0  # seconds between two looks whether the mount is still there
MOUNT_TIMEOUT = 60.0  # seconds: a cold start on a slow machine imports two providers' packages


@dataclass(frozen=True, slots=True)
class Demo:
    """A mounted, generated export.

    Attributes:
        folder: the account's folder in the mount.
        parts: everything that was generated.

    """

    services: Services
    mountpoint: Path
    folder: Path
    parts: list[Part]
    environment: dict[str, str]


def plan_until_today(days: int) -> Plan:
    """Return a month or so that ends today, which is still incomplete."""
    return Plan(days=days, end_date=datetime.datetime.now(datetime.UTC).date())


@contextlib.contextmanager
def mounted(plan: Plan, echo: Echo, mountpoint: Path | None = None) -> Iterator[Demo]:
    """Generate, serve and mount; afterwards leave nothing behind.

    Raises:
        ConfigError, AccessError, ServiceError, MountError: `optfs mount` failed, or can't mount there.

    """
    if mountpoint is not None:
        running.check(mountpoint)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminating())
        scratch = Path(tempfile.mkdtemp(prefix="optfs-demo-"))
        stack.callback(_remove, scratch)
        if mountpoint is None:
            mountpoint = scratch / "mount"
            mountpoint.mkdir()
            stack.callback(_remove_mountpoint, mountpoint)
        echo(f"Generating {plan.days} days of decisions and events ...")
        generated = list(parts(plan))
        services = Services(account=plan.account)
        _fill(services, generated)
        stack.enter_context(services)
        (scratch / "config.toml").touch()
        environment = _environment(services, scratch)
        stack.callback(_unmount, mountpoint, plan.account, environment)
        stack.callback(_ignore_interrupts)
        _mount(mountpoint, environment, scratch / "mount.log")
        yield Demo(services, mountpoint, mountpoint / plan.account, generated, environment)


def show(days: int, echo: Echo = print) -> None:
    """Mount, look around, read with pandas and with DuckDB, check the answers, and unmount.

    Raises:
        InvalidResponse: an answer differs from what was generated.
        OptfsError: see `mounted`.

    """
    pandas, duckdb = _readers()
    with mounted(plan_until_today(days), echo) as demo:
        echo(f"Mounted at {demo.mountpoint}: the older days come from S3, the newer ones from GCS.\n")
        _look_around(demo, echo)
        latest = (demo.folder / "events" / "latest").resolve()
        _read_with_pandas(demo, latest, pandas, echo)
        _read_with_duckdb(demo, duckdb, echo)
        _read_again(demo, latest, echo)
        _count(demo, echo)
    echo("Unmounted; nothing is left behind. `optfs demo` keeps it mounted to try things out.")


def keep_mounted(days: int, mountpoint: Path | None = None, echo: Echo = print) -> None:
    """Mount, say what to try, and wait for ctrl-C, SIGTERM or SIGHUP, or until somebody unmounts it.

    Raises:
        OptfsError: see `mounted`.

    """
    with contextlib.suppress(KeyboardInterrupt), mounted(plan_until_today(days), echo, mountpoint) as demo:
        echo(f"\nMounted at {demo.mountpoint}. Things to try in another terminal:\n")
        for line in _suggestions(demo):
            echo(f"    {line}")
        echo("\nctrl-C unmounts and removes everything.")
        while _is_mounted(demo.mountpoint, demo.folder.name):
            threading.Event().wait(LOOK_AGAIN)
        echo("\nSomebody unmounted it.")


def _suggestions(demo: Demo) -> list[str]:
    def at(path: str) -> str:
        return shlex.quote(f"{demo.folder}/{path}")

    python, optfs = shlex.quote(sys.executable), shlex.quote(str(Path(sys.executable).with_name("optfs")))
    sql = "select event, count(*), sum(revenue) / 100 from read_parquet(?) group by event order by 3"
    return [
        f"ls {at('decisions/latest/')}",
        f"find {shlex.quote(str(demo.folder))} -name _SUCCESS | sort | tail -3",
        f"du -sh --apparent-size {at('type=events')}",
        f"{python} -c \"import pandas, sys; print(pandas.read_parquet(sys.argv[1])[['visitor_id', 'revenue']])\" {at('events/latest/purchase/')}",
        f'{python} -c "import duckdb, sys; duckdb.sql(\\"{sql}\\", params=sys.argv[1:]).show()" {at("type=events/*/*/*.parquet")}',
        f"{optfs} status {shlex.quote(str(demo.mountpoint))}",
    ]


def _look_around(demo: Demo, echo: Echo) -> None:
    for kind in sorted(demo.folder.glob("type=*")):
        dates = sorted(entry.name for entry in kind.glob("date=*"))
        echo(f"  {demo.folder.name}/{kind.name}/  {dates[0]} ... {dates[-1]} ({len(dates)} days)")
        latest = demo.folder / kind.name.partition("=")[2] / "latest"
        names = sorted(entry.name for entry in latest.iterdir() if entry.is_dir())
        echo(f"      latest -> {latest.readlink().name}/  {len(names)} partitions: {', '.join(names[:4])}, ...")
    echo("")


def _read_with_pandas(demo: Demo, folder: Path, pandas: Any, echo: Echo) -> None:
    began = time.monotonic()
    frame = pandas.read_parquet(folder)
    expected = [part for part in demo.parts if part.key.startswith(f"{folder.parent.name}/{folder.name}/")]
    _check("rows of one day", len(frame), sum(part.rows for part in expected))
    _check("revenue of one day", int(frame["revenue"].sum()), sum(part.revenue for part in expected))
    echo(f"pandas   one day ({folder.name}): {len(frame):,} events, revenue {frame['revenue'].sum() / 100:,.2f}; {_since(began)}")


def _read_with_duckdb(demo: Demo, duckdb: Any, echo: Echo) -> None:
    began = time.monotonic()
    files = str(demo.folder / "type=events" / "date=*" / "*" / "*.parquet")
    with duckdb.connect() as connection:
        query = "select count(*), count(distinct date), sum(revenue) from read_parquet(?, hive_partitioning = true)"
        rows, days, revenue = connection.execute(query, [files]).fetchone()
    expected = [part for part in demo.parts if part.key.startswith("type=events/")]
    _check("rows of all days", rows, sum(part.rows for part in expected))
    _check("revenue of all days", int(revenue), sum(part.revenue for part in expected))
    echo(f"DuckDB   all {days} days: {rows:,} events, revenue {int(revenue) / 100:,.2f}; {_since(began)}")


def _read_again(demo: Demo, folder: Path, echo: Echo) -> None:
    before = demo.services.requests.count("get")
    began = time.monotonic()
    size = sum(len(file.read_bytes()) for file in sorted(folder.rglob("*.parquet")))
    gets = demo.services.requests.count("get") - before
    echo(f"again    one day, {size:,} bytes: {gets} downloads; {_since(began)}\n")


def _count(demo: Demo, echo: Echo) -> None:
    requests = demo.services.requests
    files = sum(part.rows > 0 for part in demo.parts)
    echo(
        f"Checked against the generator's own numbers: all right. It took {requests.count('list')} listings and {requests.count('get')} "
        f"downloads for {files:,} files, and {requests.count('credentials')} requests for credentials."
    )
    cache = _status(demo).get("cache")
    if isinstance(cache, dict) and {"hits", "misses"} <= set(cache):
        echo(f"Cache on disk: {cache['hits']} hits, {cache['misses']} misses.")


def _status(demo: Demo) -> dict[str, Any]:
    """Return what `optfs status --json` says of this mount; empty where it says nothing."""
    done = _optfs(["status", str(demo.mountpoint), "--json"], demo.environment)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return {}
    mounts = answer if isinstance(answer, list) else answer.get("mounts", [answer])
    return next((mount for mount in mounts if isinstance(mount, dict)), {})


def _check(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise InvalidResponse(f"the demo read {got} as the {what}, but {expected} were generated: this is a bug in optfs")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.2f} s"


def _readers() -> tuple[Any, Any]:
    try:
        import duckdb  # noqa: PLC0415 - only the demo needs them, and they take long to import
        import pandas  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'optfs[demo]'") from error
    return pandas, duckdb


def _fill(services: Services, generated: list[Part]) -> None:
    """Put the older days into S3 and the newer ones into GCS, a few into both."""
    dates = sorted({part.key.split("/")[1] for part in generated})
    first_on_gcs = dates[len(dates) * 2 // 5]
    last_on_s3 = dates[len(dates) // 2]
    for part in generated:
        date = part.key.split("/")[1]
        written = datetime.datetime.fromisoformat(date.removeprefix("date=") + "T12:00:00+00:00").timestamp() + 86_400
        moment = min(written, time.time())  # a day is there by 13:00 UTC of the next
        if date <= last_on_s3:
            services.s3_bucket.put(services.prefix + part.key, part.data, mtime=moment)
        if date >= first_on_gcs:
            services.gcs_bucket.put(services.prefix + part.key, part.data, mtime=moment)


def _environment(services: Services, scratch: Path) -> dict[str, str]:
    """Return the environment of the mount: the caller's, without what would lead it elsewhere."""
    foreign = ("OPTFS_", "OPTIMIZELY_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {
        **services.environment,
        "OPTFS_CACHE_DIR": str(scratch / "cache"),
        "OPTFS_CONFIG": str(scratch / "config.toml"),
        "OPTFS_LOG_FILE": str(scratch / "optfs.log"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return {**kept, **own}


def _optfs(arguments: list[str], environment: dict[str, str], output: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of optfs to its end, with its output to a file or captured."""
    program = [sys.executable, "-P", "-m", "optfs", *arguments]  # -P: nothing of the current folder, which may hold one called optfs
    if output is None:
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=MOUNT_TIMEOUT, check=False)  # noqa: S603 - fixed words
    with output.open("wb") as log:
        return subprocess.run(  # noqa: S603 - fixed words and a path of our own
            program, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, timeout=MOUNT_TIMEOUT, check=False
        )


def _mount(mountpoint: Path, environment: dict[str, str], output: Path) -> None:
    try:
        done = _optfs(["mount", str(mountpoint)], environment, output)
    except subprocess.TimeoutExpired as error:
        raise MountError(f"`optfs mount` was not ready after {MOUNT_TIMEOUT:.0f} s; run `optfs doctor`") from error
    if done.returncode != 0:
        lines = output.read_text(errors="replace").strip().splitlines() or ["optfs mount failed"]
        raise ERRORS.get(done.returncode, MountError)(lines[-1].removeprefix("optfs: "))


def _is_mounted(mountpoint: Path, account: str) -> bool:
    """Return whether the demo's own mount is there, or may be."""
    try:
        found = mounts.find(mountpoint)
    except MountError:
        return True
    return found is not None and found.source == f"optfs#{account}"


def _unmount(mountpoint: Path, account: str, environment: dict[str, str]) -> None:
    """Unmount the demo's own mount, also while it is in use; nothing happens where something else is mounted, or nothing."""
    if not _is_mounted(mountpoint, account):
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if _optfs(["umount", str(mountpoint)], environment).returncode == 0:
            return
    with contextlib.suppress(MountError):
        mounts.unmount(mountpoint, lazy=True)


def _remove_mountpoint(mountpoint: Path) -> None:
    with contextlib.suppress(OSError):  # still mounted: the message of `_remove` tells
        mountpoint.rmdir()


def _remove(scratch: Path) -> None:
    """Remove the temporary folder, in which the ending mount may still be writing its cache and log."""
    if (scratch / "mount").exists():
        print(f"{scratch / 'mount'} is still mounted; run: optfs umount {shlex.quote(str(scratch / 'mount'))}", file=sys.stderr)
        return
    until = time.monotonic() + 5.0
    while scratch.exists() and time.monotonic() < until:
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(0.05)


def _ignore_interrupts() -> None:
    """Keep a second ctrl-C from breaking off the cleaning up; `_terminating` undoes it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the demo as ctrl-C does; afterwards signals are as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
