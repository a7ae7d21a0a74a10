"""Mixtures of fine-tuned checkpoints, evaluated on the calibration images."""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.learning.objective import Objective
from clipmerge.measures._statistics import require_finite_loss
from clipmerge.planning.measurements import Mixture


def try_mixture(objective: Objective, weights: Sequence[float]) -> Mixture:
    """Evaluate theta_0 + sum_i weights_i * (theta_i - theta_0); one forward pass."""
    objective.path.set_mixture(weights)
    rows = objective.losses_and_accuracies()
    loss, accuracy = (objective.mean(values) for values in zip(*rows, strict=True))
    listed = ", ".join(f"{weight:g}" for weight in weights)
    require_finite_loss(loss, f"weights {listed}")
    return Mixture(weights=tuple(weights), loss=loss, accuracy=accuracy)
