"""The command line: exit codes, one line for each failure, and no import of what isn't used."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import optfs
from optfs import cli
from optfs.bridge import mounts
from optfs.cache.folder import open_folder
from optfs.cli import LOGGING, arranged, main
from optfs.cli.mount import source_and_point
from optfs.cli.status import lines, size, span
from optfs.config import SETTINGS, Config
from optfs.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    MountBusy,
    MountError,
    NoExport,
    NotFound,
    ServiceUnavailable,
    TokenRefused,
)
from optfs.service import checks, logs, running, survey


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Replace `optfs status` by a function."""

    def install(function: Callable[[], object]) -> None:
        monkeypatch.setattr(cli._Lazy, "get_command", lambda *_: click.Command("status", callback=function))

    return install


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad"), 2),
        (TokenRefused("bad"), 3),
        (AccessDenied("bad"), 3),
        (NoExport("bad"), 3),
        (ServiceUnavailable("bad"), 4),
        (DeadlineExceeded("bad"), 4),
        (MountError("bad"), 5),
        (NotFound("bad"), 1),
    ],
)
def test_each_kind_of_failure_is_one_line_and_its_exit_code(
    error: Exception, code: int, command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    assert main(["status"]) == code
    assert capsys.readouterr().err == "optfs: bad\n"


@pytest.mark.parametrize("name", sorted(LOGGING))
def test_a_bug_is_one_line_that_tells_where_its_traceback_will_be(
    name: str, command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """And not the text, which may hold a secret that nobody has registered yet."""

    def fail() -> None:
        raise KeyError("2:very-secret")

    command(fail)
    assert main([name]) == 1
    captured = capsys.readouterr().err
    assert captured == "optfs: unexpected KeyError: this is a bug; run with --log-level debug --log-file FILE and look there\n"


def test_a_bug_of_a_command_without_a_log_is_one_line_with_its_text_and_place(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names no options, since the command has none for a log."""

    def fail() -> None:
        raise ValueError("two\nlines \x1b[2J Bearer very-secret")

    command(fail)
    assert main(["status"]) == 1
    captured = capsys.readouterr().err
    line = fail.__code__.co_firstlineno + 1
    assert captured == (f"optfs: unexpected ValueError in test_cli.py, line {line}: two\\nlines \\x1b[2J Bearer [hidden]; this is a bug\n")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_the_commands_that_are_said_to_have_a_log_have_its_options(name: str) -> None:
    loaded = cli.group.get_command(click.Context(cli.group), name)
    assert loaded is not None
    assert ("log_file" in {parameter.name for parameter in loaded.params}) == (name in LOGGING)


def test_doctor_logs_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_settings: Config) -> list[checks.Finding]:
        raise KeyError("bug")

    monkeypatch.setattr(checks, "run", fail)
    configured: list[tuple[object, ...]] = []
    monkeypatch.setattr(logs, "configure", lambda *settings, **_: configured.append(settings))
    assert main(["doctor", "--log-level", "debug", "--log-file", str(tmp_path / "log")]) == 1
    assert main(["doctor"]) == 1
    assert configured == [("debug", tmp_path / "log", "text"), ("error", None, "text")]
    capsys.readouterr()


def test_ctrl_c_ends_with_130(command: Callable[[Callable[[], object]], None]) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    command(fail)
    assert main(["status"]) == 130


def test_a_commands_number_is_the_exit_code(command: Callable[[Callable[[], object]], None]) -> None:
    command(lambda: 7)
    assert main(["status"]) == 7
    command(lambda: None)
    assert main(["status"]) == 0


@pytest.mark.parametrize(
    "words", [["frobnicate"], ["mount"], ["mount", "--frobnicate", "/x"], ["mount", "a", "b", "c"], ["status", "--json", "a", "b"]]
)
def test_wrong_usage_is_one_line_and_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("optfs: ")
    assert captured.count("\n") == 1
    assert "--help" in captured


def test_bad_configuration_is_one_line_and_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["mount", "--cache-size", "huge", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "optfs: --cache-size: 'huge' is no size; write 256MiB, 10GiB, 500MB or 0\n"


def test_help_lists_every_command_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    assert main(["mount", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{setting.name}" in shown for setting in SETTINGS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_and_shows_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"optfs {name}" in capsys.readouterr().out


def test_version_and_help_import_nothing_that_a_mount_needs() -> None:
    heavy = ["boto3", "botocore", "google", "requests", "urllib3", "diskcache", "mfusepy", "fuse", "prometheus_client", "pyarrow"]
    program = (
        f"import sys; from optfs.cli import main; main(['--version']); main(['--help']); print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[0] == f"optfs, version {optfs.__version__}"
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_lead_nowhere(closed: str, tmp_path: Path) -> None:
    """Also for programs that are started; a pipe of the background mount got their numbers."""
    program = f"""
import os, subprocess, sys
from optfs.cli import main
code = main(["--version"]) or main(["frobnicate"])
pipe = os.pipe()
child = subprocess.run(["sh", "-c", "true <&0 && true >&1 && true >&2"]).returncode
open({str(tmp_path / "told")!r}, "w").write(f"{{code}} {{min(pipe) > 2}} {{child}} {{None in (sys.stdin, sys.stdout, sys.stderr)}}")
"""
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", program]
    subprocess.run(shell, check=False, timeout=60, capture_output=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "told").read_text() == "2 True 0 False"


@pytest.mark.parametrize("words", [["--version"], ["status"], ["cache", "info"], ["demo", "--days", "3"]], ids=" ".join)
def test_an_output_that_fails_is_told_once_and_as_that(words: list[str], tmp_path: Path) -> None:
    """It is neither called a bug nor put down to --cache-dir."""
    with Path("/dev/full").open("wb") as full:
        environment = {**os.environ, "OPTFS_CACHE_DIR": str(tmp_path)}
        line = [sys.executable, "-m", "optfs", *words]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60, env=environment)
        assert (done.returncode, done.stderr) == (1, "optfs: the output can't be written: No space left on device\n")
        assert subprocess.run([*line[:3], "frobnicate"], stderr=full, check=False, timeout=60).returncode == 2


def test_an_output_that_nobody_reads_any_more_is_no_failure_to_tell(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "optfs", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "optfs", "mount"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("optfs: Missing argument")


def test_ctrl_c_while_it_is_loaded_prints_no_traceback() -> None:
    """Its modules take longer to load than some need to think again."""
    program = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "optfs.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from optfs.program import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("mode", "ours", "registered", "replaced"),
    [
        (0o700, False, False, True),
        (0o755, False, True, True),
        (0o755, False, False, False),
        (0o777, False, True, False),
        (0o500, True, True, False),
        (None, False, True, False),
    ],
    ids=["closed to us", "another's home", "readable", "shared", "own", "missing"],
)
def test_another_users_home_is_not_ours(
    mode: int | None, ours: bool, registered: bool, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mount(8) leaves root's in HOME where fstab says `user`. A folder that was chosen, to be read or shared, is somebody's intention."""
    home = tmp_path / "home"
    if mode is not None:
        home.mkdir(mode=0o700)
    known = {os.getuid(): home if registered else tmp_path, os.getuid() + 1: tmp_path / "known"}
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + (not ours))
    monkeypatch.setattr(os, "access", lambda _path, wanted: (mode or 0) & wanted == wanted)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_dir=str(known[user])))
    monkeypatch.setenv("HOME", str(home))
    main(["--version"])
    assert os.environ["HOME"] == str(tmp_path / "known" if replaced else home)


