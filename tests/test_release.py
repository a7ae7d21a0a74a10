"""A release needs one version and a complete source distribution."""

import tomllib

import yaml

from clipmerge import __version__
from tests.support.command import ROOT


def test_the_version_is_in_one_place_and_the_citation_has_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
