"""Refuse an output that would destroy something before any work is done; then write it beside its
place, sync it and rename it, so that it is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from clipmerge.errors import OutputError, shorten
from clipmerge.types import Json

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where the user deletes stale stages
    fcntl = None  # type: ignore[assignment]

#: The record in every output folder, which identifies it.
RECORD = "clipmerge.json"
#: Folder in an output for a plan whose learned coefficients do not fit into the record.
PLAN_FOLDER = "plan"
#: End of the name of a plan's tensors, in place of ``.json``.
TENSORS_SUFFIX = ".tensors.safetensors"
_SECONDS_TO_LOCK = 60
# What commands write beside the files that their records list, and what systems leave in a folder.
_WRITTEN = frozenset(
    {
        *(PLAN_FOLDER, "README.md", "report.html", "path.png", "examples.png"),
        *("sweep.html", "sweep.png", ".cache", ".DS_Store"),
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
    beside = output.with_suffix(TENSORS_SUFFIX)
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
