"""A release needs one version and a complete source distribution."""

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


@pytest.mark.slow
def test_the_source_distribution_has_every_file(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the dev extra has it")
    folders = ["clipmerge", "recipes", "tests", "benchmarks", "docs", "examples", "scripts"]
    command = ["git", "ls-files", *folders, ".ci", ".github"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 300
    built = python("-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    with tarfile.open(*tmp_path.glob("*.tar.gz")) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert set(files) - packed == set()
