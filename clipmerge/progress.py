"""Where long work reports to."""

from __future__ import annotations

from typing import Protocol


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
