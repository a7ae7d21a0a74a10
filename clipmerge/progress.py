"""Progress reports of long work."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from typing import Any

_LOG = logging.getLogger("clipmerge")
# The bar of a shorter stage would only flicker.
_SECONDS_TO_BAR = 0.3
#: The stages of a run, in words.
STAGES = {
    "read": "reading",
    "check": "checking images and names",
    "inspect": "comparing",
    "measure": "measuring",
    "learn": "learning",
    "decide": "deciding",
    "judge": "judging",
    "evaluate": "evaluating",
    "bootstrap": "resampling images for intervals",
    "merge": "merging",
    "write": "writing",
    "draw": "drawing",
    "publish": "publishing",
}


class Progress:
    """Receives the progress of a run, and logs it to ``clipmerge``. Subclasses may show it."""

    def stage(self, name: str) -> None:
        """Begin a stage, and end the one before it."""
        _LOG.info("stage: %s", name)

    def advance(self, done: float, total: float) -> None:
        """Report that ``done`` of ``total`` is complete, in any unit."""

    def say(self, text: str) -> None:
        """Give the user a note."""
        _LOG.info("%s", text)

    def warn(self, text: str) -> None:
        """Warn the user."""
        _LOG.warning("%s", text)


class BarProgress(Progress):
    """Logs, and shows a progress bar for each stage on a terminal or in a notebook."""

    def __init__(self) -> None:
        """Begin without a bar."""
        self._bar: Any = None
        self._doing = ""

    def stage(self, name: str) -> None:
        """Begin a stage, with a bar of its own."""
        super().stage(name)
        self.close()
        self._doing = STAGES[name]

    def advance(self, done: float, total: float) -> None:
        """Move the bar."""
        if done >= total:  # work of unknown length may follow
            self.close()
            return
        if self._bar is None:
            with warnings.catch_warnings():
                # without ipywidgets a notebook shows the bar as text
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
            self._bar = tqdm(
                initial=done,
                total=total,
                desc=self._doing,
                leave=False,
                delay=_SECONDS_TO_BAR,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left",
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def say(self, text: str) -> None:
        """Remove the bar, and log a note."""
        self.close()
        super().say(text)

    def warn(self, text: str) -> None:
        """Remove the bar, and log a warning."""
        self.close()
        super().warn(text)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def default_progress() -> Progress:
    """Make the receiver for calls without one. It logs; in the main process on a terminal or in a
    notebook, it also shows bars.
    """
    is_watched = getattr(sys.stderr, "isatty", bool)() or "ipykernel.zmqshell" in sys.modules
    is_main = os.environ.get("RANK", "0") == "0"
    return BarProgress() if is_watched and is_main else Progress()


class Journal(Progress):
    """Forwards the progress of a run, each text once, and keeps warnings and times.

    Attributes:
        warnings: The warnings.
        seconds: Seconds by finished stage.
    """

    def __init__(self, progress: Progress | None) -> None:
        """Begin the stage ``read``."""
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self._progress = progress or default_progress()
        self._notes: set[str] = set()
        self._stage, self._begin = "read", time.perf_counter()
        self._progress.stage("read")

    def stage(self, name: str) -> None:
        """End a stage, and begin the next one."""
        now = time.perf_counter()
        spent = self.seconds.get(self._stage, 0.0) + now - self._begin
        self.seconds[self._stage] = round(spent, 3)
        self._stage, self._begin = name, now
        self._progress.stage(name)

    def advance(self, done: float, total: float) -> None:
        """Forward the call."""
        self._progress.advance(done, total)

    def say(self, text: str) -> None:
        """Forward a note, once."""
        if text not in self._notes:
            self._notes.add(text)
            self._progress.say(text)

    def warn(self, *texts: str) -> None:
        """Forward warnings, each once, and keep them."""
        for text in texts:
            if text not in self.warnings:
                self.warnings.append(text)
                self._progress.warn(text)


def format_seconds(seconds: float) -> str:
    """Format a time for people.

    Example:
        >>> format_seconds(75.3), format_seconds(1000)
        ('75 s', '17 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
