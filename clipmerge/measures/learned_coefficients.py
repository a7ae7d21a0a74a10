"""Coefficients learned on the calibration images, kept close to the zero-shot model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clipmerge.learning.choose import learn
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import LearningOptions
from clipmerge.planning.measurements import BackoffChoice, Measurements, Statistic

LEARNS = HOLDS_BACK = True
OPTIONS = LearningOptions


def learned_coefficients(objective: Objective, **options: Any) -> Measurements:
    """Learn one coefficient per layer, parameter, output channel or entry.

    Coefficients are kept between 0 and ``max_coefficient``. They minimise the cross-entropy on
    weakly augmented images, plus ``distill_weight`` times the distance from the answers of two
    teachers on strongly augmented images. The teachers are the zero-shot model and the midpoint of
    the path. Each step of Adam takes a few images and augments them anew.

    At the end, held-out images choose how far the merge goes back towards the fine-tuned model:
    only as far as needed to lose at most ``max_loss`` points. One coefficient per entry needs
    twelve bytes of memory per entry beside the model.

    Args:
        objective: Calibration loss. Its weights are left at the chosen coefficients.
        **options: See `clipmerge.learning.train.LearningOptions`.

    Returns:
        Statistics ``at_zero`` and ``at_one``, the shares of a layer's entries whose coefficient is
        0, or 1 and above; the losses of every step; the choice of the held-out images; the
        coefficients.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        One coefficient per layer: AdaMerging, Yang et al. 2023, arXiv:2310.02575; regularised by
        the predictions of the old model: Li and Hoiem 2016, arXiv:1606.09282. The combination,
        bounded and per entry, is ours.
    """
    chosen = LearningOptions(**options)
    coefficients = Coefficients(objective.path, chosen.granularity, chosen.start)
    learned = learn(objective, coefficients, chosen)
    return learned_measurements("learned-coefficients", objective, coefficients, *learned)


def learned_measurements(
    name: str,
    objective: Objective,
    coefficients: Coefficients,
    trace: Sequence[Sequence[float]],
    choice: BackoffChoice | None,
) -> Measurements:
    """Make the measurements of a measure that learns, from the result of `learn`."""
    values = coefficients.by_parameter()
    parameters = objective.path.parameters
    at_zero, at_one = {}, {}
    for layer, names in objective.path.layers.items():
        spread = torch.cat([values[name].expand_as(parameters[name]).flatten() for name in names])
        at_zero[layer] = float((spread == 0).double().mean())
        at_one[layer] = float((spread >= 1).double().mean())
    return Measurements(
        measure=name,
        statistics=(
            Statistic(
                name="at_zero",
                values=at_zero,
                title="held at zero-shot",
                about="share of the layer's entries whose learned coefficient is 0.",
            ),
            Statistic(
                name="at_one",
                values=at_one,
                title="fine-tuned or beyond",
                about="share of the layer's entries whose learned coefficient is 1 or larger.",
            ),
        ),
        batch_sizes=objective.batch_sizes,
        trace={
            "cross_entropy": tuple(losses[0] for losses in trace),
            "distillation_loss": tuple(losses[1] for losses in trace),
        },
        choice=choice,
        coefficients=values,
    )
