"""How a command ends: one line on stderr about any error, and the exit codes 0, 1, 2 and 130."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import typer

from clipmerge.distributed import is_main_process
from clipmerge.errors import ClipmergeError, UsageError, printable

DEBUG = "CLIPMERGE_DEBUG"
# A launcher ends all processes as soon as one has failed. The others wait this long for the main
# one to tell an error that all of them find.
SECONDS_FOR_THE_MAIN_PROCESS = 10.0
# base class of all errors about flags, whether or not typer vendors its own click
_WrongFlag: Any = typer.BadParameter.__base__


def interrupt(_number: int, _frame: object) -> None:
    """End the command after Ctrl-C or SIGTERM; further signals do not disturb its cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def tell(error: BaseException) -> int:
    """Print one line about what ended a command, and return the exit code."""
    if isinstance(error, BrokenPipeError):  # of `clipmerge recipes | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    from clipmerge.options import with_flags

    text, code = _describe(error)
    if os.environ.get(DEBUG) and code == 1:
        raise error
    line = printable(with_flags(" ".join("; ".join([text, *_notes(error)]).split())))
    if not is_main_process():
        if code != 130:
            time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
            sys.stderr.write(f"error in process {os.environ['RANK']}: {line}\n")
        return code
    if "--json" in sys.argv:
        import json

        line = json.dumps({"error": line, "kind": type(error).__name__, "exit_code": code})
    else:
        line = f"error: {line}"
    sys.stderr.write(f"{line}\n")
    return code


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ClipmergeError):
        return str(error), error.exit_code
    if isinstance(error, _WrongFlag):
        where = error.ctx.command_path if error.ctx else "clipmerge"
        message = error.format_message().rstrip(".")
        return f"{message}{' See' if message.endswith('?') else '; see'} `{where} --help`", (
            UsageError.exit_code
        )
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or text}", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory (a smaller `batch_size` needs less): {text[:300]}", 1
    kind = type(error).__name__
    return f"clipmerge failed unexpectedly ({kind}): {text[:300]}; {DEBUG}=1 shows where", 1
