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
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from clipmerge.errors import OutputError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where the user deletes stale stages
    fcntl = None  # type: ignore[assignment]

#: The record in every output folder, which identifies it.
RECORD = "clipmerge.json"
#: Folder in an output for a plan whose learned coefficients do not fit into the record.
PLAN_FOLDER = "plan"
_SECONDS_TO_LOCK = 60


def refuse_existing(output: Path, record: str = RECORD, *, overwrite: bool) -> None:
    """Refuse to replace a folder without `overwrite`, or one that the same command, whose record
    has this name, did not write. An empty folder may be replaced.
    """
    if not (output.exists() or output.is_symlink()):
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    if not (output / record).is_file():
        raise OutputError(
            f"{output}: already exists and was not written by this command (it holds no {record});"
            " choose another output, or remove it yourself"
        )
    if not overwrite:
        raise OutputError(
            f"{output}: already exists; choose another output, or pass `overwrite=True` to"
            " replace it"
        )


def staged(
    output: Path, record: str = RECORD, *, overwrite: bool = False
) -> AbstractContextManager[Path]:
    """Yield a folder to write into, and move it to ``output`` if the block succeeds.

    However the process ends, ``output`` is absent, the old one, or the complete new one. Stages
    left by a killed run are removed by the next run with the same output.
    """
    target = output.resolve()  # a link stays a link: its target is replaced

    def move(folder: Path) -> None:
        refuse_existing(target, record, overwrite=overwrite)  # another process may have been faster
        aside = folder.with_name("old")
        if target.exists():
            target.rename(aside)
        try:
            folder.rename(target)
        except BaseException:
            if aside.exists() and not target.exists():
                aside.rename(target)
            raise

    return _stage(output, target, move)


def staged_files(output: Path) -> AbstractContextManager[Path]:
    """Yield a folder to write files into; they are synced and moved beside ``output`` if the block
    succeeds.
    """
    target = output.resolve()

    def move(folder: Path) -> None:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.parent / file.name)

    return _stage(output, target, move)


@contextlib.contextmanager
def _stage(output: Path, target: Path, move: Callable[[Path], None]) -> Iterator[Path]:
    """Yield ``new`` in a hidden, locked folder beside the target, sync and move it; system errors
    are explained.
    """
    with _explained(output), contextlib.ExitStack() as cleanup:
        with defer_signals():
            cleanup.enter_context(_create_parents(target.parent))
            _clear_stale(target)
            stage = Path(tempfile.mkdtemp(prefix=_stage_prefix(target), dir=target.parent))
            cleanup.callback(_remove, stage)
        lock = cleanup.enter_context((stage / "lock").open("wb"))
        if fcntl:  # pragma: no branch - absent on Windows
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (stage / "new").mkdir()
        yield stage / "new"
        for path in (*(stage / "new").rglob("*"), stage / "new"):
            _sync(path)
        with defer_signals():
            move(stage / "new")
        _sync(target.parent)


@contextlib.contextmanager
def _explained(output: Path) -> Iterator[None]:
    """Turn a system error into one line."""
    try:
        yield
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full"
        raise OutputError(f"{output}: {what}; nothing was left behind") from None


def _remove(stage: Path) -> None:
    with defer_signals():  # users press Ctrl-C twice
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM during a block that must not be interrupted; the first one is sent
    again after it.
    """
    # only the main thread is interrupted
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: not Python's
    ours = {number: handler for number, handler in handlers.items() if handler is not None}
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
def _create_parents(folder: Path) -> Iterator[None]:
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
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return f".{target.name[:40]}-{digest}.clipmerge-"


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


def _sync(path: Path) -> None:
    # some file systems cannot sync a folder
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
