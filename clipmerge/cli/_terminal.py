"""Print results on stdout and everything else on stderr, and turn errors into exit codes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipmerge.distributed import claim_error, is_main_process, is_out_of_memory
from clipmerge.errors import ClipmergeError, UsageError, did_you_mean_one_of, printable
from clipmerge.progress import STAGES, BarProgress, format_seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DEBUG = "CLIPMERGE_DEBUG"
# Fields that come first in JSON.
_ANSWERS = ("verdict", "answer", "headline", "accuracy")
# Base class of errors about flags, in click or in typer's copy of click.
_WrongFlag: Any = typer.BadParameter.__base__
# Environment variables for libraries.
_LIBRARIES = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # threads that wait must not slow down threads that work
    "OMP_WAIT_POLICY": "PASSIVE",
}
# Width of output that is not a terminal, where no line is wrapped.
_WIDEST = 10_000


class Terminal(BarProgress):
    """Prints the progress and the result of one command, in the main process."""

    def __init__(
        self,
        *,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")
        ] = False,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose", "-v", help="Print stages, all layers, and warnings of libraries."
            ),
        ] = False,
    ) -> None:
        """Silence the progress bars and warnings of libraries."""
        if not verbose:
            warnings.simplefilter("ignore")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name, value in _LIBRARIES.items():
            os.environ.setdefault(name, value)
        self.verbose = verbose
        self._as_json, self._quiet = as_json, quiet
        self._silent = not is_main_process()
        self._begin = time.monotonic()
        super().__init__()

    @functools.cached_property
    def _error_console(self) -> Console:
        return _make_console(sys.stderr.isatty(), stderr=True)

    def stage(self, name: str) -> None:
        """Begin a stage of the command, and print its name if ``verbose``."""
        super().stage(name)
        if self.verbose and not self._silent:
            self._error_console.print(f"{STAGES[name]} ...")

    def advance(self, done: float, total: float) -> None:
        """Move the progress bar, if stderr is a terminal."""
        if sys.stderr.isatty() and not (self._silent or self._quiet):
            super().advance(done, total)

    def say(self, text: str, kind: str = "note") -> None:
        """Print a note on stderr."""
        from clipmerge.options import with_flags

        if not self._silent and not (self._quiet and kind == "note"):
            self.close()
            self._error_console.print(f"{kind}: {with_flags(text)}")

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        self.say(text, "warning")

    def print_result(
        self, record: Mapping[str, Any], human: Callable[[], RenderableType], last: str = ""
    ) -> None:
        """Print a result on stdout: the record with ``--json``, else the text or table that
        ``human`` returns, followed by the line ``last``.
        """
        self.close()
        if self._silent:
            return
        if self._as_json:
            answers = {name: record[name] for name in _ANSWERS if name in record}
            typer.echo(json.dumps(answers | {**record}, indent=2, allow_nan=False))
        elif not self._quiet:
            self.show(human())
            if last:
                self.show(f"{last} Took {format_seconds(time.monotonic() - self._begin)}.")

    def show(self, renderable: RenderableType) -> None:
        """Print text or a table on stdout."""
        # lines of text are not wrapped, so that commands can be copied
        is_text = isinstance(renderable, str)
        _make_console(sys.stdout.isatty()).print(renderable, soft_wrap=is_text)


def _make_console(is_terminal: bool, **options: Any) -> Console:
    from rich.console import Console

    width = None if is_terminal else _WIDEST
    return Console(markup=False, emoji=False, highlight=False, width=width, **options)


def interrupt(_number: int, _frame: object) -> None:
    """End the command after Ctrl-C or SIGTERM, and ignore further signals while it cleans up."""
    ignore_signals()
    raise KeyboardInterrupt


def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Interrupt once more if Python ignored the interrupt, because a finalizer was running.

    This is a ``sys.unraisablehook``.
    """
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    signal.signal(signal.SIGINT, interrupt)
    # later, because this call is still part of the finalizer
    again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def report_error(error: BaseException) -> int:
    """Print the error of a command in one line, and return the exit code."""
    if isinstance(error, BrokenPipeError):  # as in `clipmerge recipes | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    from clipmerge.options import with_flags

    is_reported_here = claim_error()
    text, code = _describe_error(error)
    if os.environ.get(DEBUG) and code == 1:
        raise error
    line = printable(with_flags(" ".join(text.split())))
    if "--json" in sys.argv and is_main_process():
        line = json.dumps({"error": line, "kind": type(error).__name__, "exit_code": code})
    else:
        process = "" if is_main_process() else f" in process {os.environ['RANK']}"
        line = f"error{process}: {line}"
    if is_reported_here:
        sys.stderr.write(f"{line}\n")
    return code


def _describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ClipmergeError):
        return str(error), error.exit_code
    if isinstance(error, _WrongFlag):
        where = error.ctx.command_path if error.ctx else "clipmerge"
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        # typer suggests commands and flags, but not choices
        if choice := re.search(r"'([^']*)' is not one of (.*)", message):
            message += f".{meant}" if (meant := did_you_mean_one_of(*choice.groups())) else ""
        return f"{message} (see `{where} --help`)", UsageError.exit_code
    kind = type(error).__name__
    text = str(error)[:300] or kind
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or text}", 1
    if is_out_of_memory(error):
        return f"out of memory (a smaller `batch_size` needs less): {text}", 1
    return f"clipmerge failed unexpectedly ({kind}): {text}; {DEBUG}=1 shows where", 1
