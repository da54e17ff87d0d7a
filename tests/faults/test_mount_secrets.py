"""Where the token and the credentials of a running mount are not, and who may look at what it shows."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from optfs.demo.faults import Answer, Fault
from optfs.demo.services import Services
from optfs.service import control
from tests.support.mounting import LIMIT, eventually, require
from tests.support.processes import MountProcess, forget_pages

KEY = "type=decisions/date=2026-11-01/experiment=42/part-0.parquet"
DATA = bytes(range(256)) * 400
OTHER = "type=decisions/date=2026-11-01/experiment=43/part-0.parquet"
ELSEWHERE = "type=events/date=2026-11-01/event=a/part-0.parquet"

NOBODY = 65534


@pytest.fixture
def services() -> Iterator[Services]:
    """An account with three files."""
    with Services() as made:
        made.put(KEY, DATA)
        made.put(OTHER, DATA[::-1])
        made.put(ELSEWHERE, DATA)
        yield made


def secrets_of(services: Services) -> list[bytes]:
    """Return the token and every secret given so far, as bytes that must be nowhere."""
    issuer = services.issuer
    found = [services.token, *issuer._tokens]
    for keys in issuer._keys.values():
        found += [keys.secret_key, keys.session_token or ""]
    return [secret.encode() for secret in found if secret]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert isinstance(port, int)
        return port


def optfs(*words: str | Path, environment: dict[str, str] | None = None) -> bytes:
    """Run a command and return all that it printed."""
    line = [sys.executable, "-m", "optfs", *map(str, words)]
    done = subprocess.run(line, env={**os.environ, **(environment or {})}, capture_output=True, timeout=3 * LIMIT, check=False)
    return done.stdout + done.stderr


def raw_answer(mount: MountProcess) -> bytes:
    """Return the bytes that the control socket gives."""
    (path,) = [path for path in control.sockets() if path.name == control.socket_name(mount.path)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT)
        client.connect(str(path))
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    ("provider", "binding", "carrier"),
    [("aws", "fuse3", "direct"), ("gcp", "fuse2", "direct"), ("aws", "fuse3", "sdk"), ("gcp", "fuse3", "sdk")],
)
def test_secrets_are_in_no_place_where_anybody_looks(
    services: Services, tmp_path: Path, provider: str, binding: str, carrier: str, log_format: str
) -> None:
    require(binding)
    log = tmp_path / "optfs.log"
    port = free_port()
    options = (
        "--log-level",
        "debug",
        "--log-format",
        log_format,
        "--log-file",
        str(log),
        "--metrics",
        f"127.0.0.1:{port}",
        "--carrier",
        carrier,
    )
    places: dict[str, bytes] = {}
    with MountProcess(services, tmp_path, provider, binding, *options) as mount:
        path = mount.account / KEY
        assert path.read_bytes() == DATA
        mount.holds([path])

        services.revoke()  # what a refused token and a busy service lead to is logged, too
        services.expire_credentials()
        services.faults.add(Fault(lambda request: request.kind != "credentials", Answer(503, b"<Error>busy</Error>"), times=2))
        with pytest.raises(PermissionError):
            (mount.account / ELSEWHERE).read_bytes()
        eventually(lambda: mount.status()["credentials"][0]["last_error"] is not None, "the refusal shows")
        places["status of a refused token"] = raw_answer(mount)
        services.restore()
        eventually(lambda: mount.status()["credentials"][0]["last_error"] is None, "the credentials are renewed")
        assert (mount.account / OTHER).read_bytes() == DATA[::-1]

        places["ps"] = b"".join("\0".join(each.info["cmdline"] or ()).encode() for each in psutil.process_iter(["cmdline"]))
        places["mounts"] = Path("/proc/mounts").read_bytes() + Path("/proc/self/mountinfo").read_bytes()
        places["status"] = optfs("status")
        places["status --json"] = optfs("status", mount.path, "--json")
        places["control socket"] = raw_answer(mount)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT) as response:
            places["metrics"] = response.read()
        places["doctor"] = optfs("doctor", "--provider", provider, environment=services.environment)
        limits = Path(f"/proc/{mount.pid}/limits").read_text()
        assert mount.end() == 0
    places["log"] = log.read_bytes()
    places["stderr"] = mount.text().encode()
    places["cache"] = b"".join(file.read_bytes() for file in sorted(mount.cache.rglob("*")) if file.is_file())

    for name in ("ps", "mounts", "status", "status --json", "control socket"):
        assert str(mount.path).encode() in places[name], f"{name} was not looked at"
    assert b"optfs_requests_total" in places["metrics"]
    assert DATA in places["cache"]
    assert b"urllib3" in places["log"], "the libraries' debug logs are part of it"
    assert b"token" in places["doctor"]
    (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4] == "0", "a core file would hold all of it"
    secrets = secrets_of(services)
    assert len(secrets) >= 3
    for name, text in places.items():
        for number, secret in enumerate(secrets):
            assert secret not in text, f"secret {number} is in {name}"
    if log_format == "json":
        assert all(isinstance(json.loads(line), dict) for line in places["log"].splitlines())


def test_the_token_command_and_the_helpers_get_no_secret_in_their_environment(services: Services, tmp_path: Path) -> None:
    require("auto")
    folder = tmp_path / "bin"
    folder.mkdir()
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    assert helper is not None
    spies = {"fusermount3": f'exec {helper} "$@"', "give-token": f"printf '%s\\n' '{services.token}'"}
    for name, rest in spies.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n(env; tr '\\0' '\\n' < /proc/$PPID/cmdline) >> {tmp_path}/seen-{name}\n{rest}\n")
        program.chmod(0o755)
    keys = services.static_keys()
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "OPTIMIZELY_PAT": "2:another-token-of-the-user",
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": "a-session-of-the-user",
    }
    with MountProcess(services, tmp_path, "aws", "auto", "--token-command", str(folder / "give-token"), environment=environment) as mount:
        assert (mount.account / KEY).read_bytes() == DATA
        assert mount.end() == 0
    for name in spies:
        seen = (tmp_path / f"seen-{name}").read_text()
        assert "PATH=" in seen
        for secret in (services.token, environment["OPTIMIZELY_PAT"], keys.secret_key, environment["AWS_SESSION_TOKEN"]):
            assert secret not in seen, name


def test_what_the_mount_process_starts_by_other_ways_gets_no_token_either(services: Services, tmp_path: Path) -> None:
    """Libfuse itself starts programs, with the environment as the process has it."""
    require("auto")
    point = tmp_path / "mnt"
    point.mkdir()
    program = (
        "import subprocess\n"
        "from pathlib import Path\n"
        "from optfs import config\n"
        "from optfs.service import running\n"
        "def ready():\n"
        "    print(subprocess.run('env', capture_output=True, text=True).stdout.replace(chr(10), ' '), flush=True)\n"
        f"running.run(config.load({{'cache_size': '0'}}), Path({str(point)!r}), ready, foreground=True)\n"
    )
    environment = {**os.environ, **services.environment, "OPTIMIZELY_PAT": services.token}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            seen = process.stdout.readline()
            assert "OPTFS_API_URL=" in seen
            assert services.token not in seen
            process.terminate()
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="optfs-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_nobody(*line: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program as another user."""
    words = [shutil.which(str(line[0])) or str(line[0]), *map(str, line[1:])]
    return subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, timeout=LIMIT, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("provider", "binding"), [("aws", "fuse3"), ("gcp", "fuse2")])
def test_other_users_get_nothing_but_with_allow_other(services: Services, open_folder: Path, provider: str, binding: str) -> None:
    require(binding)
    with MountProcess(services, open_folder, provider, binding) as mount:
        path = mount.account / KEY
        assert path.read_bytes() == DATA
        mount.holds([path])
        assert as_nobody("ls", open_folder).stdout.split() == [b"cache", b"log", b"mnt"], "they come as far as the mount point"
        for words in (("ls", mount.path), ("stat", mount.account), ("cat", path)):
            done = as_nobody(*words)
            assert done.returncode != 0
            assert done.stdout == b""
        for private in (*mount.blocks(), *(mount.cache / "blocks-v1").glob("cache.db"), *control.sockets()):
            assert as_nobody("cat", private).returncode != 0
            assert b"denied" in as_nobody("cat", private).stderr, private
        forget_pages(path)
        assert path.read_bytes() == DATA, "the owner still may"
        assert mount.end() == 0
    with MountProcess(services, open_folder, provider, binding, "--allow-other") as mount:
        assert as_nobody("cat", mount.account / KEY).stdout == DATA
        assert as_nobody("touch", mount.account / "new").returncode != 0
        assert mount.end() == 0
