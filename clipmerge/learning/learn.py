"""Learn coefficients, and let images that learning never saw choose the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipmerge.learning.choose import choose
from clipmerge.learning.interpolate import DEFAULT_ALPHA, Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training, train
from clipmerge.planning.measurements import HeldBackChoice


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        trace: Mean cross-entropy, accuracy and mean distillation loss of each step.
        choice: The choice of the held-out images; ``None`` if none are held out.
    """

    trace: list[list[float]]
    choice: HeldBackChoice | None = None


def learn(
    objective: Objective,
    coefficients: Coefficients,
    training: Training,
    *,
    start: float = DEFAULT_ALPHA,
    max_loss: float = 100.0,
    find_sparse: Callable[[], tuple[Sequence[str], float]] | None = None,
) -> Learned:
    """Learn coefficients, and move them to the choice of the images ``objective.val``, if any.

    Args:
        objective: Left at the chosen coefficients.
        coefficients: Changed in place.
        training: How to learn.
        start: Coefficient where learning starts.
        max_loss: Points of accuracy on these images that may be lost against the fine-tuned model.
        find_sparse: Called at the weights where learning starts; returns the parameters to make
            sparse and their density.
    """
    if find_sparse is not None:
        objective.path.set_alpha(start)
        coefficients.make_sparse(*find_sparse(), objective.seed)
    trace = train(objective, coefficients, training)
    if objective.val is None:
        return Learned(trace)
    choice = choose(objective, coefficients, training, max_loss=max_loss)
    coefficients.place()
    last = trace[-max(1, len(trace) // 10) :]  # the last steps, of little rate
    accuracy = sum(losses[1] for losses in last) / max(1, len(last))
    return Learned(trace, choice.replace(train_accuracy=accuracy if last else None))
