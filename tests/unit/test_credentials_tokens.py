"""Token sources: where a token comes from, what is refused, and that none of it is ever shown."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optfs.credentials.tokens import TokenCommand, TokenFile, TokenVariable, checked, find_token, scrubbed_environment
from optfs.errors import ConfigError, ServiceUnavailable

TOKEN = "2:top-secret"


def token_file(folder: Path, content: bytes = b"2:top-secret\n", mode: int = 0o600) -> Path:
    """Return a new token file."""
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def command(program: str, *, environment: dict[str, str] | None = None) -> TokenCommand:
    """Return a source that runs a Python program."""
    return TokenCommand([sys.executable, "-c", program], environment or {})


def test_a_file_gives_its_line_without_the_newline(tmp_path: Path) -> None:
    """Editors end files with a newline, which is no part of the token."""
    assert TokenFile(token_file(tmp_path)).read() == TOKEN
    assert TokenFile(token_file(tmp_path, b"2:top-secret\r\n")).read() == TOKEN


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    """A rotated token is seen at the next renewal."""
    source = TokenFile(token_file(tmp_path))
    source.read()
    token_file(tmp_path, b"2:rotated")
    assert source.read() == "2:rotated"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """As ssh refuses a key; the message says how to repair it."""
    with pytest.raises(ConfigError, match="chmod 600"):
        TokenFile(token_file(tmp_path, mode=mode)).read()


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could replace the token."""
    path = token_file(tmp_path)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        TokenFile(path).read()


