"""Accuracy and loss along the straight path, from forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import LossPath, Measurements, Mixture
from clipmerge.plugins import Count

# with several fine-tuned checkpoints the path ends at their average
SEVERAL = True


def path_accuracy(objective: Objective, *, steps: Count = 10) -> Measurements:
    """Measure loss and accuracy at evenly spaced points of the path, and at its midpoint.

    Args:
        objective: Calibration loss. Its weights are left at the fine-tuned end.
        steps: Number of equal steps along the path; each costs one forward pass.

    Returns:
        The loss along the path, and each point as a mixture. No statistics.

    Raises:
        ClipmergeError: If a loss is not finite.
    """
    alphas = sorted({step / steps for step in range(steps + 1)} | {0.5})
    objective.announce(forward=len(alphas))
    count = len(objective.path.inputs.finetuned)
    mixtures = tuple(try_mixture(objective, (alpha / count,) * count) for alpha in alphas)
    return Measurements(
        measure="path-accuracy",
        batch_sizes=objective.batch_sizes,
        path=LossPath(alphas=tuple(alphas), losses=tuple(mixture.loss for mixture in mixtures)),
        mixtures=mixtures,
    )


def try_mixture(objective: Objective, weights: Sequence[float]) -> Mixture:
    """Measure loss and accuracy of theta_0 + sum_i weights_i * (theta_i - theta_0) by a forward
    pass.
    """
    objective.path.set_mixture(weights)
    loss, accuracy = objective.loss_and_accuracy()
    return Mixture(weights=tuple(weights), loss=loss, accuracy=accuracy)