def test_a_home_that_cannot_be_looked_at_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in another's. Who isn't known to the system keeps it."""

    def refuse(path: Path) -> None:
        raise PermissionError(str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(pwd, "getpwuid", {os.geteuid(): SimpleNamespace(pw_dir="/own")}.__getitem__)
    for expected in ("/own", "/another/sub"):
        monkeypatch.setenv("HOME", "/another/sub")
        main(["--version"])
        assert os.environ["HOME"] == expected
        monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["123", "/mnt", "-o", "ro"], ["mount", "123", "/mnt", "-o", "ro"]),
        (["optfs", "/mnt"], ["mount", "optfs", "/mnt"]),
        (["123", "/mnt"], ["mount", "123", "/mnt"]),
        (["/mnt", "-o", "rw"], ["mount", "/mnt", "-o", "rw"]),
        (["unmount", "/mnt"], ["unmount", "/mnt"]),
        (["mount", "/mnt"], ["mount", "/mnt"]),
        (["cache", "info"], ["cache", "info"]),
        (["--version"], ["--version"]),
        (["frobnicate"], ["frobnicate"]),
        (["frobnicate", "--json"], ["frobnicate", "--json"]),
    ],
)
def test_the_form_in_which_mount_8_calls_a_helper(words: list[str], expected: list[str]) -> None:
    assert arranged(words) == expected


def test_a_mistyped_command_is_no_mount(capsys: pytest.CaptureFixture[str]) -> None:
    """It isn't taken for an account's name."""
    assert main(["unmount", "/mnt"]) == 2
    assert capsys.readouterr().err == "optfs: No such command 'unmount'; did you mean umount?; see optfs --help\n"
    assert main(["frobnicate", "/mnt"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["mount", ""], ["mount", "optfs", ""], ["umount", ""], ["status", ""]], ids=" ".join)
def test_an_empty_mount_point_is_not_the_current_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable would hide what is in it."""
    assert main(words) == 2
    assert "MOUNTPOINT is empty" in capsys.readouterr().err


