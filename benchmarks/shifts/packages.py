"""Packages of the npm registry, downloaded by name; none of their content is kept in the
repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipmerge.errors import DataError


@dataclass(frozen=True)
class Package:
    """The archive of one package: of its thousands of files, some hundred are read.

    Attributes:
        archive: A gzipped tar file.
    """

    archive: Path

    @cached_property
    def names(self) -> frozenset[str]:
        """The files that it holds, by their path in the package."""
        with tarfile.open(self.archive) as opened:
            return frozenset(
                member.name.removeprefix("package/") for member in opened if member.isfile()
            )

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """Read some of its files."""
        wanted, found = {f"package/{name}": name for name in names}, {}
        with tarfile.open(self.archive) as opened:
            for member in opened:
                content = opened.extractfile(member) if member.name in wanted else None
                if content is not None:
                    found[wanted[member.name]] = content.read()
        return found


def fetch_packages(packages: Iterable[str], folder: Path) -> dict[str, Package]:
    """Download packages with `npm pack`, unless that was done before."""
    archives = {package: folder / f"{_file_name(package)}.tgz" for package in sorted(set(packages))}
    absent = [package for package, archive in archives.items() if not archive.is_file()]
    if absent:
        _fetch(absent, folder)
    return {package: Package(archive) for package, archive in archives.items()}


def _file_name(package: str) -> str:
    return re.sub(r"\W+", "-", package).strip("-")


def _fetch(packages: Sequence[str], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "the drawings come from npm packages, and there is no `npm`; install Node.js"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", "--silent", *packages]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        packed = {_file_name(archive.stem): archive for archive in Path(scratch).glob("*.tgz")}
        absent = {_file_name(package) for package in packages} - packed.keys()
        if done.returncode or absent:
            reason = (done.stderr.strip().splitlines() or [f"no archive of {', '.join(absent)}"])[
                -1
            ]
            raise DataError(
                f"{', '.join(packages)}: `npm pack` failed ({reason}); is the registry within"
                " reach?"
            )
        for name, archive in packed.items():
            archive.rename(folder / f"{name}.tgz")
