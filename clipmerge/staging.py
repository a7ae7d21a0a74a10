"""The output's place: staged beside it, synced, then renamed, so it is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from clipmerge.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: stale stages are left for the user to delete
    fcntl = None  # type: ignore[assignment]

#: The record that every output folder holds, and by which one is known.
RECORD = "clipmerge.json"
#: Where an output folder keeps a plan whose learned coefficients cannot be told in the record.
PLAN_FOLDER = "plan"
_SECONDS_TO_LOCK = 60


def check_output(output: Path, *, overwrite: bool, inputs: Iterable[Path] = (), record: str = RECORD) -> None:
    """Refuse an output that would destroy something or cannot be made, before any work is done.

    Args:
        output: The folder to be written.
        overwrite: Whether an earlier output may be replaced.
        inputs: Folders of the checkpoints.
        record: The file by which an earlier output of the same kind is known.

    Raises:
        OutputError: If the folder exists and may not be replaced, holds an input, or its place is not writable.
    """
    target = output.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents:
            raise OutputError(f"{output}: holds the checkpoint {folder}; choose another --output")
    _check_place(output)
    if not (output.exists() or output.is_symlink()):
        return
    if not overwrite:
        raise OutputError(f"{output}: exists already; choose another --output, or pass --overwrite to replace it")
    if not (output / record).is_file():
        raise OutputError(
            f"{output}: was not written by clipmerge (it holds no {record}), so --overwrite leaves it alone; "
            "remove it yourself"
        )


def check_output_file(output: Path, beside: Path, *, overwrite: bool) -> None:
    """Refuse an output file that would destroy something or cannot be made, before any work is done.

    Args:
        output: The JSON file to be written.
        beside: The file that may come with it.
        overwrite: Whether both may be replaced.

    Raises:
        OutputError: If one exists and may not be replaced, or their place is not writable.
    """
    if output.is_dir() or output.suffix == beside.suffix:
        raise OutputError(f"{output}: a plan is a JSON file; choose another --output, such as plan.json")
    _check_place(output)
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; choose another --output, or pass --overwrite to replace it")
    if beside.exists() and not output.exists():
        raise OutputError(f"{beside}: is in the way of the tensors that go beside the plan; choose another --output")


def _check_place(output: Path) -> None:
    existing = next(folder for folder in output.resolve().parents if folder.exists())
    if not existing.is_dir():
        raise OutputError(f"{output}: cannot be made, {existing} is a file; choose another --output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: cannot be made, {existing} is not writable for you; choose another --output")


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
    target = output.resolve()  # a link stays a link: the folder it leads to is what is replaced
    with _stage(output, target) as stage:
        folder = stage / "new"
        folder.mkdir()
        yield folder
        _sync(folder)
        _move_in(folder, stage / "old", target, overwrite=overwrite)


@contextlib.contextmanager
def staged_files(output: Path) -> Iterator[Path]:
    """Give a folder to write files into; they are synced and moved beside ``output`` when the block ends well.

    Args:
        output: The file that is moved last; the others in the folder keep their names too.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If the place cannot be written, or the disk is full.
    """
    target = output.resolve()
    with _stage(output, target) as stage:
        folder = stage / "new"
        folder.mkdir()
        yield folder
        _sync(folder)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.parent / file.name)
        _sync_folder(target.parent)


@contextlib.contextmanager
def _stage(output: Path, target: Path) -> Iterator[Path]:
    """A hidden, locked folder beside the target, gone when the block ends; errors of the system explained."""
    with contextlib.ExitStack() as cleanup:
        try:
            with _undisturbed():
                cleanup.enter_context(_parents(target.parent))
                _clear_stale(target)
                stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(target), dir=target.parent))
                cleanup.callback(shutil.rmtree, stage, ignore_errors=True)
            lock = cleanup.enter_context((stage / "lock").open("wb"))
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stage
        except OSError as error:
            raise explain(output, error) from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until what the block made is in the hands of whoever takes it away again."""
    if threading.current_thread() is not threading.main_thread():  # only the main one is interrupted
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and its parents, and take away again what was made when the block fails."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: someone else uses it by now
            for each in made:
                each.rmdir()
        raise


def _stage_prefix(target: Path) -> str:
    # the hash keeps outputs apart whose names are long, or begin alike
    return f".{target.name[:40]}-{hashlib.sha256(target.name.encode()).hexdigest()[:8]}.clipmerge-"


def _clear_stale(target: Path) -> None:
    """Remove stages whose process is gone (its lock is free), giving back an output they had set aside."""
    if fcntl is None:
        return
    prefix = _stage_prefix(target)
    for stage in [each for each in target.parent.iterdir() if each.name.startswith(prefix)]:
        if not (stage / "lock").exists() and time.time() - stage.stat().st_mtime < _SECONDS_TO_LOCK:
            continue  # another run is just making it
        with contextlib.suppress(OSError), (stage / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (stage / "old").exists() and not target.exists():
                (stage / "old").rename(target)
            shutil.rmtree(stage, ignore_errors=True)


def _move_in(folder: Path, aside: Path, target: Path, *, overwrite: bool) -> None:
    if target.exists():
        if not overwrite:
            raise OutputError(f"{target}: appeared while the merge ran; choose another --output")
        target.rename(aside)
    try:
        folder.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    _sync_folder(target.parent)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
            continue
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
