"""What the command line prints, where, and how it ends: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from clipmerge.distributed import Terminated, is_main_process, termination
from clipmerge.errors import ClipmergeError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

P = ParamSpec("P")
R = TypeVar("R")

DEBUG = "CLIPMERGE_DEBUG"
_INTERRUPTED = "interrupted"
_ENDED = "ended from outside (SIGTERM; a launcher sends it to all processes of a run when one of them fails)"
# A launcher ends a run's other processes within a tenth of a second of the first that fails, or five on older ones.
_SECONDS_FOR_THE_MAIN_PROCESS = 10.0
_STAGES = {
    "read": "reading",
    "measure": "measuring",
    "plan": "deciding",
    "apply": "merging",
    "write": "writing",
    "publish": "publishing",
    "evaluate": "evaluating",
}


class Format(StrEnum):
    """How results are printed."""

    human = "human"
    json = "json"
    quiet = "quiet"


class Unprintable(Exception):
    """Standard output takes no more; what the command did before stands."""


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into one line on stderr and an exit code; never a traceback.

    ``CLIPMERGE_DEBUG=1`` lets the traceback through. An ``output`` among the flags may begin with ``~``.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        from clipmerge.files.staging import forget_completed

        forget_completed()
        try:
            with _interruptible(), termination():
                kwargs.update(_at_home(kwargs.get("output")))
                result = command(*args, **kwargs)
                with printing():
                    return result
        except ClipmergeError as error:
            leave_it_to_the_main_process()
            fail(str(error), error.exit_code)
        except (KeyboardInterrupt, Terminated) as error:
            _fail_stopped(error)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            _fail_unexpectedly(error)

    return wrapper


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise in this block, where something may have to be cleaned up; after it, it just ends the process.

    That is where the process began with `clipmerge.__main__`, whose own handler ends it at once. Elsewhere, and where
    Ctrl-C is ignored, nothing changes.
    """
    if getattr(signal.getsignal(signal.SIGINT), "__name__", None) != "end_before_any_command":
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _at_home(output: object) -> dict[str, Any]:
    """The flag with its home folder: a shell expands that in ``-o ~/x`` but not in ``--output=~/x``."""
    if not isinstance(output, Path) or not str(output).startswith("~"):
        return {}
    try:
        return {"output": output.expanduser()}
    except RuntimeError:
        raise UsageError(
            f"--output {output}: there is no user with the home folder {output.parts[0]}; for a folder that is called "
            "so, give the whole path"
        ) from None


def leave_it_to_the_main_process() -> None:
    """Wait in every other process of a run with an error that the main one most likely has as well.

    Before processes measure together they all find the same errors. The launcher ends this one as soon as the main
    process has said its own; only an error that the main process does not have is said here.
    """
    if _repeats_the_main_process():
        time.sleep(_SECONDS_FOR_THE_MAIN_PROCESS)


def _repeats_the_main_process() -> bool:
    distributed = sys.modules.get("torch.distributed")
    measuring = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return not is_main_process() and not measuring


@contextlib.contextmanager
def noting(text: str) -> Iterator[None]:
    """Have whatever stops this block say so too: something about the outside world that is true from here on.

    Args:
        text: A clause; it goes to the end of the line.
    """
    try:
        yield
    except BaseException as error:
        error.add_note(text)
        raise


def _fail_stopped(error: BaseException) -> NoReturn:
    """End as asked from outside, by Ctrl-C or SIGTERM, and say what is there."""
    if isinstance(error, Terminated) and _repeats_the_main_process():
        raise SystemExit(143)  # the launcher ends it because another failed, which has said why
    how, code = (_ENDED, 143) if isinstance(error, Terminated) else (_INTERRUPTED, 130)
    fail("; ".join([how, *(_what_stands(error) or ["nothing was left behind"])]), code)


def _what_stands(error: BaseException) -> list[str]:
    from clipmerge.files.staging import completed

    return [*(f"{path} is complete" for path in completed()), *getattr(error, "__notes__", [])]


def _fail_unexpectedly(error: Exception) -> NoReturn:
    if os.environ.get(DEBUG):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Unprintable):
        fail("; ".join([text, *_what_stands(error)]), 1)
    said = [f"{_internal(error)}: {text[:300]}", *_what_stands(error), f"set {DEBUG}=1 to see where"]
    fail("; ".join(said), 1)


def _internal(error: Exception) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory (fewer --images-at-once, or a smaller --batch-size, need less)"
    if isinstance(error, OSError):
        return "the system refused"
    return f"clipmerge failed unexpectedly ({type(error).__name__})"


def prepare_streams() -> None:
    """Have standard output take every character, whatever its encoding, and both streams be there at all."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, TextIOWrapper):  # stderr does so already
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print all that this block says before it ends.

    Raises:
        Unprintable: If standard output does not take it.
        BrokenPipeError: If nobody reads it any more.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # else the interpreter tries once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unprintable(f"standard output: cannot be written ({error.strerror or error})") from None


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong, in one line on stderr, and end.

    Args:
        message: What, where and what next.
        code: Exit code.
    """
    if os.environ.get(DEBUG) and sys.exc_info()[1] is not None and code == 1:
        raise
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(code)


def quieten_libraries(*, verbose: bool) -> None:
    """Keep the libraries' own bars and warnings off the terminal.

    Args:
        verbose: Leave warnings on.
    """
    if not verbose:
        warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if verbose else "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Terminal:
    """Prints results and progress in the format asked for; the pipeline's `Progress`."""

    def __init__(self, fmt: Format, *, verbose: bool = False) -> None:
        """Prepare both streams; no bar appears off a terminal.

        Args:
            fmt: Format of the results.
            verbose: Print stages as lines too.
        """
        quieten_libraries(verbose=verbose)
        self.format = fmt
        self._verbose = verbose
        self._silent = not is_main_process()
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._stage = ""
        self._said: set[str] = set()

    @functools.cached_property
    def _err(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        """A stage begins: its bar replaces the last one's."""
        self.close()
        self._stage = _STAGES.get(name, name)
        if self._verbose and not self._silent:
            self._err.print(f"{self._stage} ...", markup=False)

    def advance(self, done: float, total: float) -> None:
        """Move the bar, on a terminal only."""
        if self._silent or self.format is not Format.human or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._err, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=total)
        self._bar.update(self._task, completed=done, total=total, description=self._stage)

    def say(self, text: str) -> None:
        """Print a note on stderr, once."""
        if self._silent or self.format is Format.quiet or text in self._said:
            return
        self._said.add(text)
        self._err.print(f"note: {text}", markup=False)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, record: dict[str, Any], human: Callable[[], RenderableType] | None = None) -> None:
        """Print a result on stdout: one JSON object, or for people.

        Args:
            record: JSON-ready.
            human: Makes what people see; called only for them.
        """
        self.close()
        if self._silent or self.format is Format.quiet:
            return
        if self.format is Format.json:
            with printing():
                sys.stdout.write(json.dumps(record, indent=2) + "\n")
        elif human is not None:
            self.show(human())

    def show(self, *renderables: RenderableType) -> None:
        """Print for people, on stdout."""
        if self._silent or self.format is not Format.human:
            return
        from rich.console import Console

        console = Console(highlight=False)
        with printing():
            for renderable in renderables:
                # a line of text is never wrapped or read as markup: it may be a command to copy
                console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)
