"""Output of the command line: data on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from clipmerge.cli._ending import before_the_error
from clipmerge.config import with_flags
from clipmerge.distributed import is_main_process
from clipmerge.progress import Progress, format_seconds
from clipmerge.types import Json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

    from clipmerge.output.record import Record

#: Seconds between two lines of progress if no bar is shown.
LINE_SECONDS = 10.0
_STAGES = {
    "inspect": "comparing",
    "read": "reading",
    "measure": "measuring",
    "plan": "deciding",
    "apply": "merging",
    "write": "writing",
    "publish": "publishing",
    "evaluate": "evaluating",
    "check": "checking zero-shot accuracy",
    "effect": "measuring the effect",
    "other_tasks": "measuring other tasks",
    "bootstrap": "resampling images for intervals",
    "draw": "drawing",
}


class Format(StrEnum):
    """Output format of results."""

    human = "human"
    json = "json"
    quiet = "quiet"


class Terminal(Progress):
    """Prints results and progress in the format asked for; the pipeline's `Progress`."""

    def __init__(
        self, fmt: Format, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the libraries' own bars and warnings off both streams; without a terminal there is
        no progress bar.
        """
        if not verbose:
            warnings.simplefilter("ignore")
        libraries = {
            "HF_HUB_DISABLE_PROGRESS_BARS": "0" if sys.stderr.isatty() else "1",
            "TRANSFORMERS_VERBOSITY": "warning" if verbose else "error",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # on a busy machine spinning threads take the processor from those that they wait for
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        for name, value in libraries.items():
            os.environ.setdefault(name, value)
        self.format = fmt
        self.verbose = verbose
        self._silent = not is_main_process()
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._stage = ""
        self._said: set[str] = set()
        self._clock = clock
        self._begin = self._stage_begin = self._last_line = clock()
        self._first: tuple[float, float] | None = None
        before_the_error.append(self.close)

    @functools.cached_property
    def _err(self) -> Console:
        from clipmerge.cli._console import SafeConsole

        return SafeConsole(stderr=True, soft_wrap=not sys.stderr.isatty())

    def stage(self, name: str) -> None:
        """Begin a stage: its progress bar replaces the last one."""
        self.close()
        self._stage = _STAGES.get(name, name)
        self._stage_begin = self._last_line = self._clock()
        self._first = None
        if self.verbose and not self._silent:
            self._err.print(f"{self._stage} ...")

    def advance(self, done: float, total: float) -> None:
        """Move the progress bar; off a terminal, print a line every `LINE_SECONDS` seconds."""
        if self._silent or self.format is Format.quiet:
            return
        now = self._clock()
        # loading and the first step are no measure
        begin, before = self._first = self._first or (
            now,
            done,
        )
        if sys.stderr.isatty():
            if self.format is Format.human:
                self._move_bar(done, total)
        elif now - self._last_line >= LINE_SECONDS and 0 < done < total:
            self._last_line = now
            times = f"{format_seconds(now - self._stage_begin)} elapsed"
            if done > before:
                times += (
                    f", {format_seconds((now - begin) * (total - done) / (done - before))} left"
                )
            self._err.print(f"{self._stage}: {100 * done / total:.0f}%, {times}")

    def _move_bar(self, done: float, total: float) -> None:
        """Draw the bar; a stage that is done has none, as something without a count may follow."""
        if done >= total:
            self.close()
            return
        if self._bar is None:
            from rich.progress import (
                BarColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            # a recipe or a source may be called "[/x]"
            stage = TextColumn("{task.description}", markup=False)
            times = (
                TimeElapsedColumn(),
                TextColumn("elapsed,"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            percent = TextColumn("{task.percentage:>3.0f}%")
            self._bar = Progress(
                stage, BarColumn(), percent, *times, console=self._err, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=total)
        self._bar.update(self._task, completed=done, total=total)

    def end(self, line: str) -> None:
        """Print the last line of the human format, with the place of the output, and how long the
        command took.
        """
        self.close()
        self.show(line, f"Took {format_seconds(self._clock() - self._begin)}.")

    def say(self, text: str) -> None:
        """Print a note on stderr, once."""
        text = with_flags(text)
        if self._silent or text in self._said:
            return
        self._said.add(text)
        self._err.print(f"note: {text}")

    @property
    def shows_verdict(self) -> bool:
        """Whether the summary of a merge, which includes the warnings of its verdict, goes to this
        terminal.
        """
        return self.format is Format.human and sys.stdout.isatty()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, record: Mapping[str, Any], human: Callable[[], RenderableType]) -> None:
        """Print a result on stdout: as one JSON object, or in human form."""
        self.close()
        if self._silent or self.format is Format.quiet:
            return
        if self.format is Format.json:
            typer.echo(json.dumps(record, indent=2, allow_nan=False))
        else:
            self.show(human())

    def show(self, *renderables: RenderableType) -> None:
        """Print on stdout in the human format."""
        if self._silent or self.format is not Format.human:
            return
        from clipmerge.cli._console import SafeConsole, render_plain

        console = SafeConsole()
        if not console.is_terminal:
            sys.stdout.write(render_plain(console, renderables))
            return
        for renderable in renderables:
            # a line of text is neither wrapped nor interpreted as markup: it may be a command
            # to copy
            console.print(renderable, soft_wrap=isinstance(renderable, str))


def show_merge(
    terminal: Terminal,
    record: Record | None,
    last_line: str,
    *,
    published: Json | None = None,
    timed: bool = True,
) -> None:
    """Print the result of a merge, and how long it took if ``timed``."""
    from clipmerge.report.terminal import summary

    if record is None:
        return
    data = record.as_json() | ({"published": published} if published else {})
    terminal.result(data, lambda: summary(record, verbose=terminal.verbose))
    (terminal.end if timed else terminal.show)(last_line)


def push_outcome(published: Json) -> str:
    """Describe the result of a push in one line."""
    return f"Published {published['url']} at {published['commit']}"
