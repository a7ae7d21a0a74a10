"""Refuse an output that would destroy something or cannot be written, before any work is done."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import OutputError, shorten
from clipmerge.files.staging import PLAN_FOLDER, RECORD, refuse_existing
from clipmerge.planning.plan import tensors_path
from clipmerge.types import Json

# What commands write beside the files that their records list, and what systems leave in a folder.
_WRITTEN = frozenset(
    {
        *(PLAN_FOLDER, "README.md", "report.html", "path.png", "examples.png"),
        *("sweep.html", "curve.png", "correct.safetensors", ".cache", ".DS_Store"),
    }
)


def check_output(
    output: Path,
    *,
    overwrite: bool,
    inputs: Iterable[Path] = (),
    read: Iterable[Path] = (),
    record: str = RECORD,
) -> None:
    """Refuse a folder that may not be written or replaced.

    Args:
        output: The folder.
        overwrite: Whether an earlier output of the same command may be replaced.
        inputs: Files and folders of the checkpoints, which it must not hold.
        read: Other files and folders that are read: it may not lie in them either.
        record: Name of the record that the command writes.
    """
    try:
        target = output.resolve()
        output.exists()
    except (OSError, RuntimeError) as error:  # a circle of links, until Python 3.13
        raise OutputError(f"{output}: cannot be written ({error})") from None
    read = [path.resolve() for path in read]
    for path in (*(path.resolve() for path in inputs), *read):
        if target == path or target in path.parents:
            raise OutputError(
                f"{output}: holds {path}, which this command reads; choose another output"
            )
    for path in read:  # the next command would read the output as another class
        if path.is_dir() and path in target.parents:
            raise OutputError(
                f"{output}: lies inside {path}, which this command reads as images; choose another"
                " output"
            )
    _require_writable_parent(output)
    refuse_existing(output, record, overwrite=overwrite)
    files = _read_object(output / record).get("files")
    written = {record, *_WRITTEN, *(files if isinstance(files, dict) else ())}
    there = {path.name for path in output.iterdir()} if output.is_dir() else set[str]()
    if own := sorted(there - written):
        raise OutputError(
            f"{output}: also holds {shorten(own, 3)}, which this command did not write, so"
            " `overwrite=True` leaves it alone; move that elsewhere, or remove the folder yourself"
        )


def check_output_file(output: Path, *, overwrite: bool) -> None:
    """Refuse a plan's file that may not be written or replaced."""
    if output.is_dir() or output.suffix == ".safetensors":
        raise OutputError(
            f"{output}: a plan is a JSON file; choose another output, such as plan.json"
        )
    _require_writable_parent(output)
    beside = tensors_path(output)
    is_plan = str(_read_object(output).get("format")).startswith("clipmerge-plan/")
    for file in (output, beside):
        if not (file.exists() or file.is_symlink()):
            continue
        if not overwrite:
            raise OutputError(
                f"{file}: already exists; choose another output, or pass `overwrite=True` to"
                " replace it"
            )
        if not is_plan or not file.is_file() or file.is_symlink():
            raise OutputError(
                f"{file}: was not written as a plan by clipmerge, so `overwrite=True` leaves it"
                " alone; choose another output"
            )


def _read_object(path: Path) -> Json:
    """A JSON object; an empty one if there is none at this path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _require_writable_parent(output: Path) -> None:
    existing = next(parent for parent in output.resolve().parents if parent.exists())
    if not existing.is_dir():
        raise OutputError(
            f"{output}: cannot be created because {existing} is a file; choose another output"
        )
    try:  # a folder of the system, such as /proc, claims to be writable
        Path(tempfile.mkdtemp(prefix=".clipmerge-", dir=existing)).rmdir()
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be created in {existing} ({error.strerror or error}); choose another"
            " output"
        ) from None
