"""Learning that is stopped in the middle and saves after every step, and its messages."""

from collections.abc import Callable
from typing import Any

import pytest

from clipmerge.calibration import learning
from clipmerge.calibration import resume as resumption
from clipmerge.calibration.goal import Losses

SAVED = "the learning is saved after step {} of {}; the same command resumes there"
GOES_ON = "learning resumes after step {} of {}, saved by an earlier run"


def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "SECONDS", 0)
    monkeypatch.setattr(resumption, "TIMES", 0)


#: Stops learning after a number of steps.
Stopping = Callable[[int], None]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupt learning once, after a number of steps."""
    real, taken = learning.losses_of, iter(range(steps))

    def losses_of(*arguments: Any, **options: Any) -> Losses:
        if next(taken, None) is None:
            monkeypatch.setattr(learning, "losses_of", real)
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(learning, "losses_of", losses_of)
