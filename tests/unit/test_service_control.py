"""The control socket: private, answering, and gone with its mount."""

import contextlib
import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from optfs.bridge import mounts
from optfs.service import control, survey
from optfs.service.control import ControlServer, ask, ask_mount, socket_name

POINT = Path("/mnt/export")

NUMBERS = ("size", "limit", "hits", "misses", "memory_hits", "disk_hits", "unused", "resident")


def document(**changes: object) -> control.Document:
    """Return a document as a mount tells it, with changes; None takes a field away."""
    counts = dict.fromkeys(NUMBERS, 0)
    credential = {"provider": "aws", "bucket": "b", "expires_in": None, "last_refresh": None, "last_error": None}
    made = {
        "mountpoint": str(POINT),
        "account": "1",
        "binding": "fuse3",
        "version": "0",
        "pid": 7,
        "providers": ["aws"],
        **dict.fromkeys(("uptime", "bytes_fetched", "bytes_read", "retries", "errors"), 0),
        **dict.fromkeys(("requests", "memory", "readahead", "blocks", "listings"), counts),
        "credentials": [credential],
        "cache": counts | {"state": "on"},
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def test_whoever_connects_gets_the_document_and_the_socket_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    server = ControlServer(POINT, document, folder)
    assert server.start()
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / socket_name(POINT)).stat().st_mode) == 0o600
        for _ in range(3):
            assert ask_mount(POINT, folder) == document()
        assert ask_mount(Path("/mnt/other"), folder) is None
    finally:
        server.close()
    assert list(folder.iterdir()) == []
    assert ask_mount(POINT, folder) is None


