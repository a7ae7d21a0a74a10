"""How a command ends: exit codes, one line per error, and signals."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from clipmerge.cli._signals import HOW, raising_signals, standing
from clipmerge.config import with_flags
from clipmerge.distributed import is_main_process
from clipmerge.errors import ClipmergeError, Terminated, printable

P = ParamSpec("P")
R = TypeVar("R")

DEBUG = "CLIPMERGE_DEBUG"
#: Called before an error is printed: a progress bar must neither remain on the terminal nor be
#: drawn over the error.
before_the_error: list[Callable[[], None]] = []
# When one process fails, a launcher ends the others within 0.1 s (older launchers: 5 s).
SECONDS_FOR_THE_MAIN_PROCESS = 10.0
# A file with this name tells that a process of a run has said how it ended; all others end within
# this time.
_SIGN = "clipmerge-ended-"
SECONDS_OF_A_SIGN = 60.0


class Unprintable(Exception):
    """Standard output cannot be written; earlier results of the command stand."""


def reporting_early_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Like `reporting_errors`, for a function that runs before a command: when it ends, nothing has
    been done yet.
    """
    return reporting_errors(function, done=())


def reporting_errors(
    command: Callable[P, R], *, done: Iterable[str] = ("the command was done",)
) -> Callable[P, R]:
    """Turn exceptions of a command into one line on stderr and an exit code, without a traceback.

    ``CLIPMERGE_DEBUG=1`` shows the traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        from clipmerge.files.staging import forget_completed

        forget_completed()
        standing.clear()
        try:
            with raising_signals():
                result = command(*args, **kwargs)
                with printing():
                    pass
                standing[:] = _complete_outputs() or done
                return result
        except ClipmergeError as error:
            wait_for_main_process()
            with _print_once_per_host(error.exit_code):
                fail(str(error), error.exit_code)
        except (KeyboardInterrupt, Terminated) as error:
            _fail_stopped(error)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            _fail_unexpectedly(error)

    return wrapper


def wait_for_main_process() -> None:
    """In all but the main process, wait before reporting an error: the launcher ends it once the
    main one reported it.

    Until processes measure together they all find the same errors.
    """
    if _repeats_main_process():
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)


def processes_have_joined() -> bool:
    """Whether the processes of this run have joined through torch."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and bool(distributed.is_initialized())
    )


def _repeats_main_process() -> bool:
    return not is_main_process() and not processes_have_joined()


def _fail_stopped(error: BaseException) -> NoReturn:
    """End after Ctrl-C or SIGTERM, and say which outputs exist."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    if number == signal.SIGTERM and _repeats_main_process():
        # the launcher ends this process because another one failed and reported its error
        raise SystemExit(143)
    with _print_once_per_host(128 + number):
        fail(
            "; ".join([HOW[number], *(_complete_outputs(error) or ["nothing was left behind"])]),
            128 + number,
        )


@contextlib.contextmanager
def _print_once_per_host(code: int) -> Iterator[None]:
    """Run this block in one of the processes of a run on this machine that end together; the others
    exit silently.

    Each adds a byte to a file, and the last one removes it. Those that wait for another one come
    when that has ended.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes == 1 or not processes_have_joined():
        yield
        return
    import tempfile  # three milliseconds that `--help` saves

    sign = Path(tempfile.gettempdir()) / f"{_SIGN}{os.getppid()}-{os.environ.get('MASTER_PORT')}"
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm and the launcher both send it
    arrival = 1
    for old in sign.parent.glob(f"{_SIGN}*"):  # of runs of which a process was killed
        with contextlib.suppress(OSError):  # another process removes it too
            if time.time() - old.stat().st_mtime > SECONDS_OF_A_SIGN:
                old.unlink()
    with contextlib.suppress(OSError):  # else there is no folder to leave a sign in
        with sign.open("ab", buffering=0) as file:
            file.write(b".")
            arrival = file.tell()
        if arrival >= processes:
            sign.unlink(missing_ok=True)
    try:
        if arrival > 1:
            raise SystemExit(code)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complete_outputs(error: BaseException | None = None) -> list[str]:
    from clipmerge.files.staging import completed_outputs

    return [
        *(f"{path} is complete" for path in completed_outputs()),
        *getattr(error, "__notes__", []),
    ]


def _fail_unexpectedly(error: Exception) -> NoReturn:
    if os.environ.get(DEBUG):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Unprintable):
        parts = [text, *_complete_outputs(error)]
    elif isinstance(error, OSError):
        parts = [_describe_os_error(error), *_complete_outputs(error)]
    else:
        kind = f"clipmerge failed unexpectedly ({type(error).__name__})"
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            kind = "out of memory (fewer --images-at-once, or a smaller --batch-size, need less)"
        parts = [f"{kind}: {text[:300]}", *_complete_outputs(error), f"set {DEBUG}=1 to see where"]
    fail("; ".join(parts), 1)


def _describe_os_error(error: OSError) -> str:
    """Name the file or folder that the system refused, and the reason, so that the user can fix
    it.
    """
    reason = error.strerror or str(error) or type(error).__name__
    try:
        Path.cwd()
    except OSError:  # pragma: no cover - tested, but coverage can write nothing in such a folder
        return (
            f"the working folder is gone or cannot be read ({reason}); go to another one and run"
            " again"
        )
    subject = (
        f"{os.fsdecode(error.filename)}: "
        if isinstance(error.filename, str | bytes)
        else "the system refused: "
    )
    return f"{subject}{reason}; check that it is there and that you may read or write it"


def prepare_streams() -> None:
    """Make standard output accept every character in any encoding, and make sure that both streams
    exist.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, TextIOWrapper):  # stderr does so already
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Flush everything that this block prints before it ends."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # otherwise the interpreter tries again at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unprintable(
            f"standard output: cannot be written ({error.strerror or error})"
        ) from None


def echo(text: str) -> None:
    """Print a text on standard output; raises what `printing` raises."""
    with printing():
        sys.stdout.write(text + "\n")


def fail(message: str, code: int) -> NoReturn:
    """Print an error as one line on stderr, broken between words if it is a terminal, and exit."""
    while before_the_error:
        before_the_error.pop()()
    if os.environ.get(DEBUG) and sys.exc_info()[1] is not None and code == 1:
        raise
    text = printable(with_flags(" ".join(message.split())))
    line = f"error: {text}"
    if _asks_for_json(sys.argv[1:]):
        import json

        line = json.dumps({"error": text, "exit_code": code})
    elif sys.stderr.isatty():
        import shutil
        import textwrap

        width = max(20, shutil.get_terminal_size().columns)
        line = "\n".join(textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False))
    sys.stderr.write(f"{line}\n")
    raise SystemExit(code)


def _asks_for_json(words: list[str]) -> bool:
    """Whether the command line asks for JSON, also where its flags cannot be read."""
    in_two_words = ("--format", "json") in itertools.pairwise(words)
    return in_two_words or bool({"--json", "--format=json"} & {*words})
