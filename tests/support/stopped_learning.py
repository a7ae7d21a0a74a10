"""Learning that is stopped in the middle and saves after every step, and its messages."""

from collections.abc import Callable
from typing import Any

import pytest

from clipmerge.learning import learn as learn_module
from clipmerge.learning import resume as resumption
from clipmerge.learning.learning_loss import Losses

SAVED = "the learning is saved after step {} of {}; the same command resumes there"
GOES_ON = "learning resumes after step {} of {}, saved by an earlier run"


def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "SECONDS", 0)
    monkeypatch.setattr(resumption, "TIMES", 0)


#: Stops learning after a number of steps.
Stopping = Callable[[int], None]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupt learning once, after a number of steps."""
    real, taken = learn_module.losses_of, iter(range(steps))

    def losses_of(*arguments: Any, **options: Any) -> Losses:
        if next(taken, None) is None:
            monkeypatch.setattr(learn_module, "losses_of", real)
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(learn_module, "losses_of", losses_of)
