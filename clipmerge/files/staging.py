"""Write output beside its place, sync it, then rename it, so that it is written completely or not
at all.
"""

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from clipmerge.errors import OutputError

try:
    import fcntl
except (
    ImportError
):  # pragma: no cover - Windows, where stale stages are left for the user to delete
    fcntl = None  # type: ignore[assignment]

#: The record in every output folder, which identifies it.
RECORD = "clipmerge.json"
#: Folder in an output for a plan whose learned coefficients do not fit into the record.
PLAN_FOLDER = "plan"
_SECONDS_TO_LOCK = 60
# Files that identify an output of clipmerge.
_MARKERS = (RECORD, "conversion.json", "sweep.json")
_Identity = tuple[tuple[int, int, int, int] | None, ...]
# Completed outputs, which a stopped command reports. Changed only while signals are blocked.
_completed: list[Path] = []


def completed() -> tuple[Path, ...]:
    """Outputs that this process has completed since `forget_completed` and that still exist."""
    return tuple(path for path in _completed if path.exists())


def forget_completed() -> None:
    """Start a new command, which does not report the output of earlier commands in this process."""
    _completed.clear()
    _checked.clear()


# Identity of the output that existed at the check; nothing else is replaced.
_checked: dict[Path, _Identity] = {}


def remember_checked(*outputs: Path) -> None:
    """Remember the present content of checked output places, so that nothing else is replaced."""
    _checked.update({output.resolve(): _identity(output) for output in outputs})


def _identity(path: Path) -> _Identity:
    """Identify a folder or file by its status and the records in it, to notice if another one takes
    its place.
    """
    found: list[tuple[int, int, int, int] | None] = []
    for location in (path, *(path / name for name in _MARKERS)):
        try:
            status = location.stat()
        except OSError:
            found.append(None)
            continue
        is_folder = stat.S_ISDIR(
            status.st_mode
        )  # a folder's size and time change when other files are added
        size, modified = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
        found.append((status.st_dev, status.st_ino, size, modified))
    return tuple(found)


def staged(output: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Yield a folder to write into, and move it to ``output`` if the block succeeds.

    However the process ends, ``output`` is absent, the old one, or the complete new one. Stages
    left by a killed run are removed by the next run with the same output: not every network disk
    shows the locks of other machines.
    """
    target = output.resolve()  # a link stays a link: its target is replaced
    expected = _checked.pop(target, None) or _identity(target)
    return _stage(
        output, target, partial(_move_in, target=target, expected=expected, overwrite=overwrite)
    )


def refuse_link(output: Path) -> None:
    """Refuse a link as an output file, because a plan's tensors are found beside its path."""
    if output.is_symlink():
        raise OutputError(
            f"{output}: is a link to {output.readlink()}; give the file itself as `output`"
        )


def staged_files(output: Path) -> AbstractContextManager[Path]:
    """Yield a folder to write files into; they are synced and moved beside ``output`` if the block
    succeeds.
    """
    refuse_link(output)
    target = output.resolve()
    expected = {target: _identity(target)}
    expected |= {
        location: _checked.pop(location)
        for location in list(_checked)
        if location.parent == target.parent
    }

    def move(folder: Path) -> None:
        files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
        for location in (target.parent / file.name for file in files):
            _require_same(location, expected.get(location, _identity(location)))
        for file in files:
            file.replace(target.parent / file.name)

    return _stage(output, target, move)


@contextlib.contextmanager
def _stage(output: Path, target: Path, move: Callable[[Path], None]) -> Iterator[Path]:
    """Yield ``new`` in a hidden, locked folder beside the target, sync and move it; system errors
    are explained.
    """
    left: list[Path] = []
    with contextlib.ExitStack() as cleanup:
        try:
            with defer_signals():
                cleanup.enter_context(_parents(target.parent))
                _clear_stale(target)
                stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(target), dir=target.parent))
                cleanup.callback(_remove, stage, left)
            lock = cleanup.enter_context((stage / "lock").open("wb"))
            if fcntl:  # pragma: no branch - absent on Windows
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (stage / "new").mkdir()
            yield stage / "new"
            for path in (*(stage / "new").rglob("*"), stage / "new"):
                _sync(path)
            with defer_signals():
                move(stage / "new")
                _completed.append(output)
            _sync(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # clean up first, so that the message is true
                cleanup.__exit__(type(error), error, error.__traceback__)
            raise explain(output, error, left=left) from None


def _remove(stage: Path, left: list[Path]) -> None:
    with (
        defer_signals()
    ):  # users press Ctrl-C twice, and the message promises that nothing was left behind
        shutil.rmtree(stage, ignore_errors=True)
        if stage.exists():
            left.append(stage)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM during a block that must not be interrupted; the first one is sent
    again after it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread is interrupted
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {
        number: handler for number, handler in handlers.items() if handler is not None
    }  # None: not Python's
    try:
        for number in ours:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; if the block fails, remove those that were created."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: another process uses it now
            for path in made:
                path.rmdir()
        raise


def _stage_prefix(target: Path) -> str:
    # the hash distinguishes outputs with long names or common beginnings
    return (
        f".{target.name[:40]}-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}.clipmerge-"
    )


def _clear_stale(target: Path) -> None:
    """Remove stages whose process is gone (their lock is free), and restore an output that they had
    set aside.
    """
    if fcntl is None:  # pragma: no cover - Windows
        return
    prefix = _stage_prefix(target)
    for stage in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
        if not (stage / "lock").exists() and time.time() - stage.stat().st_mtime < _SECONDS_TO_LOCK:
            continue  # another run is creating it right now
        with contextlib.suppress(OSError), (stage / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (stage / "old").exists() and not target.exists():
                (stage / "old").rename(target)
            shutil.rmtree(stage, ignore_errors=True)


def _move_in(folder: Path, target: Path, expected: _Identity, *, overwrite: bool) -> None:
    aside = folder.with_name("old")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: appeared while the merge ran; choose another `output`")
    _require_same(target, expected)
    try:
        if target.exists():
            target.rename(aside)
            _require_same(aside, expected, target)  # another process may have been faster
        folder.rename(target)
    except BaseException as error:
        if aside.exists():  # restore it, or put it beside its place if that is taken now
            location = (
                target
                if not target.exists()
                else target.with_name(f"{target.name}.replaced-{os.getpid()}")
            )
            aside.rename(location)
            if location != target:
                error.add_note(f"the earlier output is now {location}")
        raise


def _require_same(location: Path, expected: _Identity, shown: Path | None = None) -> None:
    if _identity(location) != expected:
        happened = (
            "appeared" if expected[0] is None else "was replaced or changed by another process"
        )
        raise OutputError(
            f"{shown or location}: {happened} while this ran, and was left alone; choose another"
            " `output`"
        )


def _sync(path: Path) -> None:
    # some file systems cannot sync a folder
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def explain(output: Path, error: OSError, *, left: Iterable[Path] = ()) -> OutputError:
    """Turn a system error into one line."""
    state = ", ".join(
        [f"{path} was left behind, remove it" for path in left] or ["nothing was left behind"]
    )
    state = "; ".join([state, *getattr(error, "__notes__", [])])
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{output}: the disk is full; {state}, free some space and run again")
    return OutputError(f"{output}: cannot be written ({error.strerror or error}); {state}")
