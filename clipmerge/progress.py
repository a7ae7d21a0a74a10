"""Progress reports of long work."""

from __future__ import annotations

import logging
import time

_LOG = logging.getLogger("clipmerge")


class Progress:
    """Logs the progress of a run to Python's logger ``clipmerge``; a subclass may show it."""

    #: Whether clipmerge's own command line runs; records then quote it.
    is_command_line = False

    def stage(self, name: str) -> None:
        """A stage begins, and the one before it ends."""
        _LOG.info("stage: %s", name)

    def advance(self, done: float, total: float) -> None:
        """``done`` of ``total`` is complete, in any unit."""

    def say(self, text: str) -> None:
        """A note for the user."""
        _LOG.info("%s", text)

    def warn(self, text: str) -> None:
        """A warning for the user."""
        _LOG.warning("%s", text)


class Journal(Progress):
    """Forwards the progress of one run, each text once, and keeps its warnings and the seconds of
    each finished stage for the record.
    """

    def __init__(self, progress: Progress | None) -> None:
        """Begin the stage ``read``."""
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self._progress = progress or Progress()
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
