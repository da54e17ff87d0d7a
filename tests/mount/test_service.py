"""A mount as users start and end it: in the background, by mount(8), by signals, over a dead one; and where secrets are not."""

import contextlib
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optfs.bridge import mounts
from optfs.demo.faults import Answer, Fault
from optfs.demo.services import Services
from optfs.service import running
from tests.mount.conftest import Mounting
from tests.support.mounting import eventually, require

DATA = bytes(range(256)) * 4096


class Machine:
    """A user with a home of their own, who runs optfs against the embedded services."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.services = services
        self.point = folder / "mnt"
        self.point.mkdir()
        self.file = self.point / services.account / "type=events/date=2026-11-01/event=a/part.parquet"
        self.log = folder / "optfs.log"
        self.cache = folder / "cache"
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            **services.environment,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(runtime),
            "OPTFS_CACHE_DIR": str(self.cache),
            "OPTFS_LOG_FILE": str(self.log),
            "OPTFS_CACHE_MIN_FREE": "0",
        }

    def optfs(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        line = [sys.executable, "-m", "optfs", *map(str, words)]
        return subprocess.run(line, env=self.environment | environment, capture_output=True, text=True, timeout=90, check=False)

    def mount(self, *options: str) -> None:
        """Mount in the background."""
        done = self.optfs("mount", *options, self.point)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def status(self) -> dict[str, object]:
        """Return the status of the mount."""
        done = self.optfs("status", self.point, "--json")
        assert done.returncode == 0, done.stderr
        (mount,) = json.loads(done.stdout)["mounts"]
        assert isinstance(mount, dict)
        return mount

    @property
    def pid(self) -> int:
        """The background process."""
        pid = self.status()["pid"]
        assert isinstance(pid, int)
        return pid

    def clean(self) -> None:
        """Leave nothing mounted."""
        while mounts.find(self.point) is not None:
            mounts.unmount(self.point, lazy=True)


def kill(machine: Machine) -> None:
    """End the background process without warning."""
    os.kill(machine.pid, signal.SIGKILL)
    eventually(lambda: mounts.is_dead(machine.point), "the mount is dead")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A user, and an account with one file on both providers."""
    require("auto")
    with Services() as services:
        services.put("type=events/date=2026-11-01/event=a/part.parquet", DATA)
        made = Machine(services, tmp_path)
        try:
            yield made
        finally:
            made.clean()


