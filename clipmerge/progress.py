"""Progress reports of long work."""

from __future__ import annotations

import logging
import time

_LOG = logging.getLogger("clipmerge")


class Progress:
    """Receives the reports of a run, and logs them to Python's logger ``clipmerge``; a subclass
    shows them in its own way.
    """

    #: Whether clipmerge's own command line runs, which records then quote.
    is_command_line = False

    def stage(self, name: str) -> None:
        """A stage starts, and the one before it ends."""
        _LOG.info("stage: %s", name)

    def advance(self, done: float, total: float) -> None:
        """``done`` of ``total`` is complete, in the stage's own unit."""

    def say(self, text: str) -> None:
        """A note for the user."""
        _LOG.info("%s", text)

    def warn(self, text: str) -> None:
        """A warning for the user."""
        _LOG.warning("%s", text)


class Journal(Progress):
    """Forwards the reports of one run, and keeps what its record needs: the warnings, each once,
    and the seconds of each stage that ended.
    """

    def __init__(self, progress: Progress | None) -> None:
        """Begin to read."""
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self._progress = progress or Progress()
        self._notes: set[str] = set()
        self._stage, self._begin = "read", time.perf_counter()
        self._progress.stage("read")

    def stage(self, name: str) -> None:
        """End a stage, and begin another one."""
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
        >>> format_seconds(0.2), format_seconds(75), format_seconds(1000), format_seconds(4000)
        ('under 1 s', '1 min 15 s', '17 min', '1 h 7 min')
    """
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min"
