"""Output staged beside its place, synced, then renamed, so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

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
# By these an output of clipmerge is known, and one from another.
_MARKERS = (RECORD, "conversion.json", "sweep.json")
_Identity = tuple[tuple[int, int, int, int] | None, ...]
# Outputs in their place: a stopped command tells which they are. Set while signals are held back.
_completed: list[Path] = []


def completed() -> tuple[Path, ...]:
    """Outputs that this process has put in their place since `forget_completed`, and that still are there."""
    return tuple(path for path in _completed if path.exists())


def forget_completed() -> None:
    """Start a command: output that an earlier command in this process wrote is not its own."""
    _completed.clear()
    _checked.clear()


# What stood at an output's place when it was checked; only that is replaced.
_checked: dict[Path, _Identity] = {}


def remember_checked(*outputs: Path) -> None:
    """Remember what stands at places that were found to be free, or replaceable: only that will be replaced.

    Args:
        outputs: Folders or files to be written.
    """
    _checked.update({output.resolve(): _identity(output) for output in outputs})


def _identity(path: Path) -> _Identity:
    """Tell a folder or file from another that came to its place, by itself and by the records in it."""
    return tuple(_status(place) for place in (path, *(path / name for name in _MARKERS)))


def _status(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    is_folder = stat.S_ISDIR(found.st_mode)  # whose size and time change with what else is put there
    return found.st_dev, found.st_ino, 0 if is_folder else found.st_size, 0 if is_folder else found.st_mtime_ns


@contextlib.contextmanager
def staged(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into, and move it to ``output`` when the block ends well.

    Whatever ends the process, ``output`` is absent, the old one, or the new one whole. Stages that a killed run left
    beside it is removed by the next.

    Args:
        output: Where the folder ends up; its parents are made.
        overwrite: Whether an earlier output is replaced.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If the place cannot be written, or the disk is full.
    """
    target = output.resolve()  # a link stays a link: the folder it leads to is replaced
    expected = _checked.pop(target, None) or _identity(target)
    with _stage(output, target) as stage:
        folder = stage / "new"
        folder.mkdir()
        yield folder
        _sync(folder)
        with _undisturbed():
            _move_in(folder, stage / "old", target, expected, overwrite=overwrite)
            _completed.append(output)
        _sync_folder(target.parent)


def refuse_link(output: Path) -> None:
    """Refuse a link as an output file: a plan's tensors lie beside it and are found by its path.

    Raises:
        OutputError: If it is a link.
    """
    if output.is_symlink():
        raise OutputError(f"{output}: is a link to {output.readlink()}; give the file itself as --output")


@contextlib.contextmanager
def staged_files(output: Path) -> Iterator[Path]:
    """Give a folder to write files into; they are synced and moved beside ``output`` when the block ends well.

    Args:
        output: The file that is moved last; the others in the folder keep their names too.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If it is a link, the place cannot be written, or the disk is full.
    """
    refuse_link(output)
    target = output.resolve()
    expected = {place: known for place, known in list(_checked.items()) if place.parent == target.parent}
    for place in expected:
        del _checked[place]
    expected.setdefault(target, _identity(target))
    with _stage(output, target) as stage:
        folder = stage / "new"
        folder.mkdir()
        yield folder
        _sync(folder)
        with _undisturbed():
            files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
            for place in (target.parent / file.name for file in files):
                _require_same(place, expected.get(place, _identity(place)))
            for file in files:
                file.replace(target.parent / file.name)
            _completed.append(output)
        _sync_folder(target.parent)


@contextlib.contextmanager
def _stage(output: Path, target: Path) -> Iterator[Path]:
    """A hidden, locked folder beside the target, gone when the block ends; errors of the system explained."""
    left: list[Path] = []
    with contextlib.ExitStack() as cleanup:
        try:
            with _undisturbed():
                cleanup.enter_context(_parents(target.parent))
                _clear_stale(target)
                parent = cleanup.enter_context(_opened(target.parent))
                stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(target), dir=target.parent))
                cleanup.callback(_remove, stage, parent, left)
            lock = cleanup.enter_context((stage / "lock").open("wb"))
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stage
        except OSError as error:
            with contextlib.suppress(OSError):  # first, so that the line is true
                cleanup.__exit__(type(error), error, error.__traceback__)
            raise explain(output, error, left=left) from None


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Hold a folder by what it is, not by its path: somebody may rename it or one around it."""
    if os.name == "nt":
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(stage: Path, parent: int | None, left: list[Path]) -> None:
    with _undisturbed():  # people press Ctrl-C twice, and are told that nothing was left behind
        if parent is None:
            shutil.rmtree(stage, ignore_errors=True)
        else:
            shutil.rmtree(stage.name, ignore_errors=True, dir_fd=parent)
        if stage.exists():
            left.append(stage)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while a block may not be left half done; the first that came is sent again."""
    if threading.current_thread() is not threading.main_thread():  # only the main one is interrupted
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if handler is not None}  # None: not Python's
    try:
        for number in ours:
            signal.signal(number, lambda number, _frame: held.append(number))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and its parents, and remove those that were made if the block fails."""
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


def _move_in(folder: Path, aside: Path, target: Path, expected: _Identity, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: appeared while the merge ran; choose another --output")
    _require_same(target, expected)
    try:
        if target.exists():
            target.rename(aside)
            _require_same(aside, expected, target)  # somebody may have been quicker just now
        folder.rename(target)
    except BaseException as error:
        if aside.exists():
            _give_back(aside, target, error)
        raise


def _require_same(place: Path, expected: _Identity, shown: Path | None = None) -> None:
    if _identity(place) != expected:
        happened = "appeared" if expected[0] is None else "was replaced or changed by somebody else"
        raise OutputError(f"{shown or place}: {happened} while this ran, and was left alone; choose another --output")


def _give_back(aside: Path, target: Path, error: BaseException) -> None:
    """Put an output back that was set aside; beside its place where that is taken by now."""
    place = target if not target.exists() else target.with_name(f"{target.name}.replaced-{os.getpid()}")
    aside.rename(place)
    if place != target:
        error.add_note(f"the earlier output is now {place}")


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


def explain(output: Path, error: OSError, *, left: Iterable[Path] = ()) -> OutputError:
    """Turn the system's refusal into one line.

    Args:
        output: The output being written.
        error: The system's error.
        left: What could not be removed.
    """
    state = ", ".join([f"{path} was left behind, remove it" for path in left] or ["nothing was left behind"])
    state = "; ".join([state, *getattr(error, "__notes__", [])])
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{output}: the disk is full; {state}, free some space and run again")
    return OutputError(f"{output}: cannot be written ({error.strerror or error}); {state}")
