"""Refuse an output that would destroy something or cannot be written, before any work is done."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from clipmerge.errors import CheckpointError, OutputError, shorten
from clipmerge.files.reading import Unreadable, read_json, refusing
from clipmerge.files.safetensors import read_header
from clipmerge.files.staging import PLAN_FOLDER, RECORD, refuse_existing, refuse_link
from clipmerge.planning.plan import COEFFICIENTS, SCORES, tensors_path

# What commands write beside the files that their records list, and what others leave in a folder.
_WRITTEN = frozenset(
    {
        *(PLAN_FOLDER, "README.md", "report.html", "path.png", "examples.png"),
        *("sweep.html", "sweep.csv", "curve.png", "curve.svg", "curve.pdf", "correct.safetensors"),
        *(".cache", ".DS_Store"),
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
    """Refuse an output that would destroy something or cannot be written, before any work is
    done.
    """
    _require_resolvable(output)
    read = list(read)
    for path in (*inputs, *read):
        if _contains(output, path):
            raise OutputError(
                f"{output}: holds {path}, which this command reads; choose another output"
            )
    # a link in the folder is an entry of it, regardless of its target
    locations = (output.resolve(), output.parent.resolve() / output.name)
    for path in read:  # the next command would read the output as another class
        if path.is_dir() and any(path.resolve() in location.parents for location in locations):
            raise OutputError(
                f"{output}: lies inside {path}, which this command reads as images; choose another"
                " output"
            )
    _require_writable_parent(output)
    refuse_existing(output, record, overwrite=overwrite)
    if (output / record).is_file():
        _refuse_own_files(output, record)


def _refuse_own_files(output: Path, record: str) -> None:
    """Refuse to replace an earlier output in which the user has put files."""
    with refusing(OutputError, f"{output / record}: cannot be read"):
        data = read_json(output / record)
    files = data.get("files") if isinstance(data, dict) else None
    written = {record, *_WRITTEN, *(files if isinstance(files, dict) else ())}
    if own := sorted({path.name for path in output.iterdir()} - written):
        raise OutputError(
            f"{output}: also holds {shorten(own, 3)}, which this command did not write, so"
            " `overwrite=True` leaves it alone; move that elsewhere, or remove the folder yourself"
        )


def _require_resolvable(output: Path) -> None:
    """Refuse links in a circle; `resolve` raises a RuntimeError for them until Python 3.13."""
    try:
        output.resolve()
        if output.is_symlink():
            output.stat()
    except (FileNotFoundError, PermissionError):  # a link to nothing, or told where it is written
        return
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise OutputError(f"{output}: cannot be written ({error.strerror})") from None
        raise OutputError(
            f"{output}: is a link that leads back to itself; remove it, or choose another output"
        ) from None


def _contains(output: Path, path: Path) -> bool:
    target = output.resolve()
    # a link in the folder would be removed with it, though not its target
    locations = (path.resolve(), path.parent.resolve() / path.name)
    return any(target == location or target in location.parents for location in locations)


def check_output_file(output: Path, *, overwrite: bool) -> None:
    """Refuse an output file of a plan that would destroy something or cannot be written, before any
    work is done.
    """
    beside = tensors_path(output)
    if output.is_dir() or output.suffix == ".safetensors":
        raise OutputError(
            f"{output}: a plan is a JSON file; choose another output, such as plan.json"
        )
    refuse_link(output)
    _require_writable_parent(output)
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output}: already exists; choose another output, or pass `overwrite=True` to"
            " replace it"
        )
    if output.exists() and not _is_plan(output):
        raise OutputError(
            f"{output}: is not a plan written by clipmerge, so `overwrite=True` leaves it alone;"
            " choose another output"
        )
    replaceable = output.exists() and not beside.is_symlink() and _holds_plan_tensors(beside)
    if (beside.exists() or beside.is_symlink()) and not replaceable:
        raise OutputError(
            f"{beside}: is in the way of the tensors that go beside the plan; choose another output"
        )


def _is_plan(path: Path) -> bool:
    if not path.is_file():  # reading a pipe would block
        return False
    try:
        content = read_json(path)
    except Unreadable:
        return False
    return isinstance(content, dict) and str(content.get("format")).startswith("clipmerge-plan/")


def _holds_plan_tensors(path: Path) -> bool:
    try:
        names = list(read_header(path)) if path.is_file() else []
    except CheckpointError:
        return False
    return bool(names) and all(name.startswith((SCORES, COEFFICIENTS)) for name in names)


def _require_writable_parent(output: Path) -> None:
    target = output.resolve()
    existing = next((parent for parent in target.parents if os.path.exists(parent)), target)  # noqa: PTH110 - Path's raises
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
