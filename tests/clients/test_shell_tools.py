"""cp, tar, find, ls, stat, grep, diff, du and rsync on a mount see each name, size, time and byte of what was generated."""

import datetime
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.clients.conftest import Export

MTIME = 1_780_000_000


def run(*line: str | Path, folder: Path | None = None, code: int = 0) -> bytes:
    """Run a program to its end and return what it printed; it must complain of nothing."""
    words = [str(word) for word in line]
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (code, b""), done.stderr.decode()
    return done.stdout


def content(folder: Path) -> dict[str, bytes]:
    """Return what an ordinary folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folders(export: Export) -> set[str]:
    """Return the folders that the keys make, the account's own as `.`."""
    return {str(parent) for key in export.files for parent in Path(key).parents}


def test_cp_copies_everything(export: Export, tmp_path: Path) -> None:
    run("cp", "-r", "--preserve=timestamps", export.folder, tmp_path / "copy")
    assert content(tmp_path / "copy") == export.files
    assert {int(path.stat().st_mtime) for path in (tmp_path / "copy").rglob("*") if path.is_file()} == {MTIME}


def test_tar_holds_everything_once(export: Export) -> None:
    with tarfile.open(fileobj=io.BytesIO(run("tar", "-cf", "-", "-C", export.folder, "."))) as archive:
        found = {}
        for member in archive:
            if member.isfile():
                name = member.name.removeprefix("./")
                assert name not in found
                file = archive.extractfile(member)
                assert file is not None
                found[name] = file.read()
                assert (member.mode, int(member.mtime)) == (0o444, MTIME)
    assert found == export.files


def test_find_sees_each_file_and_folder_with_its_size(export: Export) -> None:
    printed = run("find", export.folder, "-printf", r"%y %s %P\0").decode().split("\0")[:-1]
    lines = [line.split(" ", 2) for line in printed]
    assert {(int(size), name) for kind, size, name in lines if kind == "f"} == {(len(data), key) for key, data in export.files.items()}
    assert {name or "." for kind, _, name in lines if kind == "d"} == folders(export)
    assert len(lines) == len(export.files) + len(folders(export))
    complete = run("find", export.folder, "-name", "_SUCCESS", "-empty", "-printf", r"%P\0").decode().split("\0")[:-1]
    assert set(complete) == {key for key, data in export.files.items() if not data}
    assert complete


def test_ls_lists_each_folder_once(export: Export) -> None:
    seen: dict[str, int] = {}
    folder = ""
    for line in run("ls", "-lR", "--time-style=+%s", ".", folder=export.folder).decode().splitlines():
        if header := re.fullmatch(r"\.(?:/(.*))?:", line):
            folder = header[1] or ""
        elif entry := re.fullmatch(r"-r--r--r-- +1 \S+ +\S+ +(\d+) (\d+) (.*)", line):
            key = f"{folder}/{entry[3]}"
            assert key not in seen
            assert int(entry[2]) == MTIME
            seen[key] = int(entry[1])
        else:
            assert re.fullmatch(r"(total \d+)?|dr-xr-xr-x .*", line), line
    assert seen == {key: len(data) for key, data in export.files.items()}


def test_stat_tells_size_kind_time_and_permissions(export: Export) -> None:
    key, data = max(export.files.items(), key=lambda item: len(item[1]))
    assert run("stat", "-c", "%s %F %a %Y %u", export.folder / key).decode().split("\n")[0] == (
        f"{len(data)} regular file 444 {MTIME} {os.getuid()}"
    )
    assert run("stat", "-c", "%F %a", (export.folder / key).parent).decode() == "directory 555\n"
    moment = datetime.datetime.fromtimestamp(MTIME, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    assert moment in run("stat", export.folder / key).decode()


def test_grep_finds_what_is_in_the_files_and_nothing_else(export: Export) -> None:
    for word in (b"entity_id", b"campaign_id", b"oeu1", b"Firefox"):
        wanted = {key for key, data in export.files.items() if word in data}
        assert wanted
        found = run("grep", "-rlZF", word.decode(), ".", folder=export.folder).split(b"\0")[:-1]
        assert len(found) == len(set(found))
        assert {name.decode().removeprefix("./") for name in found} == wanted
    assert run("grep", "-rlF", "no file has this", ".", folder=export.folder, code=1) == b""


def test_checksums_and_diff_agree_with_a_copy_made_elsewhere(export: Export, tmp_path: Path) -> None:
    for key, data in export.files.items():
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert run("diff", "-r", tmp_path, export.folder) == b""
    lines = run("find", ".", "-type", "f", "-exec", "sha256sum", "-z", "{}", "+", folder=export.folder).split(b"\0")[:-1]
    sums = {line[66:].decode().removeprefix("./"): line[:64].decode() for line in lines}
    assert sums == {key: hashlib.sha256(data).hexdigest() for key, data in export.files.items()}
    changed = tmp_path / next(key for key, data in export.files.items() if data)
    changed.write_bytes(bytes([changed.read_bytes()[0] ^ 1]) + changed.read_bytes()[1:])
    assert b"differ" in run("diff", "-rq", tmp_path, export.folder, code=1)


def test_du_adds_up_sizes(export: Export) -> None:
    size = int(run("du", "-sb", "--apparent-size", export.folder).split()[0])
    assert size == sum(map(len, export.files.values()))


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_copies_once_and_then_nothing(export: Export, tmp_path: Path) -> None:
    copy = f"{tmp_path / 'copy'}/"
    run("rsync", "-rt", f"{export.folder}/", copy)
    assert content(tmp_path / "copy") == export.files
    again = run("rsync", "-rt", "--itemize-changes", f"{export.folder}/", copy).decode()
    assert [line for line in again.splitlines() if line.startswith(">f")] == []
