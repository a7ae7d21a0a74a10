"""Mixtures of fine-tuned checkpoints, evaluated on the calibration images."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.errors import ClipmergeError
from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import Mixture


def try_mixture(objective: Objective, weights: Sequence[float]) -> Mixture:
    """Evaluate theta_0 + sum_i weights_i * (theta_i - theta_0); one forward pass."""
    objective.path.set_mixture(weights)
    rows = objective.losses_and_accuracies()
    loss, accuracy = (objective.mean(values) for values in zip(*rows, strict=True))
    if not loss < float("inf"):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ClipmergeError(
            f"the calibration loss at weights {listed} is {loss}; check that the checkpoints work"
        )
    return Mixture(weights=tuple(weights), loss=loss, accuracy=accuracy)
