"""Progress reports of long work."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

_LOG = logging.getLogger("clipmerge")


class Progress:
    """Receives the reports of stages, and ignores those that a subclass has no use for."""

    def stage(self, name: str) -> None:
        """A stage starts, and the one before it ends."""

    def advance(self, done: float, total: float) -> None:
        """``done`` of ``total`` is complete, in the stage's own unit."""

    def say(self, text: str) -> None:
        """A note for the user."""

    def warn(self, text: str) -> None:
        """A warning for the user."""
        self.say(text)


def say_all(progress: Progress, notes: Iterable[str]) -> None:
    """Report several notes."""
    for note in notes:
        progress.say(note)


class Logged(Progress):
    """Reports to Python's logger ``clipmerge``: the API's default."""

    def stage(self, name: str) -> None:
        """Log it."""
        _LOG.info("stage: %s", name)

    def say(self, text: str) -> None:
        """Log it."""
        _LOG.info("%s", text)

    def warn(self, text: str) -> None:
        """Log it."""
        _LOG.warning("%s", text)


class Journal(Progress):
    """Forwards the reports of one run, and keeps what its record needs: the warnings, each once,
    and the seconds of each stage.
    """

    def __init__(self, progress: Progress | None) -> None:
        """Start the clock of the first stage."""
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self._progress = progress or Logged()
        self._said: set[str] = set()
        self.stage("read")

    def stage(self, name: str) -> None:
        """End the stage before it."""
        self.end_stage()
        self._stage, self._begin = name, time.perf_counter()
        self._progress.stage(name)

    def end_stage(self) -> None:
        """Add up the seconds of the stage."""
        if hasattr(self, "_stage"):
            spent = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._begin
            self.seconds[self._stage] = round(spent, 3)
            self._begin = time.perf_counter()

    def advance(self, done: float, total: float) -> None:
        """Forward the call."""
        self._progress.advance(done, total)

    def say(self, text: str) -> None:
        """Forward a note, once."""
        if text not in self._said:
            self._said.add(text)
            self._progress.say(text)

    def warn(self, text: str) -> None:
        """Forward a warning, once, and keep it."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._progress.warn(text)


def format_seconds(seconds: float) -> str:
    """Format a time for people.

    Example:
        >>> format_seconds(0.2), format_seconds(75), format_seconds(1000), format_seconds(4000)
        ('under 1 s', '1 min 15 s', '17 min', '1 h 7 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
