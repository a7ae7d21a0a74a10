"""Output of the command line: data on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from clipmerge.cli._ending import printing
from clipmerge.distributed import is_main_process

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

_STAGES = {
    "read": "reading",
    "measure": "measuring",
    "plan": "deciding",
    "apply": "merging",
    "write": "writing",
    "publish": "publishing",
    "evaluate": "evaluating",
    "bought": "measuring what it bought",
}


class Format(StrEnum):
    """Output format of results."""

    human = "human"
    json = "json"
    quiet = "quiet"


def quieten_libraries(*, verbose: bool) -> None:
    """Keep the libraries' own bars and warnings off the terminal.

    Args:
        verbose: Keep warnings.
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
        """Prepare both streams; without a terminal there is no progress bar.

        Args:
            fmt: Format of the results.
            verbose: Also print stages as lines.
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
        from clipmerge.cli._console import SafeConsole

        return SafeConsole(stderr=True, highlight=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        """Begin a stage: its progress bar replaces the last one."""
        self.close()
        self._stage = _STAGES.get(name, name)
        if self._verbose and not self._silent:
            self._err.print(f"{self._stage} ...", markup=False)

    def advance(self, done: float, total: float) -> None:
        """Move the progress bar, on a terminal only."""
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
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, record: dict[str, Any], human: Callable[[], RenderableType] | None = None) -> None:
        """Print a result on stdout: as one JSON object or in human form.

        Args:
            record: JSON-ready.
            human: Makes the human form; called only if that is printed.
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
        """Print on stdout in the human format."""
        if self._silent or self.format is not Format.human:
            return
        from clipmerge.cli._console import SafeConsole

        console = SafeConsole(highlight=False)
        with printing():
            for renderable in renderables:
                # a line of text is neither wrapped nor interpreted as markup: it may be a command to copy
                console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)
