"""The bill of materials and the check of licences: offline, and of what clipmerge really needs."""

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
    assert dependencies.refused(dependencies.needed("clipmerge", frozenset({"demo", "jobs", "open-clip"}))) == {}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        *(("MIT", True), ("ISC License (ISCL)", True), ("MPL-2.0 AND MIT", True)),
        *(("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSL-1.0", True), ("GPL-3.0-only OR MIT", True)),
        *(("GNU Lesser General Public License v3 (LGPLv3)", True), ("LicenseRef-NVIDIA-Proprietary", True)),
        *(("", False), ("Commercial", False), ("MIT AND GPL-3.0-only", False), ("Use is not permitted", False)),
        *(("Miscellaneous", False), ("GNU Affero General Public License v3", False), ("AGPL-3.0", False)),
        *(("MIT, for non-commercial use", False), ("MIT License, GNU General Public License v2 (GPLv2)", False)),
    ],
)
def test_a_licence_is_allowed_by_its_name_and_with_all_that_joins_it(text: str, allowed: bool) -> None:
    assert dependencies.is_allowed(text) is allowed
