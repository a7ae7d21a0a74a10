"""`clipmerge cache`: list and remove what clipmerge keeps in the user's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from clipmerge.cli._options import command, command_group
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import OutputError, UsageError, did_you_mean
from clipmerge.files.paths import user_cache
from clipmerge.types import Json

cache_app = command_group("cache", "List and remove what clipmerge keeps in the user's cache.")
#: Folders of the cache, and what each holds.
_KINDS = {
    "learning": "unfinished learning, to go on after an interruption",
    "hashes": "sha256 of weights, so that large files are not read twice",
    "architectures": "configurations of OpenCLIP models given by --model",
    "demo": "models and images of the demo",
    "bench": "answers and plans of public suites",
    "releases": "weights that suites downloaded",
    "jobs": "logs of jobs",
}


@cache_app.command("list")
@command(verbose=False)
def list_cache(terminal: Terminal) -> None:
    """List what is kept, with its size."""
    record = {"folder": str(user_cache("")), "entries": _entries(), "removed": []}
    terminal.result(record, lambda: _listing(record))


@cache_app.command("clean")
@command(verbose=False)
def clean_cache(
    terminal: Terminal,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="What to remove; by default learning."),
    ] = None,
) -> None:
    """Remove what is kept; by default the states of unfinished learning."""
    names = names or ["learning"]
    for name in names:
        if name not in _KINDS:
            raise UsageError(
                f"{name}: not a part of the cache (parts:"
                f" {', '.join(_KINDS)}).{did_you_mean(name, _KINDS)}"
            )
    before = _entries()
    for name in names:
        folder = user_cache(name)
        if folder.is_symlink():
            raise OutputError(f"{folder}: is a link; remove it yourself")
        if folder.exists():
            shutil.rmtree(folder)
    removed = {name: before[name] for name in names if name in before}
    record = {"folder": str(user_cache("")), "entries": _entries(), "removed": list(removed)}
    terminal.result(record, lambda: _removal(removed))


def _removal(removed: dict[str, Json]) -> str:
    from rich.filesize import decimal

    if not removed:
        return "There was nothing to remove."
    freed = decimal(sum(entry["bytes"] for entry in removed.values()))
    return f"Removed {', '.join(removed)}: {freed}."


def _entries() -> dict[str, Json]:
    entries = {}
    for name, about in _KINDS.items():
        files = _files_in(user_cache(name))
        if files:
            size = sum(path.lstat().st_size for path in files)
            entries[name] = {"about": about, "files": len(files), "bytes": size}
    return entries


def _files_in(folder: Path) -> list[Path]:
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


def _listing(record: Json) -> Any:
    from rich.console import Group
    from rich.filesize import decimal
    from rich.text import Text

    from clipmerge.cli._console import table_of

    if not record["entries"]:
        return f"{record['folder']}: nothing is kept"
    table = table_of("part", "files", "size")
    for name, entry in record["entries"].items():
        table.add_row(name, f"{entry['files']:,}", decimal(entry["bytes"]))
    parts = [f"{name}: {entry['about']}" for name, entry in record["entries"].items()]
    return Group(table, Text(), *map(Text, parts), Text(record["folder"], style="dim"))
