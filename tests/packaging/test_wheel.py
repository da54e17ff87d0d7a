"""What is installed from a wheel works: the program, its data files, and a mount. Needs no network: dependencies are those of this Python."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import optfs
from optfs.bridge import mounts
from optfs.demo.services import Services
from tests.support.mounting import require

SOURCE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing is left in the source."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "source"
    shutil.copytree(SOURCE / "optfs", copy / "optfs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, copy)
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        str(copy),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment of its own, which sees this Python's packages but not this source."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    present = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(present) + "\n")
    line = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "optfs"


def run(program: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program away from the source."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run([program, *words], env=kept | environment, cwd="/", capture_output=True, text=True, timeout=90, check=False)


def test_the_wheel_holds_the_packages_the_types_and_the_documents_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("optfs/py.typed", "optfs/__main__.py", "optfs/cli/mount.py", "optfs/docs/architecture.md", "optfs/demo/services.py"):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests", "scripts"))]


def test_the_program_tells_its_version_from_the_installed_copy(program: Path) -> None:
    done = run(program, "--version")
    assert done.stdout == f"optfs, version {optfs.__version__}\n"
    where = subprocess.run(
        [program.parent / "python", "-I", "-c", "import optfs; print(optfs.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(where.stdout.strip()).is_relative_to(program.parents[1])


def test_an_export_is_mounted_by_the_installed_program(program: Path, tmp_path: Path) -> None:
    require("auto")
    point = tmp_path / "mnt"
    point.mkdir()
    with Services() as services:
        services.put("type=events/date=2026-11-01/event=a/part.parquet", b"content")
        environment = {**services.environment, "HOME": str(tmp_path), "OPTFS_CACHE_DIR": str(tmp_path / "cache")}
        try:
            done = run(program, "mount", str(point), **environment)
            assert (done.returncode, done.stderr) == (0, "")
            assert (point / "123" / "events" / "2026-11-01" / "a" / "part.parquet").read_bytes() == b"content"
            assert run(program, "umount", str(point), **environment).returncode == 0
        finally:
            while mounts.find(point) is not None:
                mounts.unmount(point, lazy=True)
