"""The control socket: private, answering, and gone with its mount."""

import os
import socket
import stat
from pathlib import Path

import pytest

from optfs.service import control, survey
from optfs.service.control import ControlServer, ask, ask_mount, socket_name

POINT = Path("/mnt/export")


def test_whoever_connects_gets_the_document_and_the_socket_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    server = ControlServer(POINT, lambda: {"mountpoint": str(POINT), "pid": 7}, folder)
    assert server.start()
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / socket_name(POINT)).stat().st_mode) == 0o600
        for _ in range(3):
            assert ask_mount(POINT, folder) == {"mountpoint": str(POINT), "pid": 7}
        assert ask_mount(Path("/mnt/other"), folder) is None
    finally:
        server.close()
    assert list(folder.iterdir()) == []
    assert ask_mount(POINT, folder) is None


def test_a_large_document_arrives_whole(tmp_path: Path) -> None:
    server = ControlServer(POINT, lambda: {"text": "x" * 500_000}, tmp_path / "run")
    server.start()
    try:
        answer = ask_mount(POINT, tmp_path / "run")
        assert answer is not None
        assert len(answer["text"]) == 500_000
    finally:
        server.close()


def test_the_socket_of_a_killed_mount_is_removed_by_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / socket_name(POINT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert ask(path) is None
    assert not path.exists()


def test_a_new_mount_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / socket_name(POINT)))
    server = ControlServer(POINT, lambda: {"pid": 8}, folder)
    assert server.start()
    try:
        assert ask_mount(POINT, folder) == {"pid": 8}
    finally:
        server.close()


@pytest.mark.log_errors
def test_a_document_that_fails_costs_that_answer_only(tmp_path: Path) -> None:
    answers = iter([ValueError("bug"), {"pid": 9}])

    def document() -> control.Document:
        answer: object = next(answers)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    server = ControlServer(POINT, document, tmp_path / "run")
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") is None
        assert ask_mount(POINT, tmp_path / "run") == {"pid": 9}
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
    server = ControlServer(POINT, lambda: {"pid": 10}, folder)
    assert server.start()
    try:
        assert ask_mount(POINT, folder) == {"pid": 10}
    finally:
        server.close()


def test_an_answer_that_is_no_document_counts_as_none(tmp_path: Path) -> None:
    server = ControlServer(POINT, lambda: ["no"], tmp_path / "run")  # type: ignore[arg-type, return-value]  # wrong on purpose
    server.start()
    try:
        assert ask_mount(POINT, tmp_path / "run") is None
    finally:
        server.close()


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert control.runtime_folder() == tmp_path / "optfs"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert control.runtime_folder() == tmp_path / ".cache/optfs/run"


def test_a_survey_of_a_folder_that_is_no_mount_is_empty(tmp_path: Path) -> None:
    assert survey.mounts(tmp_path, tmp_path / "run") == []
