"""The source distribution holds everything that its own tests read."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder of a freshly built sdist."""
    pytest.importorskip("hatchling", reason="the dev extra has it")
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


# pytest without any other checkout on the path: an editable install would lend its benchmarks
PYTEST = """
import os, sys
sys.path = [os.getcwd(), *(path for path in sys.path if not os.path.exists(os.path.join(path, "pyproject.toml")))]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_pytest(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in ``root``, on the clipmerge there."""
    command = [sys.executable, "-c", PYTEST, "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_every_file_is_there(unpacked: Path) -> None:
    folders = ("clipmerge", "recipes", "tests", "benchmarks", "docs", "examples", "scripts", ".ci", ".github")
    files = {
        file.relative_to(ROOT)
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert len(files) > 600
    assert {file.as_posix() for file in files if not (unpacked / file).is_file()} == set()


def test_tests_that_read_files_of_the_repository_pass_there(unpacked: Path) -> None:
    reading = ("tests/docs", "tests/planning/test_recipe.py", "tests/benchmarks/test_shift_evaluation.py")
    ended = run_pytest(unpacked, "-m", "not slow", *reading)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
