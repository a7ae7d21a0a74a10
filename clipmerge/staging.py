"""The output folder's place: staged beside it, synced, then renamed, so it is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipmerge.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: stale stages are left for the user to delete
    fcntl = None  # type: ignore[assignment]

#: The record that every output folder holds, and by which one is known.
RECORD = "clipmerge.json"


def check_output(output: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output that would destroy something, before any work is done.

    Args:
        output: The folder to be written.
        overwrite: Whether an earlier output may be replaced.
        inputs: Folders of the checkpoints.

    Raises:
        OutputError: If the folder exists and may not be replaced, or holds an input.
    """
    target = output.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents:
            raise OutputError(f"{output}: holds the checkpoint {folder}; choose another --output")
    if not (output.exists() or output.is_symlink()):
        return
    if not overwrite:
        raise OutputError(f"{output}: exists already; choose another --output, or pass --overwrite to replace it")
    if not (output / RECORD).is_file():
        raise OutputError(
            f"{output}: was not written by clipmerge (it holds no {RECORD}), so --overwrite leaves it alone; "
            "remove it yourself"
        )


@contextlib.contextmanager
def staged(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into, and move it to ``output`` when the block ends well.

    Whatever ends the process, ``output`` is absent, the old one, or the new one whole. What a killed run left
    beside it is removed by the next.

    Args:
        output: Where the folder ends up; its parents are made.
        overwrite: Whether an earlier output is replaced.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If the place cannot be written, or the disk is full.
    """
    parent = output.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(parent, output)
        stage = Path(tempfile.mkdtemp(prefix=stage_prefix(output), dir=parent))
    except OSError as error:
        raise explain(output, error) from None
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, stage, ignore_errors=True)
        lock = cleanup.enter_context((stage / "lock").open("wb"))
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = stage / "new"
        try:
            folder.mkdir()
            yield folder
            _sync(folder)
            _move_in(folder, stage / "old", output, overwrite=overwrite)
        except OSError as error:
            raise explain(output, error) from None


def stage_prefix(output: Path) -> str:
    """Start of the names of the hidden folders that ``output`` is staged in."""
    return f".{output.name}.clipmerge-"


def _clear_stale(parent: Path, output: Path) -> None:
    """Remove stages whose process is gone (its lock is free), giving back an output they had set aside."""
    if fcntl is None:
        return
    for stage in parent.glob(f"{stage_prefix(output)}*"):
        with contextlib.suppress(OSError), (stage / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (stage / "old").exists() and not output.exists():
                (stage / "old").rename(output)
            shutil.rmtree(stage, ignore_errors=True)


def _move_in(folder: Path, aside: Path, output: Path, *, overwrite: bool) -> None:
    if output.exists():
        if not overwrite:
            raise OutputError(f"{output}: appeared while the merge ran; choose another --output")
        output.rename(aside)
    folder.rename(output)
    _sync_folder(output.resolve().parent)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def explain(output: Path, error: OSError) -> OutputError:
    """Turn the system's refusal into one line.

    Args:
        output: What was being written.
        error: What the system said.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{output}: the disk is full; nothing was left behind, free some space and run again")
    return OutputError(f"{output}: cannot be written ({error.strerror or error}); nothing was left behind")
