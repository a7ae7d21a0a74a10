"""Radii that limit each parameter's distance from zero-shot, learned on held-out images."""

from __future__ import annotations

from clipmerge.learning.choose import learn
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import LearningOptions
from clipmerge.measures.learned_coefficients import learned_measurements
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Count, Positive

LEARNS = True


def projection_radii(
    objective: Objective, *, steps: Count = 200, lr: Positive = 0.01
) -> Measurements:
    """Learn a radius gamma for each parameter, and shorten its task vector to at most this length.

    The task vector becomes task_vector * min(1, gamma / ||task_vector||). Only the calibration loss
    is minimised, so the images must not be those of fine-tuning. Radii start at zero.

    Args:
        objective: Calibration loss. Its weights are left at the projected ones.
        steps: Number of steps, each with one batch.
        lr: Adam's step size, in the weights' own unit; it falls to zero along a half cosine.

    Returns:
        The results of `learned_coefficients`; a coefficient is min(1, gamma / ||task_vector||).

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        TPGM, Tian et al. 2023, arXiv:2303.10720, applied once, after fine-tuning.
    """
    coefficients = Coefficients(objective.path, "parameter", 0.0)
    # Adam's steps do not depend on the gradient's scale, so `lr` / norm for a coefficient is `lr`
    # for a radius
    units = {name: 1 / float(objective.path.delta(name).norm()) for name in coefficients.values}
    options = LearningOptions(
        steps=steps,
        lr=lr,
        batch_size=objective.batch_sizes[0],
        distill_weight=0.0,
        weak_aug=0.0,
        precision="float32",
    )
    learned = learn(objective, coefficients, options, units=units)
    return learned_measurements("projection-radii", objective, coefficients, *learned)
