"""The walkthrough checks what it reads, and takes everything away again. A plain folder stands for the mount."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

import optfs
from optfs.bridge import mounts
from optfs.demo import walkthrough
from optfs.demo.export import Plan, parts
from optfs.demo.services import Services
from optfs.errors import AccessError, ConfigError, InvalidResponse, MountError, OptfsError, ServiceError

PLAN = Plan(days=5, experiments=2, events=8, rows=10)


class Commands:
    """Stands for `optfs mount`, `umount` and `status`: writes the export into the mount point, and takes it away."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.environment: dict[str, str] = {}
        self.mount_status = 0
        self.account = PLAN.account
        """Whose export is mounted when the demo ends."""
        self.lost = ""
        """What the keys of the files that the mount lacks begin with."""

    def __call__(self, arguments: list[str], environment: dict[str, str], output: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command."""
        self.ran.append(arguments[0])
        self.environment = environment
        mountpoint = Path(arguments[1])
        status, said = 0, ""
        if arguments[0] == "mount":
            assert output is not None
            if self.mount_status == 0:
                self._mount(mountpoint / PLAN.account)
            else:
                output.write_text("first line\noptfs: what to do\n")
            status = self.mount_status
        elif arguments[0] == "umount":
            status = 0 if (mountpoint / PLAN.account).exists() else 1
            shutil.rmtree(mountpoint / PLAN.account, ignore_errors=True)
        else:
            said = json.dumps({"cache": {"hits": 5, "misses": 7}})
        return subprocess.CompletedProcess(arguments, status, said, "")

    def find(self, mountpoint: str | Path) -> mounts.Mount | None:
        """Stand for the table of mounts."""
        there = (Path(mountpoint) / PLAN.account).exists()
        return mounts.Mount(str(mountpoint), mounts.FSTYPE, f"optfs#{self.account}", "0:1") if there else None

    def _mount(self, folder: Path) -> None:
        for part in parts(PLAN):
            if not self.lost or not part.key.startswith(self.lost):
                (folder / part.key).parent.mkdir(parents=True, exist_ok=True)
                (folder / part.key).write_bytes(part.data)
        for kind in ("decisions", "events"):
            (folder / kind).symlink_to(f"type={kind}")
            (folder / kind / "latest").symlink_to("date=2026-06-29")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """Put fakes in the place of the commands, a small plan, and temporary folders of this test."""
    fake = Commands()
    monkeypatch.setattr(walkthrough, "_optfs", fake)
    monkeypatch.setattr(mounts, "find", fake.find)
    monkeypatch.setattr(walkthrough, "plan_until_today", lambda _days: PLAN)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return fake


def test_a_failing_mount_ends_the_demo_with_its_message_and_leaves_nothing(commands: Commands, tmp_path: Path) -> None:
    """The exit code of `optfs mount` becomes the exception with the same exit code."""
    expected: dict[int, type[OptfsError]] = {2: ConfigError, 3: AccessError, 4: ServiceError, 5: MountError, 1: MountError}
    for status, error in expected.items():
        commands.mount_status = status
        with pytest.raises(error, match=r"^what to do$"):
            walkthrough.show(5, lambda _line: None)
        assert list(tmp_path.iterdir()) == []


def test_signals_are_as_before_afterwards(commands: Commands) -> None:
    """The handlers that guard the cleaning up don't stay."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with walkthrough.mounted(PLAN, lambda _line: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert commands.ran == ["mount", "umount"]


def test_a_termination_signal_unmounts_and_removes(commands: Commands, tmp_path: Path) -> None:
    """SIGTERM ends `keep_mounted` in order."""
    lines: list[str] = []

    def echo(line: str) -> None:
        lines.append(line)
        if "ctrl-C" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    walkthrough.keep_mounted(5, echo=echo)
    assert any("optfs status" in line for line in lines)
    assert commands.ran == ["mount", "umount"]
    assert list(tmp_path.iterdir()) == []


def test_it_ends_when_somebody_unmounts_it(commands: Commands, tmp_path: Path) -> None:
    """As by `optfs umount` in another terminal: there is nothing left to keep."""
    lines: list[str] = []

    def echo(line: str) -> None:
        lines.append(line)
        if "ctrl-C" in line:
            [mountpoint] = (folder.parent for folder in tmp_path.rglob(PLAN.account) if folder.is_dir())
            shutil.rmtree(mountpoint / PLAN.account)

    walkthrough.keep_mounted(5, echo=echo)
    assert lines[-1].strip() == "Somebody unmounted it."
    assert commands.ran == ["mount"]
    assert list(tmp_path.iterdir()) == []


def test_a_given_mount_point_stays(commands: Commands, tmp_path: Path) -> None:
    """A folder of the user's own is used and not removed."""
    own = tmp_path / "own"
    own.mkdir()
    with walkthrough.mounted(PLAN, lambda _line: None, own) as demo:
        assert demo.folder == own / PLAN.account
        assert demo.folder.is_dir()
    assert list(tmp_path.iterdir()) == [own]
    assert commands.ran == ["mount", "umount"]


def test_a_mount_that_was_there_before_stays(commands: Commands, tmp_path: Path) -> None:
    """The cleaning up after the refusal unmounted it."""
    own = tmp_path / "own"
    (own / PLAN.account).mkdir(parents=True)
    commands.mount_status = 5
    with pytest.raises(MountError), walkthrough.mounted(PLAN, lambda _line: None, own):
        pass
    assert "umount" not in commands.ran
    assert (own / PLAN.account).exists()


def test_a_mount_that_was_made_in_place_of_the_demos_stays(commands: Commands, tmp_path: Path) -> None:
    """By its account it is another one."""
    own = tmp_path / "own"
    own.mkdir()
    with walkthrough.mounted(PLAN, lambda _line: None, own):
        commands.account = "456"
    assert commands.ran == ["mount"]


def test_the_mount_is_told_of_the_services_by_its_environment(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own settings and credentials stay out, and the token is in no argument."""
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("OPTFS_PROVIDER", "aws")
    with walkthrough.mounted(PLAN, lambda _line: None) as demo:
        environment = commands.environment
        assert environment["OPTIMIZELY_API_TOKEN"] == demo.services.token
        assert environment["OPTFS_API_URL"] == demo.services.api_url
    assert not {"AWS_PROFILE", "OPTFS_PROVIDER"} & set(environment)


def test_older_days_lie_on_s3_and_newer_ones_on_gcs() -> None:
    """Some days are on both; none is lost."""
    services = Services()
    generated = list(parts(PLAN))
    walkthrough._fill(services, generated)
    on_s3, on_gcs = ({key.split("/")[3] for key in keys} for keys in (services.s3_bucket.keys(), services.gcs_bucket.keys()))
    assert sorted(on_s3 | on_gcs) == [f"date=2026-06-{day}" for day in range(26, 31)]
    assert (min(on_s3), max(on_gcs), sorted(on_s3 & on_gcs)) == ("date=2026-06-26", "date=2026-06-30", ["date=2026-06-28"])


def test_the_answers_are_checked_and_shown(commands: Commands, tmp_path: Path) -> None:
    """Both pandas and DuckDB agree with the generator, and the tree is shown."""
    lines: list[str] = []
    walkthrough.show(5, lines.append)
    text = "\n".join(lines)
    assert "123/type=decisions/  date=2026-06-26 ... date=2026-06-30 (5 days)" in text
    assert "latest -> date=2026-06-29/  8 partitions" in text
    assert "pandas   one day (date=2026-06-29)" in text
    assert "DuckDB   all 5 days" in text
    assert "Cache on disk: 5 hits, 7 misses." in text
    assert commands.ran == ["mount", "status", "umount"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["type=events/date=2026-06-29/event=signup", "type=events/date=2026-06-26/event=purchase"])
def test_a_wrong_answer_fails(commands: Commands, lost: str, tmp_path: Path) -> None:
    """Lost rows are noticed, and the mount is taken away then too."""
    commands.lost = lost
    with pytest.raises(InvalidResponse, match="were generated"):
        walkthrough.show(5, lambda _line: None)
    assert commands.ran[-1] == "umount"
    assert list(tmp_path.iterdir()) == []


def test_its_commands_import_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be the one that the clone lies in, or one with a stranger's files."""
    (tmp_path / "optfs").mkdir()
    (tmp_path / "optfs" / "__init__.py").write_text("raise SystemExit('this was run')\n")
    monkeypatch.chdir(tmp_path)
    done = walkthrough._optfs(["--version"], dict(os.environ))
    assert (done.returncode, done.stdout) == (0, f"optfs, version {optfs.__version__}\n"), done.stderr
