"""Where long work reports to."""

from __future__ import annotations

import logging
from typing import Protocol

_LOG = logging.getLogger("clipmerge")


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
