"""The bill of materials and the check of licences: offline, and of what clipmerge really needs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import dependencies

SCRIPT = Path(__file__).parents[1] / "scripts" / "dependencies.py"


def installed() -> bool:
    try:
        return bool(metadata.distribution("clipmerge"))
    except metadata.PackageNotFoundError:
        return False


needs_installation = pytest.mark.skipif(not installed(), reason="clipmerge is not installed, only on the path")


@needs_installation
def test_the_bill_names_what_is_needed_and_nothing_else() -> None:
    run = subprocess.run([sys.executable, SCRIPT, "sbom"], capture_output=True, text=True, check=True)
    bill = json.loads(run.stdout)
    names = {component["name"] for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert {"torch", "huggingface-hub", "pydantic", "pydantic-core"} <= names
    assert not {"clipmerge", "pytest", "ruff"} & names
    assert all(metadata.version(component["name"]) == component["version"] for component in bill["components"])


@needs_installation
def test_every_licence_is_allowed() -> None:
    assert dependencies.refused(dependencies.needed("clipmerge", frozenset({"demo", "open-clip"}))) == {}


def test_a_licence_that_is_not_in_the_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"pytest": metadata.distribution("pytest")}
    assert dependencies.refused(packages) == {}
    monkeypatch.setitem(dependencies.BY_HAND, "pytest", "Commercial")
    assert dependencies.refused(packages) == {"pytest": "Commercial"}