def test_a_background_mount_is_usable_when_the_command_returns_and_gone_when_umount_returns(machine: Machine) -> None:
    machine.mount()
    assert machine.file.read_bytes() == DATA
    pid = machine.pid
    done = machine.optfs("umount", machine.point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert running.end_of(pid, 0)
    assert mounts.find(machine.point) is None
    assert machine.optfs("status", machine.point).returncode == 1


def test_a_background_mount_renews_reads_and_caches_though_it_was_forked(tmp_path: Path) -> None:
    """No thread or lock of the command's own is lost with the fork: credentials are renewed, files read at once, blocks written."""
    require("auto")
    keys = [f"type=events/date=2026-11-01/event={number}/part.parquet" for number in range(20)]
    with Services(credential_lifetime=4) as services:
        for key in keys:
            services.put(key, DATA)
        machine = Machine(services, tmp_path)
        try:
            (tmp_path / "token").write_text(services.token)
            machine.mount("--token-command", f"cat {tmp_path}/token", "--provider", "aws", "--listing-ttl", "0s")
            given = services.requests.count("credentials")
            paths = [machine.point / services.account / key for key in keys]
            with ThreadPoolExecutor(len(paths)) as threads:
                assert list(threads.map(Path.read_bytes, paths)) == [DATA] * len(paths)
            eventually(lambda: services.requests.count("credentials") > given + 1, "the credentials are renewed")
            eventually(lambda: all(int(os.getxattr(path, "user.optfs.cached")) == len(DATA) for path in paths), "all is in the cache")
            assert machine.optfs("umount", machine.point).returncode == 0
        finally:
            machine.clean()


def test_status_tells_credentials_cache_and_requests(machine: Machine) -> None:
    machine.mount()
    machine.file.read_bytes()
    status = machine.status()
    assert (status["state"], status["account"], status["mountpoint"]) == ("mounted", "123", str(machine.point))
    assert status["providers"] == ["aws", "gcp"]
    credentials = status["credentials"]
    assert isinstance(credentials, list)
    assert {credential["provider"] for credential in credentials} == {"aws", "gcp"}
    assert all(3000 < credential["expires_in"] <= 3600 and credential["last_error"] is None for credential in credentials)
    assert status["requests"] == {"list": machine.services.requests.count("list"), "get": 1}
    assert status["bytes_fetched"] == status["bytes_read"] == len(DATA)
    shown = machine.optfs("status").stdout
    assert f"{machine.point}: account 123, aws and gcp" in shown
    assert "expires in" in shown


def test_mounting_twice_is_refused_with_one_line(machine: Machine) -> None:
    machine.mount()
    done = machine.optfs("mount", machine.point)
    assert done.returncode == 5
    assert "already mounted" in done.stderr
    assert done.stderr.count("\n") == 1
    assert machine.file.read_bytes() == DATA


@pytest.mark.parametrize("binding", ["fuse3", "fuse2"])
def test_of_many_that_start_at_once_one_mounts(machine: Machine, binding: str) -> None:
    """Root's would lie one upon the other, and `umount` would take away the upper one."""
    require(binding)
    for _ in range(3):
        with ThreadPoolExecutor(4) as starters:
            done = list(starters.map(lambda _: machine.optfs("mount", "--binding", binding, machine.point), range(4)))
        assert sorted(each.returncode for each in done) == [0, 5, 5, 5]
        assert all(each.stderr.count("\n") == 1 and "is already mounted by optfs" in each.stderr for each in done if each.returncode)
        assert machine.file.read_bytes() == DATA
        assert machine.optfs("umount", machine.point).returncode == 0
        assert mounts.find(machine.point) is None


def test_a_mount_point_given_by_a_link_is_known_by_it(machine: Machine) -> None:
    """To `mount`, which refuses a second one there, `status` and `umount`."""
    link = machine.point.with_name("link")
    link.symlink_to(machine.point.name)
    assert machine.optfs("mount", link).returncode == 0
    assert machine.file.read_bytes() == DATA
    assert machine.optfs("mount", link).returncode == 5
    assert machine.optfs("status", link).returncode == 0
    kill(machine)
    assert machine.optfs("mount", link).returncode == 0
    assert machine.optfs("umount", link).returncode == 0
    assert mounts.find(machine.point) is None


def test_a_mount_whose_process_is_stopped_holds_nobody_up(machine: Machine) -> None:
    """`status` says so, and `umount --lazy` takes it out of sight."""
    machine.mount()
    pid = machine.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        done = machine.optfs("status", machine.point)
        assert (done.returncode, "silent" in done.stdout) == (1, True)
        assert machine.optfs("umount", machine.point, "--lazy").returncode == 0
        assert mounts.find(machine.point) is None
    finally:
        os.kill(pid, signal.SIGCONT)
    assert running.end_of(pid, 30)


def test_a_mount_whose_process_was_killed_is_mounted_over(machine: Machine) -> None:
    machine.mount()
    kill(machine)
    assert "dead" in machine.optfs("status", machine.point).stdout
    machine.mount()
    assert machine.file.read_bytes() == DATA


def test_a_mount_is_dead_as_soon_as_its_process_was_killed(mounting: Mounting, services: Services) -> None:
    """Although the kernel goes on answering `stat` from what it was told last, for a second."""
    mount = mounting(services)
    mount.path.stat()
    mount.kill()
    assert mounts.is_dead(mount.path)


def test_umount_cleans_up_after_a_killed_mount(machine: Machine) -> None:
    machine.mount()
    kill(machine)
    done = machine.optfs("umount", machine.point)
    assert done.returncode == 0
    assert "killed mount" in done.stdout
    assert mounts.find(machine.point) is None


def test_umount_of_what_is_not_mounted_is_one_line_and_2(machine: Machine) -> None:
    done = machine.optfs("umount", machine.point)
    assert done.returncode == 2
    assert "not mounted by optfs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_umount_of_a_mount_in_use_fails_and_lazily_takes_it_out_of_sight(machine: Machine) -> None:
    machine.mount()
    with machine.file.open("rb") as opened:
        done = machine.optfs("umount", machine.point)
        assert done.returncode == 5
        advice = f"; see who uses it: fuser -vm {machine.point}, or unmount it all the same: optfs umount --lazy {machine.point}\n"
        assert done.stderr.endswith(f"busy{advice}")
        assert opened.read(10) == DATA[:10]
        pid = machine.pid
        began = time.monotonic()
        done = machine.optfs("umount", "--lazy", machine.point)
        assert time.monotonic() - began < 10, "its process can't end before the file is closed"
        assert (done.returncode, done.stdout) == (0, f"{machine.point} is unmounted; its process {pid} ends when the last file is closed\n")
        assert mounts.find(machine.point) is None


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU"])
def test_a_signal_unmounts_and_ends_the_process_with_0(machine: Machine, number: str) -> None:
    line = [sys.executable, "-m", "optfs", "mount", "--foreground", str(machine.point)]
    with subprocess.Popen(line, env=machine.environment) as process:
        try:
            eventually(lambda: mounts.find(machine.point) is not None and machine.file.exists(), "mounted")
            process.send_signal(signal.SIGHUP)
            assert machine.file.read_bytes() == DATA
            process.send_signal(signal.Signals[number])
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert mounts.find(machine.point) is None


@pytest.mark.parametrize("nohup", [False, True])
def test_the_end_of_its_terminal_unmounts_what_stays_in_front(machine: Machine, nohup: bool) -> None:
    """Unless it was started by nohup(1)."""
    prepared = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"] if nohup else []
    line = ["setsid", "--ctty", *prepared, sys.executable, "-m", "optfs", "mount", "--foreground", str(machine.point)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(line, env=machine.environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            os.close(theirs)
            eventually(lambda: mounts.find(machine.point) is not None and machine.file.exists(), "mounted")
            os.close(ours)
            if nohup:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
                assert machine.file.read_bytes() == DATA
                process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert mounts.find(machine.point) is None


def test_a_signal_ends_a_mount_in_use_too(machine: Machine) -> None:
    line = [sys.executable, "-m", "optfs", "mount", "--foreground", str(machine.point)]
    with subprocess.Popen(line, env=machine.environment) as process:
        try:
            eventually(lambda: mounts.find(machine.point) is not None and machine.file.exists(), "mounted")
            opened = os.open(machine.file, os.O_RDONLY)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            with contextlib.suppress(OSError):  # closing tells that the mount is gone
                os.close(opened)
        finally:
            process.kill()
    assert mounts.find(machine.point) is None


def test_mounting_ends_when_somebody_else_unmounts(machine: Machine) -> None:
    machine.mount()
    pid = machine.pid
    mounts.unmount(machine.point)
    eventually(lambda: running.end_of(pid, 0), "the process has ended")


def failed(machine: Machine, *words: str | Path, **environment: str) -> tuple[int, str]:
    """Return exit code and message of a mount that must fail, in the background and in front alike."""
    done = machine.optfs("mount", *words, **environment)
    front = machine.optfs("mount", "--foreground", "--log-level", "error", *words, **environment)
    assert (front.returncode, front.stderr) == (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("optfs: ")
    assert "Traceback" not in done.stderr
    assert mounts.find(machine.point) is None
    return done.returncode, done.stderr


def test_exit_codes(machine: Machine) -> None:
    point = machine.point
    assert failed(machine, "--memory", "1", point)[0] == 2
    code, message = failed(machine, point, OPTIMIZELY_API_TOKEN="")
    assert code == 2
    assert "--token-file" in message
    assert failed(machine, point, OPTIMIZELY_API_TOKEN="2:wrong")[0] == 3
    assert failed(machine, point, OPTFS_ACCOUNT="999")[0] == 3
    assert failed(machine, point, OPTFS_API_URL="http://127.0.0.1:9/v2")[0] == 4
    assert failed(machine, "--provider", "aws", point, OPTFS_S3_ENDPOINT_URL="http://127.0.0.1:9")[0] == 4
    code, message = failed(machine, point / "missing")
    assert code == 2
    assert "doesn't exist" in message


@pytest.mark.parametrize("cache", ["file", "file/below", "nowhere"])
def test_a_cache_folder_that_cannot_be_made_is_one_line_and_2(machine: Machine, tmp_path: Path, cache: str) -> None:
    """A file in its place, a path below a file, a place where nobody can make a folder: a mistake in the settings, told at once."""
    (tmp_path / "file").touch()
    folder = Path("/proc/nowhere") if cache == "nowhere" else tmp_path / cache
    code, line = failed(machine, "--cache-dir", str(folder), str(machine.point))
    assert code == 2
    assert str(tmp_path / "file") in line or str(folder) in line
    assert not machine.point.is_mount()


def test_a_provider_that_is_left_out_is_told_to_the_user(machine: Machine) -> None:
    body = b"<Error><Code>AccessDenied</Code></Error>"
    machine.services.faults.add(Fault(match=lambda request: request.service == "s3", action=Answer(403, body), times=None))
    done = machine.optfs("mount", machine.point)
    assert done.returncode == 0
    assert done.stderr.startswith("optfs: warning: S3 is left out of the mount: ")
    assert machine.status()["providers"] == ["gcp"]


def test_a_mount_below_a_dead_one_is_refused_with_the_command_that_unmounts_that(machine: Machine) -> None:
    machine.mount()
    kill(machine)
    done = machine.optfs("mount", machine.point / "sub")
    assert (done.returncode, done.stderr.endswith(f"; unmount it: optfs umount {machine.point}\n")) == (5, True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_background_mount_needs_no_standard_streams(machine: Machine, closed: str) -> None:
    """It mounts, ends with 0, and its files can be read, whichever are closed."""
    line = ["sh", "-c", f'exec "$0" -m optfs mount "$1" {closed}', sys.executable, str(machine.point)]
    assert subprocess.run(line, env=machine.environment, timeout=90, check=False).returncode == 0
    assert machine.file.read_bytes() == DATA


def test_the_way_in_which_mount_8_calls(machine: Machine) -> None:
    done = machine.optfs("123", machine.point, "-o", "rw,nosuid,nodev,_netdev,cache_size=64MiB,x-systemd.automount")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.file.read_bytes() == DATA
    status = machine.status()
    assert isinstance(status["cache"], dict)
    assert status["cache"]["limit"] == 64 * 2**20


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) itself is for root")
@pytest.mark.skipif(shutil.which("mount.fuse3") is None, reason="mount.fuse3 is not installed")
def test_mount_8_itself(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "optfs"
    exported = "\n".join(
        f"export {name}='{value}'" for name, value in machine.environment.items() if name.startswith(("OPT", "XDG", "HOME"))
    )
    source = Path(__file__).parents[2]
    program.write_text(f"#!/bin/sh\n{exported}\nexport PYTHONPATH='{source}'\nexec '{sys.executable}' -m optfs \"$@\"\n")
    program.chmod(0o700)
    line = ["mount", "-t", f"fuse.{program}", "123", str(machine.point), "-o", "ro,_netdev,listing-ttl=5s"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert machine.file.read_bytes() == DATA


def test_metrics_are_served_where_asked(machine: Machine) -> None:
    import socket  # noqa: PLC0415 - finds a free port for this test alone

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machine.mount("--metrics", f"127.0.0.1:{port}")
    machine.file.read_bytes()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    assert f'optfs_fetched_bytes_total{{mountpoint="{machine.point}"}} 1.048576e+06' in text
    assert 'optfs_requests_total{kind="get"' in text
    assert "optfs_credential_expiry_timestamp_seconds" in text


def test_secrets_are_nowhere_but_in_memory(machine: Machine) -> None:
    machine.mount("--log-level", "debug")
    machine.file.read_bytes()
    machine.services.expire_credentials()
    (machine.point / "123" / "type=events").stat()
    pid = machine.pid
    places = [
        Path(f"/proc/{pid}/cmdline").read_bytes(),
        Path("/proc/self/mountinfo").read_bytes(),
        machine.log.read_bytes(),
        machine.optfs("status", "--json").stdout.encode(),
        machine.optfs("status").stdout.encode(),
    ]
    machine.optfs("umount", machine.point)
    places += [path.read_bytes() for path in machine.cache.rglob("*") if path.is_file()]
    assert len(places) > 5
    assert len(machine.log.read_bytes()) > 500
    assert b"Bearer" not in machine.log.read_bytes() or b"[hidden]" in machine.log.read_bytes()
    for place in places:
        assert machine.services.token.encode() not in place


def test_no_child_inherits_the_token(machine: Machine, tmp_path: Path) -> None:
    script = tmp_path / "give"
    script.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho '{machine.services.token}'\n")
    script.chmod(0o700)
    machine.mount("--token-command", str(script))
    assert machine.services.token not in (tmp_path / "env").read_text()
    assert machine.file.read_bytes() == DATA


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="core files are forbidden here already")
def test_no_core_file_can_hold_secrets(machine: Machine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        machine.mount()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert resource.prlimit(machine.pid, resource.RLIMIT_CORE) == (0, hard)


def test_one_providers_mount_does_not_load_the_others_packages(machine: Machine) -> None:
    for provider, foreign in (("aws", "google"), ("gcp", "botocore")):
        program = (
            "import sys, threading\n"
            "from pathlib import Path\n"
            "from optfs import config\n"
            "from optfs.service import running\n"
            f"found = config.load({{'provider': {provider!r}}})\n"
            "def ready():\n"
            f"    print(any(name.split('.')[0] == {foreign!r} for name in sys.modules), flush=True)\n"
            f"running.run(found, Path({str(machine.point)!r}), ready, foreground=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], env=machine.environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "False\n", provider
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()
