"""What the command line prints, where, and how it ends: data on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from clipmerge.errors import ClipmergeError
from clipmerge.together import Terminated, termination

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

P = ParamSpec("P")
R = TypeVar("R")

DEBUG = "CLIPMERGE_DEBUG"
_ENDED = (
    "ended from outside (SIGTERM; a launcher sends it to all processes of a run when one of them fails); nothing was "
    "left behind"
)
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


def is_main_process() -> bool:
    """Whether this process prints; under ``accelerate launch`` only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into one line on stderr and an exit code; never a traceback.

    ``CLIPMERGE_DEBUG=1`` lets the traceback through.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with termination():
                return command(*args, **kwargs)
        except ClipmergeError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; nothing was left behind", 130)
        except Terminated:
            fail(_ENDED, 143)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            fail(f"{_internal(error)}: {text[:300]}; set {DEBUG}=1 to see where", 1)

    return wrapper


def _internal(error: Exception) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory (fewer --images-at-once, or a smaller --batch-size, need less)"
    if isinstance(error, OSError):
        return "the system refused"
    return f"clipmerge failed unexpectedly ({type(error).__name__})"


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
            sys.stdout.write(json.dumps(record, indent=2) + "\n")
        elif human is not None:
            self.show(human())

    def show(self, *renderables: RenderableType) -> None:
        """Print for people, on stdout."""
        if self._silent or self.format is not Format.human:
            return
        from rich.console import Console

        console = Console(highlight=False)
        for renderable in renderables:
            # a line of text is never wrapped or read as markup: it may be a command to copy
            console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)
