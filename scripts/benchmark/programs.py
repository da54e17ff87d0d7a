"""The programs that are measured: how each is started in the foreground, and one mounted instance of it.

Each peer is started with the settings that measured best in trials; one that isn't installed is left out and said so.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from optfs.service import control

BUCKET = "optimizely-events-data"
GCS_BUCKET = "optimizely-e3-123"
PREFIX = "v1/account_id=123"


class NotMountedError(Exception):
    """A program can't be mounted on these services, which refuse what an export's credentials are refused (HEAD, a list of the root)."""


@dataclasses.dataclass(frozen=True)
class Service:
    """Where the services listen, and what opens them."""

    api: str
    s3: str
    gcs: str
    token: str
    access_key: str
    secret_key: str


@dataclasses.dataclass(frozen=True)
class Program:
    """One program with one set of settings.

    Attributes:
        executable: what must be installed.
        arguments: with {s3}, {gcs}, {mount}, {cache} and {password_file} in them.

    """

    name: str
    executable: str
    arguments: tuple[str, ...]

    def installed(self) -> bool:
        """Return whether it can be started here."""
        return shutil.which(self.executable) is not None


def _rclone_has_streams() -> bool:
    listing = subprocess.run(["rclone", "mount", "--help"], capture_output=True, text=True, check=False)
    return "--vfs-read-chunk-streams" in listing.stdout


def programs() -> list[Program]:
    """Return every program that the benchmark knows, optfs first."""
    optfs = ("-m", "optfs", "mount", "--foreground", "--cache-dir", "{cache}", "{mount}")
    rclone = (
        *("mount", f":s3:{BUCKET}/{PREFIX}", "{mount}", "--config", os.devnull, "--s3-provider", "Other", "--s3-env-auth"),
        *("--s3-endpoint", "{s3}", "--s3-force-path-style", "--read-only", "--dir-cache-time", "1h", "--attr-timeout", "1h"),
        *("--use-server-modtime", "--no-checksum", "--s3-list-version", "2", "--cache-dir", "{cache}"),
    )
    streams: tuple[str, ...] = ("--vfs-read-chunk-size", "32M", "--buffer-size", "32M")
    if shutil.which("rclone") and _rclone_has_streams():
        streams = ("--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M", "--buffer-size", "0")
    s3fs_options = (
        *("ro", "url={s3}", "use_path_request_style", "passwd_file={password_file}", "sigv4", "endpoint=us-east-1", "tmpdir={cache}"),
        *("listobjectsv2", "parallel_count=20", "multireq_max=100", "multipart_size=8", "max_stat_cache_size=200000"),
        *("enable_noobj_cache", "kernel_cache"),
    )
    s3fs = (f"{BUCKET}:/{PREFIX}", "{mount}", "-f", "-o", ",".join(s3fs_options))
    mountpoint = (
        *(BUCKET, "{mount}", "--prefix", f"{PREFIX}/", "--read-only", "-f", "--endpoint-url", "{s3}", "--force-path-style"),
        *("--region", "us-east-1", "--metadata-ttl", "3600"),
    )
    gcsfuse = (
        *(
            "--foreground",
            "--implicit-dirs",
            "-o",
            "ro",
            "--anonymous-access",
            "--enable-hns=false",
            "--custom-endpoint",
            "{gcs}/storage/v1/",
        ),
        *("--only-dir", PREFIX, "--metadata-cache-ttl-secs", "3600", "--stat-cache-max-size-mb", "-1", "--type-cache-max-size-mb", "-1"),
        *("--kernel-list-cache-ttl-secs", "3600", "--enable-buffered-read", GCS_BUCKET, "{mount}"),
    )
    return [
        Program("optfs", sys.executable, ("--provider", "aws", *optfs)),
        Program("optfs-nocache", sys.executable, ("--provider", "aws", "--cache-size", "0", *optfs)),
        Program("optfs-gcs", sys.executable, ("--provider", "gcp", *optfs)),
        Program("s3fs", "s3fs", s3fs),
        Program("rclone", "rclone", (*rclone, *streams)),
        Program("rclone-full", "rclone", (*rclone, "--vfs-cache-mode", "full", "--vfs-read-ahead", "64M", *streams)),
        Program("gcsfuse", "gcsfuse", gcsfuse),
        Program("mount-s3", "mount-s3", mountpoint),
        Program("mount-s3-cache", "mount-s3", (*mountpoint, "--cache", "{cache}")),
    ]


class Mounted:
    """A program at a mount point. `close` unmounts it, and ends it if it doesn't by itself."""

    def __init__(self, program: Program, service: Service, folder: Path) -> None:
        self._point = folder / "mnt"
        cache = folder / "cache"
        self._point.mkdir(exist_ok=True)
        cache.mkdir(exist_ok=True)
        password_file = folder / "s3fs-password"
        password_file.write_text(f"{service.access_key}:{service.secret_key}")
        password_file.chmod(0o600)
        places = {
            "{s3}": service.s3,
            "{gcs}": service.gcs,
            "{mount}": str(self._point),
            "{cache}": str(cache),
            "{password_file}": str(password_file),
        }
        arguments = list(program.arguments)
        if program.executable == sys.executable:  # optfs's own options come behind its command
            at = arguments.index("-m")
            arguments = [*arguments[at : at + 3], *arguments[:at], *arguments[at + 3 :]]
        line = [program.executable, *(_filled(argument, places) for argument in arguments)]
        self._log = open(folder / f"{program.name}.log", "ab")  # noqa: SIM115 - open as long as the program runs
        started = time.perf_counter()
        self.process = subprocess.Popen(line, env=_environment(service), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        self._wait_until_usable()
        self.ready = time.perf_counter() - started
        below = self._point / "123"
        self.root = below if below.is_dir() else self._point

    def _wait_until_usable(self) -> None:
        for _ in range(3000):
            with contextlib.suppress(OSError):  # a program that ends leaves a dead mount point behind
                if self._point.is_mount() and any(self._point.iterdir()):
                    return
            if self.process.poll() is not None:
                self.close()
                raise NotMountedError(f"it ended with {self.process.returncode}: {self._last_line()}")
            time.sleep(0.01)
        self.close()
        raise NotMountedError(f"not usable after 30 s: {self._last_line()}")

    def _last_line(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def usage(self) -> tuple[float, int]:
        """Return CPU seconds so far, and the peak of resident memory, bytes."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        return ticks / os.sysconf("SC_CLK_TCK"), peak * 1024

    def fetched(self) -> tuple[int, int] | None:
        """Return how many bytes optfs has fetched, and how many of these ahead and in vain; None of another program."""
        told = control.ask_mount(self._point)
        return None if told is None else (told["bytes_fetched"], told["readahead"]["unused"] + told["readahead"]["waiting"])

    def close(self) -> None:
        """Unmount, and wait for the process to end."""
        for _ in range(50):
            done = subprocess.run(["fusermount3", "-u", str(self._point)], capture_output=True, check=False)
            if done.returncode == 0 or not os.path.ismount(self._point):  # Path.is_mount raises for a dead one
                break
            time.sleep(0.1)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(20)
        self._log.close()


def _filled(argument: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        argument = argument.replace(place, value)
    return argument


def _environment(service: Service) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OPTFS_", "OPTIMIZELY_"))}
    return {
        **kept,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": service.access_key,
        "AWS_SECRET_ACCESS_KEY": service.secret_key,
        "OPTIMIZELY_API_TOKEN": service.token,
        "OPTFS_API_URL": service.api,
        "OPTFS_S3_ENDPOINT_URL": service.s3,
        "OPTFS_GCS_ENDPOINT_URL": service.gcs,
    }
