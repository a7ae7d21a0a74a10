"""What a release needs: one version, files that others can read, and a source distribution that
tests itself."""

import os
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from clipmerge import __version__
from tests.support.command import ROOT, python


def test_the_version_is_in_one_place_and_the_citation_has_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]


RAISED = {"clipmerge/__init__.py": '__version__ = "9.9.9"\n'}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "clipmerge/__init__.py, the one place of the version, has another"),
        (RAISED, "CITATION.cff has another version"),
        (
            RAISED | {"CITATION.cff": "version: 9.9.9\n"},
            "CHANGELOG.md has no section '## [9.9.9] - DATE'",
        ),
    ],
)
def test_a_release_that_is_not_ready_says_why(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name in ("scripts/release", "clipmerge/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(files.get(name, (ROOT / name).read_text(encoding="utf-8")))
    (tmp_path / "scripts" / "release").chmod(0o755)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    run = subprocess.run(
        [tmp_path / "scripts" / "release", "9.9.9"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, f"not ready: {said}\n")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder of a freshly built sdist."""
    pytest.importorskip("hatchling", reason="the dev extra has it")
    folder = tmp_path_factory.mktemp("sdist")
    built = python("-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
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


@pytest.mark.slow
def test_every_file_is_there(unpacked: Path) -> None:
    folders = (
        "clipmerge",
        "recipes",
        "tests",
        "benchmarks",
        "docs",
        "examples",
        "scripts",
        ".ci",
        ".github",
    )
    files = {
        file.relative_to(ROOT)
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert len(files) > 300
    assert {file.as_posix() for file in files if not (unpacked / file).is_file()} == set()


@pytest.mark.nightly
def test_tests_that_read_files_of_the_repository_pass_there(unpacked: Path) -> None:
    pages = (
        "tests/docs/test_pages.py",
        "tests/docs/test_readme.py",
        "tests/docs/test_contributing.py",
    )
    reading = (*pages, "tests/planning/test_recipe.py", "tests/benchmarks/test_figures.py")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{unpacked}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    words = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not nightly", *reading)
    ended = python("-c", PYTEST, *words, cwd=unpacked, env={**environment, "PYTEST_ADDOPTS": ""})
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