def test_a_mount_that_would_hide_its_token_file_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is mounted; the log's file isn't made either."""
    (tmp_path / "token").write_text("secret")
    log = tmp_path / "log"
    assert main(["mount", "--foreground", "--log-file", str(log), "--token-file", str(tmp_path / "token"), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "lies in the mount point" in said
    assert not log.exists()


@pytest.mark.parametrize("words", [["mount", "mnt"], ["umount", "mnt"], ["status", "mnt"]], ids=" ".join)
def test_a_mount_point_in_a_folder_that_was_removed_is_wrong_usage(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(words) == 2
    assert "MOUNTPOINT 'mnt' begins in the current folder, which was removed" in capsys.readouterr().err


def test_the_demos_mount_point_is_told_as_that_of_a_mount(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One that is missing gets the line that `mount` gives, with what makes it."""
    assert main(["demo", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err == f"optfs: {tmp_path}/missing doesn't exist; make it: mkdir -p {tmp_path}/missing\n"


def test_the_demo_that_unmounts_by_itself_takes_no_mount_point(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One that is given is refused."""
    assert main(["demo", "--once", "--days", "3", str(tmp_path)]) == 2
    assert "leave MOUNTPOINT out" in capsys.readouterr().err


def test_the_source_names_the_account() -> None:
    options: dict[str, str | None] = {"account": None}
    assert source_and_point(("123", "/mnt"), options) == Path("/mnt")
    assert options == {"account": "123"}
    options = {"account": None}
    source_and_point(("optfs", "/mnt"), options)
    source_and_point(("/mnt",), options)
    assert options == {"account": None}
    with pytest.raises(ConfigError, match="says otherwise"):
        source_and_point(("123", "/mnt"), {"account": "456"})


@pytest.mark.parametrize(
    ("source", "account"), [("optfs", None), ("none", None), ("123", "123"), ("optfs#123", "123"), ("else", "/home/me/else")]
)
def test_a_source_that_mount_made_a_whole_path_of_is_the_same(source: str, account: str | None) -> None:
    """mount(8) does that where the current folder has something of that name, as a clone of optfs has."""
    options: dict[str, str | None] = {}
    assert source_and_point((f"/home/me/{source}", "/mnt"), options) == Path("/mnt")
    assert options.get("account") == account


def test_the_mount_options_of_mount_8_reach_the_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["optfs", str(tmp_path), "-o", "rw,_netdev,cache_sise=1"]) == 2
    assert "-o cache_sise: there is no such option" in capsys.readouterr().err


def test_cache_commands_work_without_a_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("info", "clear", "verify"):
        assert main(["cache", "--cache-dir", str(tmp_path / "none"), name]) == 0
        assert f"{tmp_path}/none: no cache yet" in capsys.readouterr().out
        assert main(["cache", name, "--cache-dir", str(tmp_path / "none")]) == 0
        assert f"{tmp_path}/none: no cache yet" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["info", "clear", "verify"])
def test_cache_commands_make_no_cache_in_a_folder_without_one(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It may be a mistyped name."""
    assert main(["cache", "--cache-dir", str(tmp_path), name]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no cache yet\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["info", "clear", "verify"])
def test_a_cache_folder_that_cannot_be_looked_at_is_wrong_usage(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By a name that is too long, which root can't look at either."""
    folder = tmp_path / ("long" * 100)
    assert main(["cache", name, "--cache-dir", str(folder)]) == 2
    assert capsys.readouterr().err == f"optfs: --cache-dir: {folder} can't be used: File name too long\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_cache_below_a_folder_that_one_may_not_enter_is_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o600)
    try:
        assert main(["cache", "info", "--cache-dir", str(tmp_path / "cache")]) == 2
    finally:
        tmp_path.chmod(0o700)
    assert capsys.readouterr().err == f"optfs: --cache-dir: {tmp_path}/cache can't be used: Permission denied\n"


def test_cache_commands_tell_what_they_did(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    open_folder(folder)
    for name, word in (("info", "0 blocks"), ("verify", "0 blocks checked"), ("clear", "0 blocks removed")):
        assert main(["cache", "--cache-dir", str(folder), name]) == 0
        assert word in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "soon", "9" * 400])
def test_umount_waits_for_so_many_seconds_and_no_other_length(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would wait for ever for one that no clock reaches."""
    assert main(["umount", "--timeout", seconds, "/mnt"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"optfs: --timeout: {seconds[:60]!r} is ")
    assert told.endswith("see optfs umount --help\n")


def test_umounts_timeout_is_a_duration_as_mounts_is(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(running, "unmount", lambda *_, timeout, **__: waited.append(timeout))
    for words in ([], ["--timeout", "2"], ["--timeout", "500ms"], ["--timeout", "1m"]):
        assert main(["umount", *words, "/mnt"]) == 0
    assert waited == [15.0, 2.0, 0.5, 60.0]


def test_what_names_the_file_of_settings_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "OPTFS_CONFIG, -o config=FILE" in shown


@pytest.mark.parametrize(("lazy", "how"), [([], "hasn't ended yet"), (["--lazy"], "ends when the last file is closed")])
def test_umount_tells_of_a_process_that_is_still_there(
    lazy: list[str], how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only lazily is a mount taken away that may be in use."""
    monkeypatch.setattr(mounts, "recover_stale", lambda _: False)
    monkeypatch.setattr(mounts, "find", lambda path: mounts.Mount(str(path), mounts.FSTYPE, "optfs#1", "0:1"))
    monkeypatch.setattr(mounts, "unmount", lambda *_, **__: None)
    monkeypatch.setattr(running, "ask_mount", lambda _: {"pid": 7})
    monkeypatch.setattr(running, "end_of", lambda _pid, _timeout: False)
    assert main(["umount", *lazy, "/mnt"]) == 0
    assert capsys.readouterr().out == f"/mnt is unmounted; its process 7 {how}\n"


@pytest.mark.parametrize(("error", "advised"), [(MountBusy("in use"), True), (MountError("not permitted, busy"), False)])
def test_umount_of_a_mount_in_use_says_what_to_do(
    error: MountError, advised: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(running, "unmount", refuse)
    assert main(["umount", "/mnt"]) == 5
    assert ("fuser -vm /mnt" in capsys.readouterr().err) is advised


def test_umount_says_nothing_when_all_is_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a mount point with a colon in its name."""
    monkeypatch.setattr(mounts, "recover_stale", lambda _: False)
    monkeypatch.setattr(mounts, "find", lambda path: mounts.Mount(str(path), mounts.FSTYPE, "optfs#1", "0:1"))
    monkeypatch.setattr(mounts, "unmount", lambda *_, **__: None)
    monkeypatch.setattr(running, "ask_mount", lambda _: None)
    assert main(["umount", "/mnt/a:b"]) == 0
    assert capsys.readouterr() == ("", "")


def test_sizes_and_spans_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 10 * 2**30, 3 * 2**40)] == ["0 B", "1023 B", "1.5 KiB", "10.0 GiB", "3.0 TiB"]
    assert [span(n) for n in (0, 59.6, 192, 7500, 90000, -5)] == ["0m 00s", "1m 00s", "3m 12s", "2h 05m", "1d 1h", "-0m 05s"]


def test_status_escapes_what_would_control_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Root is shown what other users' processes tell, and the names of their mount points."""
    point = "/mnt/\x1b]0;mine\x07é\u202e\udcff\n/x: mounted"
    monkeypatch.setattr(survey, "mounts", lambda _mountpoint: [{"state": "dead", "mountpoint": point}])
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("/mnt/\\x1b]0;mine\\x07é\\u202e\\udcff\\n/x: mounted: dead; ")
    assert shown.count("\n") == 1


def test_a_dead_mount_is_told_with_what_to_do() -> None:
    assert lines({"state": "dead", "mountpoint": "/mnt"}) == ["/mnt: dead; unmount it: optfs umount /mnt"]
    assert lines({"state": "dead", "mountpoint": "/a b"}) == ["/a b: dead; unmount it: optfs umount '/a b'"]


def test_a_mount_that_an_older_version_serves_is_shown() -> None:
    """It tells less; one of them hid all others."""
    counts = {"state": "on", "size": 0, "limit": 0, "hits": 0, "misses": 0, "memory_hits": 0, "disk_hits": 0, "unused": 0, "resident": 0}
    names = ("cache", "requests", "blocks", "readahead", "memory")
    mount: dict[str, object] = dict.fromkeys(("retries", "errors", "bytes_fetched", "bytes_read", "uptime", "pid"), 0) | dict.fromkeys(
        names, counts
    )
    mount |= {"state": "mounted", "mountpoint": "/mnt", "account": "1", "providers": ["aws"], "binding": "fuse3", "version": "0"}
    shown = lines(mount | {"credentials": [], "listings": {"failing": ["aws"]}})
    assert shown[-1] == "  listings    aws can't be listed now; what was last seen is shown"
