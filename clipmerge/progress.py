"""Where long work reports to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

_LOG = logging.getLogger("clipmerge")
# Seconds of work that tell the pace.
_GLANCE = 1.0


class Progress(Protocol):
    """Where the stages report to; every call may be ignored."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, done: float, total: float) -> None:
        """So much of the stage is done, in the stage's own unit."""

    def say(self, text: str) -> None:
        """Something the user should know now."""


class Silent:
    """Reports nothing."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def advance(self, done: float, total: float) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""


class Logged:
    """Reports to Python's logger ``clipmerge``: stages at level INFO, notes at level WARNING; the API's default."""

    def stage(self, name: str) -> None:
        """Log it."""
        _LOG.info("stage: %s", name)

    def advance(self, done: float, total: float) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Log it."""
        _LOG.warning("%s", text)


class ByteCount:
    """Turns bytes written into progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        """Start at zero.

        Args:
            progress: Where to report.
            total: Bytes that will be written.
        """
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        """Count further bytes.

        Args:
            count: Bytes written since the last call.
        """
        self._done += count
        self._progress.advance(self._done, self._total)


class Pace:
    """Passes progress on, and states the cost of the work once its pace is known."""

    def __init__(self, progress: Progress, cost: Callable[[float, str], str] | None) -> None:
        """Wait for the work to begin.

        Args:
            progress: Where to report.
            cost: Makes a sentence of the whole amount of work and of the time that it will take; ``None`` where the
                cost is not worth a line.
        """
        self._progress = progress
        self._cost = cost
        self._first: tuple[float, float] | None = None

    def stage(self, name: str) -> None:
        """Pass it on."""
        self._progress.stage(name)

    def say(self, text: str) -> None:
        """Pass it on."""
        self._progress.say(text)

    def advance(self, done: float, total: float) -> None:
        """Pass it on; the first report warms up, and the second is no measurement before a moment has passed."""
        if self._cost is not None:
            self._state(done, total)
        self._progress.advance(done, total)

    def _state(self, done: float, total: float) -> None:
        now = time.perf_counter()
        if self._first is None:
            self._first = (now, done)
        begin, before = self._first
        if self._cost is None or now - begin < _GLANCE:
            return
        seconds = (now - begin) * (total - before) / (done - before)
        self._progress.say(self._cost(total, f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"))
        self._cost = None
