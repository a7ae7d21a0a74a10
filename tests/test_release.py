"""A release needs one version and a complete source distribution."""

import shutil
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


def test_a_release_that_is_not_ready_says_why(tmp_path: Path) -> None:
    for name in ("scripts/release", "clipmerge/__init__.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    run = subprocess.run(
        [tmp_path / "scripts" / "release", "9.9.9"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("not ready: clipmerge/__init__.py, the one place of the version,")


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


@pytest.mark.slow
def test_every_file_is_there(unpacked: Path) -> None:
    folders = ["clipmerge", "recipes", "tests", "benchmarks", "docs", "examples", "scripts"]
    command = ["git", "ls-files", *folders, ".ci", ".github"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 300
    assert [name for name in files if not (unpacked / name).is_file()] == []