@pytest.mark.parametrize("content", [b"", b"\n", b" \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty header would be refused by the API with a less telling message."""
    with pytest.raises(ConfigError, match="is empty"):
        TokenFile(token_file(tmp_path, content)).read()


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A folder, a FIFO that nobody writes to, and a missing file."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo, tmp_path / "missing"):
        with pytest.raises(ConfigError):
            TokenFile(path).read()


@given(st.text(min_size=1))
def test_only_one_line_of_printable_ascii_is_a_token(text: str) -> None:
    """Whatever is accepted can't end a header or start another one."""
    try:
        token = checked(text, "it")
    except ConfigError:
        pass
    else:
        assert token.isascii()
        assert token.isprintable()
        assert " " not in token


@pytest.mark.parametrize("bad", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "tök", "a b", "x\u2028y", "x" * 5000])
def test_what_could_break_a_header_is_refused_without_showing_it(bad: str) -> None:
    """The message doesn't repeat what may be most of a token."""
    with pytest.raises(ConfigError) as caught:
        checked(bad, "it")
    assert bad not in caught.value.message


def test_a_command_gives_what_it_prints(tmp_path: Path) -> None:
    """Without a shell: a word that a shell would expand stays as it is."""
    assert command("print('2:top-secret')").read() == TOKEN
    assert TokenCommand([sys.executable, "-c", "import sys; print(sys.argv[1])", "$HOME"], {}).read() == "$HOME"


def test_a_command_gets_no_secret_and_no_input() -> None:
    """It is somebody else's program."""
    environment = {
        "OPTIMIZELY_API_TOKEN": "s",
        "OPTIMIZELY_PAT": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "s",
        "GOOGLE_APPLICATION_CREDENTIALS": "s",
        "GOOGLE_OAUTH_ACCESS_TOKEN": "s",
        "AWS_REGION": "kept",
        "HOME": "kept",
    }
    assert scrubbed_environment(environment) == {"AWS_REGION": "kept", "HOME": "kept"}
    printed = command(
        "import os, sys; print('left' if {'OPTIMIZELY_PAT', 'AWS_SESSION_TOKEN'} & set(os.environ) else 'input' + sys.stdin.read())",
        environment=environment,
    ).read()
    assert printed == "input"


def test_a_failing_command_is_one_clear_message_without_what_it_printed() -> None:
    """What it printed on standard output may be the token; its complaint is shortened, made printable, and for the log only."""
    with pytest.raises(ServiceUnavailable, match="exit code 3") as caught:
        command("import sys; print('2:top-secret'); sys.stderr.write('first\\nlocked\\x1b[31m' + 'x' * 999); sys.exit(3)").read()
    assert TOKEN not in caught.value.message + caught.value.detail
    assert caught.value.detail.startswith("locked[31m")
    assert len(caught.value.detail) <= 200


def test_a_complaint_that_holds_the_token_is_dropped() -> None:
    """Some programs echo what they print."""
    with pytest.raises(ServiceUnavailable) as caught:
        command("import sys; print('2:top-secret'); sys.stderr.write('printed 2:top-secret'); sys.exit(1)").read()
    assert caught.value.detail == ""


def test_a_command_that_takes_too_long_ends_with_all_it_started() -> None:
    """Also where a child of the command holds the pipes."""
    with pytest.raises(ServiceUnavailable, match="doesn't answer"):
        command("import subprocess; subprocess.run(['sleep', '600'])").read(1.0)


def test_a_command_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as sudo's, which belongs to root; whoever renews goes on."""

    class Kept(TokenCommand):
        def _start(self) -> subprocess.Popen[bytes]:
            self.process = super()._start()
            return self.process

    def refuse(_group: int, _number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    source = Kept(["sleep", "20"], {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(os, "killpg", refuse)
    try:
        with pytest.raises(ServiceUnavailable, match="doesn't answer"):
            source.read(0.1)
        assert source.process.poll() is None
        assert source.process.stdout is not None
        assert source.process.stdout.closed
    finally:
        source.process.kill()
        source.process.wait()


def test_a_child_left_behind_does_not_hold_the_answer_back() -> None:
    """An agent that the command starts may keep its outputs open."""
    program = "import subprocess; subprocess.Popen(['sleep', '600']); print('2:top-secret', flush=True)"
    assert command(program).read(60.0) == TOKEN


def test_endless_output_is_neither_kept_nor_waited_for() -> None:
    """It would fill the memory."""
    with pytest.raises(ServiceUnavailable, match="took longer"):
        command("import os\nwhile True: os.write(1, b'x' * 4096)").read(0.5)


def test_a_missing_program_is_refused() -> None:
    """By its name."""
    with pytest.raises(ConfigError, match=r"\(no-such-program\) can't be run: No such file or directory$"):
        TokenCommand(["no-such-program", "--x"], {}).read()


def test_precedence(tmp_path: Path) -> None:
    """Option, then OPTIMIZELY_API_TOKEN, then OPTIMIZELY_PAT; an empty variable counts as missing."""
    environment = {"OPTIMIZELY_PAT": "pat", "OPTIMIZELY_API_TOKEN": "api"}

    def found(file: Path | None, words: list[str] | None, variables: dict[str, str]) -> str | None:
        source = find_token(file, words, variables)
        return None if source is None else source.read()

    assert found(token_file(tmp_path), None, environment) == TOKEN
    assert found(None, ["echo", "spoken"], environment) == "spoken"
    assert found(None, None, environment) == "api"
    assert found(None, None, {"OPTIMIZELY_PAT": "pat", "OPTIMIZELY_API_TOKEN": ""}) == "pat"
    assert found(None, None, {}) is None


def test_no_repr_shows_a_secret() -> None:
    """Reprs end up in logs."""
    assert "top-secret" not in repr(TokenVariable("OPTIMIZELY_PAT", TOKEN))
    assert "hunter2" not in repr(TokenCommand(["pass", "--key", "hunter2"], {"X": "hunter2"}))


def test_a_command_runs_where_optfs_was_started(tmp_path: Path) -> None:
    """Also for a background process, which goes to another folder: relative names in it went wrong there."""
    (tmp_path / "token").write_text("secret\n")
    assert TokenCommand(["cat", "token"], {"PATH": os.environ["PATH"]}, folder=tmp_path).read() == "secret"
    gone = TokenCommand(["cat", f"{tmp_path}/token"], {"PATH": os.environ["PATH"]}, folder=tmp_path / "gone")
    assert gone.read() == "secret"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_while_a_command_is_being_started_raises_and_leaves_no_command(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]  # what it was given
            started.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            command("import time; time.sleep(60)").read()
    finally:
        signal.signal(number, before)
    assert started[0].returncode == -signal.SIGKILL