@pytest.mark.parametrize("error", [MemoryError(), SystemExit()], ids=lambda error: type(error).__name__)
def test_the_socket_outlives_whatever_an_answer_raises(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`optfs status` would not know of the mount any more, nor `optfs umount` wait for it."""
    monkeypatch.setattr(control, "_REST", 0.0)
    server = ControlServer(POINT, document, tmp_path / "run")
    real = server._answer
    raised: list[BaseException] = []

    def answer(listening: socket.socket) -> bool:
        if not raised:
            raised.append(error)
            raise error
        return real(listening)

    monkeypatch.setattr(server, "_answer", answer)
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") == document()
        assert raised
    finally:
        server.close()


def test_without_memory_for_its_thread_the_mount_works_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`optfs status` just doesn't see it."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = ControlServer(POINT, document, tmp_path / "run")
    with monkeypatch.context() as starved:
        starved.setattr(threading.Thread, "start", refuse)
        assert not server.start()
    server.close()
    assert ask_mount(POINT, tmp_path / "run") is None


def test_a_large_document_arrives_whole(tmp_path: Path) -> None:
    server = ControlServer(POINT, lambda: document(text="x" * 500_000), tmp_path / "run")
    server.start()
    try:
        answer = ask_mount(POINT, tmp_path / "run")
        assert answer is not None
        assert len(answer["text"]) == 500_000
    finally:
        server.close()


def test_the_socket_of_a_killed_mount_is_removed_by_whoever_asks(tmp_path: Path) -> None:
    path = dead_socket(tmp_path)
    assert path.exists()
    assert ask(path) is None
    assert not path.exists()


def test_a_new_mount_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    dead_socket(folder)
    server = ControlServer(POINT, lambda: document(pid=8), folder)
    assert server.start()
    try:
        assert ask_mount(POINT, folder) == document(pid=8)
    finally:
        server.close()


def test_a_mount_that_ends_leaves_the_socket_of_a_later_one_at_the_same_place(tmp_path: Path) -> None:
    """The earlier one was unmounted lazily; `optfs status` still sees the later one."""
    servers = [ControlServer(POINT, lambda pid=pid: document(pid=pid), tmp_path / "run") for pid in (8, 9)]  # type: ignore[misc]  # untyped default
    assert all(server.start() for server in servers)
    try:
        servers[0].close()
        assert ask_mount(POINT, tmp_path / "run") == document(pid=9)
    finally:
        servers[1].close()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.log_errors
def test_a_document_that_fails_costs_that_answer_only(tmp_path: Path) -> None:
    answers = iter([ValueError("bug"), document(pid=9)])

    def tell() -> control.Document:
        answer: object = next(answers)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    server = ControlServer(POINT, tell, tmp_path / "run")
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") is None
        assert ask_mount(POINT, tmp_path / "run") == document(pid=9)
    finally:
        server.close()


def test_without_a_usable_folder_the_mount_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = ControlServer(POINT, dict, tmp_path / "file")
    assert not server.start()
    server.close()


def test_a_symbolic_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    server = ControlServer(POINT, dict, tmp_path / "run")
    assert not server.start()
    server.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    server = ControlServer(POINT, dict, folder)
    assert server.start()
    server.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_paths_longer_than_the_kernel_takes_work(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    server = ControlServer(POINT, lambda: document(pid=10), folder)
    assert server.start()
    try:
        assert ask_mount(POINT, folder) == document(pid=10)
    finally:
        server.close()


def test_an_answer_that_is_no_document_counts_as_none(tmp_path: Path) -> None:
    server = ControlServer(POINT, lambda: ["no"], tmp_path / "run")  # type: ignore[arg-type, return-value]  # wrong on purpose
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") is None
    finally:
        server.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": None},
        {"pid": -1},
        {"pid": 1 << 40},
        {"uptime": float("inf")},
        {"uptime": float("nan")},
        {"bytes_read": 10**400},
        {"bytes_read": True},
        {"mountpoint": 7},
        {"state": "mounted"},
        {"credentials": [{}]},
        {"credentials": {}},
        {"cache": []},
        {"listings": {"failing": [1]}},
        {"providers": "aws"},
    ],
    ids="-".join,
)
def test_an_answer_that_lacks_fields_or_has_wrong_ones_counts_as_none(tmp_path: Path, changes: dict[str, object]) -> None:
    """Root asks other users' mounts, and one such answer must not keep the others from being shown."""
    server = ControlServer(POINT, lambda: document(**changes), tmp_path / "run")
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") is None
    finally:
        server.close()


def test_an_answer_too_deep_to_be_read_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / socket_name(POINT)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        teller = threading.Thread(target=_tell, args=(server, b"[" * 200_000))
        teller.start()
        assert ask(path) is None
        teller.join()


def test_an_answer_that_trickles_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    path = tmp_path / socket_name(POINT)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        teller = threading.Thread(target=_tell, args=(server, b"[" + b" " * 40 + b"]", 0.1))
        teller.start()
        before = time.monotonic()
        assert ask(path) is None
        assert time.monotonic() - before < 2
        teller.join()


def _tell(server: socket.socket, text: bytes, pause: float = 0.0) -> None:
    """Answer one client; with a pause after each byte."""
    client, _ = server.accept()
    with client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in [text] if not pause else [text[at : at + 1] for at in range(len(text))]:
            client.sendall(piece)
            time.sleep(pause)


def dead_socket(folder: Path) -> Path:
    """Return a socket on which nobody listens."""
    path = folder / socket_name(POINT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """Connecting to a file is refused, too."""
    file = tmp_path / socket_name(POINT)
    file.write_text("precious")
    link = tmp_path / "link.sock"
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(dead_socket(tmp_path / "elsewhere"))
    assert ask(file) is None
    assert ask(link) is None
    assert file.read_text() == "precious"
    assert link.is_symlink()


def test_a_folder_that_is_a_link_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    dead_socket(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert len(control.sockets(tmp_path / "run")) == 1
    assert control.sockets(tmp_path / "link") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks other users' mounts, and can give folders away")
def test_root_asks_users_in_their_own_folders_only_and_removes_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "USERS_FOLDERS", tmp_path)
    monkeypatch.setattr(control, "runtime_folder", lambda: tmp_path / "none")
    for user, owner in ((4001, 4001), (4002, 4003), (4004, 4004)):
        folder = tmp_path / str(user) / "optfs"
        folder.mkdir(parents=True)
        os.chown(folder, owner, owner)
        dead_socket(folder)
    (tmp_path / "4005").mkdir()
    (tmp_path / "4005/optfs").symlink_to(tmp_path / "4001/optfs")
    (tmp_path / "lost+found/optfs").mkdir(parents=True)
    found = control.sockets()
    assert [path.parent for path in found] == [tmp_path / "4001/optfs", tmp_path / "4004/optfs"]
    assert [ask(path) for path in found] == [None, None]
    assert all(path.exists() for path in found)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert control.runtime_folder() == tmp_path / "optfs"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert control.runtime_folder() == tmp_path / ".cache/optfs/run"


def test_a_survey_of_a_folder_that_is_no_mount_is_empty(tmp_path: Path) -> None:
    assert survey.mounts(tmp_path, tmp_path / "run") == []


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_look_that_fails_leaves_a_mount_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of descriptors: without a traceback, and the others have their answers."""
    monkeypatch.setattr(mounts, "mounts", lambda: [mounts.Mount(f"/m{number}", mounts.FSTYPE, "", "0:1") for number in range(3)])

    def ask(point: Path, _folder: Path | None) -> control.Document:
        if str(point) == "/m1":
            raise OSError(errno.EMFILE, "no more files")
        return document(mountpoint=str(point))

    monkeypatch.setattr(control, "ask_mount", ask)
    assert [each["state"] for each in survey.mounts(folder=Path("/nonexistent"))] == ["mounted", "silent", "mounted"]


def test_looks_that_hang_share_one_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't answered by then is told as silent, and what is has its answer."""
    monkeypatch.setattr(survey, "PATIENCE", 0.5)
    monkeypatch.setattr(mounts, "mounts", lambda: [mounts.Mount(f"/m{number}", mounts.FSTYPE, "", "0:1") for number in range(20)])
    answers = threading.Event()

    def ask_slowly(point: Path, _folder: Path | None) -> control.Document:
        if str(point) != "/m7":
            answers.wait(60)
        return document(mountpoint=str(point))

    monkeypatch.setattr(control, "ask_mount", ask_slowly)
    began = time.monotonic()
    try:
        found = {each["mountpoint"]: each["state"] for each in survey.mounts(folder=Path("/nonexistent"))}
        assert time.monotonic() - began < 5  # 19 waits one after the other would take 9.5
    finally:
        answers.set()
    assert found == {f"/m{number}": "mounted" if number == 7 else "silent" for number in range(20)}
