"""The packages that clipmerge needs: their licences checked, and a bill of materials.

``python scripts/dependencies.py licences`` fails if an installed package that clipmerge needs has a
licence that is not in the list below. ``python scripts/dependencies.py sbom`` prints a bill of
materials in CycloneDX's JSON format. ``python scripts/dependencies.py audit`` asks pip-audit for
known faults; without it, or without a network, it says so and succeeds. Only ``audit`` uses the
network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Parts of licence texts that allow use and distribution beside Apache-2.0; weak copyleft of
#: unmodified libraries too.
ALLOWED = (
    "Apache",
    "BSD",
    "MIT",
    "ISC",
    "PSF",
    "Python Software Foundation",
    "HPND",
    "MPL",
    "Mozilla Public",
    "Zlib",
    "Unlicense",
    "CC0",
    "0BSD",
    "LGPL",
    "Lesser General Public",
    "Historical Permission",
    "NVIDIA",
    "Matplotlib",
    "BSL",
    "Boost",
    "CNRI",
    "LLVM",
)
#: Words that no part may contain, whatever else it names; NVIDIA's own licences are allowed by
#: name.
REFUSED = re.compile(
    r"\bA?GPL|Affero|(?<!Lesser )General Public|commercial|(?<!NVIDIA.)proprietary", re.IGNORECASE
)
#: Licences looked up by hand, for packages whose metadata name none.
BY_HAND: dict[str, str] = {
    "cuda-toolkit": "NVIDIA Proprietary Software"
}  # only names NVIDIA's packages of CUDA


def needed(root: str, extras: frozenset[str] = frozenset()) -> dict[str, metadata.Distribution]:
    """Find the installed packages that a package needs, directly or through others.

    Args:
        root: Name of the package.
        extras: Its extras that count.

    Returns:
        Distributions by name; those that are not installed on this system are left out.
    """
    found: dict[str, metadata.Distribution] = {}
    waiting = [(root, extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[canonicalize_name(name)] = distribution
        waiting += _requirements(distribution, wanted)
    return dict(sorted(found.items()))


def _requirements(
    distribution: metadata.Distribution, extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def licence(distribution: metadata.Distribution) -> str:
    """Read a package's licence from its metadata, in one line; empty if they name none."""
    told = distribution.metadata
    by_hand = BY_HAND.get(canonicalize_name(told["Name"]))
    classified = [
        text.rpartition(" :: ")[2]
        for text in told.get_all("Classifier", [])
        if text.startswith("License")
    ]
    text = (
        by_hand
        or told.get("License-Expression")
        or ", ".join(classified)
        or told.get("License")
        or ""
    )
    return " ".join(text.split())[:200]


def refused(distributions: dict[str, metadata.Distribution]) -> dict[str, str]:
    """Return the packages whose licence is not allowed, with that licence."""
    found = {name: licence(distribution) for name, distribution in distributions.items()}
    return {name: text for name, text in found.items() if not is_allowed(text)}


def is_allowed(text: str) -> bool:
    """Whether a licence is allowed: one of the parts joined by OR, with all parts that AND joins to
    it.

    Example:
        >>> licences = ("MIT AND BSD-3-Clause", "MIT AND GPL-3.0-only", "Use is not permitted")
        >>> tuple(is_allowed(licence) for licence in licences)
        (True, False, False)
    """
    return any(
        all(map(_is_allowed, re.split(r"\bAND\b|, ", either)))
        for either in re.split(r"\bOR\b", text)
    )


def _is_allowed(part: str) -> bool:
    named = re.search(rf"\b(?:{'|'.join(map(re.escape, ALLOWED))})(?![a-z])", part)
    return named is not None and not REFUSED.search(part)


def bill_of_materials(
    root: str, distributions: dict[str, metadata.Distribution]
) -> dict[str, object]:
    """Describe the packages in CycloneDX's format."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{distribution.version}",
            "name": name,
            "version": distribution.version,
            "purl": f"pkg:pypi/{name}@{distribution.version}",
            "licenses": [{"license": {"name": licence(distribution) or "unknown"}}],
        }
        for name, distribution in distributions.items()
        if name != root
    ]
    itself = distributions[root]
    reference = f"pkg:pypi/{root}@{itself.version}"
    digest = hashlib.sha256(json.dumps(components).encode()).hexdigest()
    serial = f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": root,
                "version": itself.version,
            }
        },
        "components": components,
        "dependencies": [
            {"ref": reference, "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }


def audit() -> int:
    """Ask pip-audit for known faults of the installed packages; return its exit code, or 0 if it is
    not available.
    """
    try:
        metadata.distribution("pip-audit")
    except metadata.PackageNotFoundError:
        print(
            "pip-audit is not installed: known faults were not looked for (pip install pip-audit)"
        )
        return 0
    run = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--skip-editable"],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and re.search(
        r"Connection|Timeout|resolve|Max retries|HTTPError|ServiceError", run.stderr
    ):
        print(
            "pip-audit reached no database: known faults were not looked for"
            f" ({run.stderr.strip()[-200:]})"
        )
        return 0
    print(run.stdout or run.stderr)
    return run.returncode


def main() -> int:
    """Run the command; return 1 if a licence is not allowed or a fault is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["licences", "sbom", "audit"])
    asked = parser.parse_args()
    if asked.what == "audit":
        return audit()
    distributions = needed("clipmerge", frozenset({"open-clip"}))
    if asked.what == "sbom":
        print(json.dumps(bill_of_materials("clipmerge", distributions), indent=2))
        return 0
    wrong = refused(distributions)
    for name, text in wrong.items():
        print(
            f"{name}: licence {text or 'not told'!r} is not in the list of scripts/dependencies.py"
        )
    print(f"{len(distributions)} packages, {len(wrong)} with a licence that is not allowed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
