"""Write an output completely or not at all.

An error is raised before any work if an output would destroy something. The files are written
beside the final path, and renamed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clipmerge.errors import OutputError, shorten
from clipmerge.files import local_path, replace_bytes, split_part
from clipmerge.types import Json

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where two runs may disturb each other
    fcntl = None  # type: ignore[assignment]

#: The record in every output folder; a folder without it was not written by clipmerge.
RECORD = "clipmerge.json"
#: Folder in an output for a plan whose learned coefficients are too large for the record.
PLAN_FOLDER = "plan"
#: Suffix of the file of a plan's tensors, in place of ``.json``.
TENSORS_SUFFIX = ".tensors.safetensors"
# Files that commands write but their records do not list, and files of operating systems.
_WRITTEN = frozenset(
    {
        *(PLAN_FOLDER, "README.md", "report.html", "path.png", "examples.png"),
        *("sweep.html", "sweep.png", ".cache", ".DS_Store"),
    }
)


def check_output(
    output: Path, *, overwrite: bool, read: Iterable[Any] = (), record: str = RECORD
) -> None:
    """Raise an error if an output folder may not be written or replaced.

    Args:
        output: The folder.
        overwrite: Whether an earlier output of the same command may be replaced.
        read: Inputs of the command; the folder must hold none of their files and folders.
        record: Name of the record that the command writes, by which its outputs are known.
    """
    _require_writable_parent(output)
    target = output.resolve()
    if not target.exists():
        return
    # a new folder takes its place, and a shell in the old one would see nothing
    if target.samefile(os.curdir):
        raise OutputError(f"{output}: is the working folder; choose another output")
    for source in read:
        if isinstance(source, (str, os.PathLike)):  # not a model in memory
            _refuse_input(output, target, os.fspath(source))
    refuse_existing(target, record, overwrite=overwrite)
    _refuse_foreign(target, record)


def _require_writable_parent(output: Path) -> None:
    """Raise an error if the first folder above an output that exists may not be written to."""
    parents = output.resolve().parents
    existing = next(filter(Path.exists, parents), output)
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise OutputError(
            f"{output}: cannot be created, because {existing} is not a writable folder; choose"
            " another output"
        )


def _refuse_input(output: Path, target: Path, source: str) -> None:
    """Raise an error if an output folder contains an input of the command."""
    path = local_path(split_part(source)[0])
    links = filter(Path.is_symlink, path.glob("*"))  # such as weights in another folder
    for file in (path, *links):
        if file.resolve().is_relative_to(target):
            raise OutputError(
                f"{output}: holds {file}, which this command reads; choose another output"
            )


def refuse_existing(output: Path, record: str = RECORD, *, overwrite: bool) -> None:
    """Raise an error for an existing output, unless ``overwrite`` is set and it has this record.

    An empty folder may be replaced.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if not (output / record).is_file():
        raise OutputError(
            f"{output}: already exists and was not written by this command (it holds no {record});"
            " choose another output, or remove it yourself"
        )
    _require_overwrite(output, overwrite=overwrite)


def _require_overwrite(output: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(
            f"{output}: already exists; choose another output, or pass `overwrite=True` to"
            " replace it"
        )


def _refuse_foreign(output: Path, record: str) -> None:
    """Raise an error if a folder has files that its record does not list, because these are the
    user's.
    """
    listed = _read_json_object(output / record).get("files")
    written = {record, *_WRITTEN}
    if isinstance(listed, dict):
        written.update(listed)
    foreign = sorted(path.name for path in output.iterdir() if path.name not in written)
    if foreign:
        raise OutputError(
            f"{output}: also holds {shorten(foreign, 3)}, which this command did not write, so"
            " `overwrite=True` is refused; move these files elsewhere, or remove the folder"
            " yourself"
        )


def check_output_file(output: Path, *, overwrite: bool) -> None:
    """Raise an error if a plan cannot be written to this file, or may not replace it."""
    if output.is_dir() or output.suffix == ".safetensors":
        raise OutputError(
            f"{output}: a plan is a JSON file; choose another output, such as plan.json"
        )
    _require_writable_parent(output)
    format_name = str(_read_json_object(output).get("format"))
    for file in filter(Path.exists, (output, output.with_suffix(TENSORS_SUFFIX))):
        _require_overwrite(file, overwrite=overwrite)
        if not format_name.startswith("clipmerge-plan/"):
            raise OutputError(
                f"{file}: was not written as a plan by clipmerge, so `overwrite=True` is refused;"
                " choose another output"
            )


def _read_json_object(path: Path) -> Json:
    """Read a JSON object; empty if there is none at this path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def stage_output(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to write into, and move it to ``output`` if the block succeeds.

    However the process ends, ``output`` is absent, the old folder, or the complete new one. If a
    process is killed, the next one with the same output removes what is left.
    """
    target = output.resolve()  # a link stays a link: its target is replaced
    stage = target.with_name(f".{target.name}.clipmerge")
    new, old = stage / "new", stage / "old"
    made = [folder for folder in target.parents if not folder.exists()]
    with report_write_errors(output):
        stage.mkdir(parents=True, exist_ok=True)
        with (stage / "lock").open("wb") as lock:
            _lock_until_closed(lock.fileno(), output)
            try:
                if old.exists() and not target.exists():
                    old.rename(target)  # a run was killed between the renames of `_replace_folder`
                for left in (new, old):
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir()
                yield new
                if overwrite and target.exists():
                    _replace_folder(target, new, old)
                else:
                    new.rename(target)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
                with contextlib.suppress(OSError):  # those of an output are not empty
                    for folder in made:
                        folder.rmdir()


def _replace_folder(target: Path, new: Path, old: Path) -> None:
    """Replace a folder by a new one; if that fails, the old one comes back."""
    try:
        target.rename(old)
        new.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise


def _lock_until_closed(file: int, output: Path) -> None:
    """Lock an open file. Raise an error if another run has locked it. The lock ends with the
    process.
    """
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{output}: another run is writing it; choose another output") from None


def write_whole_file(file: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    with report_write_errors(file):
        replace_bytes(file, content)


@contextlib.contextmanager
def report_write_errors(output: Path) -> Iterator[None]:
    """Report an error of the file system in one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error.strerror or error}); nothing was left behind"
        ) from None
