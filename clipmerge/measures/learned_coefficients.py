"""Coefficients learned on the calibration images, held back by the zero-shot model's own predictions."""

from __future__ import annotations

import torch

from clipmerge.calibration.augmentation import KINDS
from clipmerge.calibration.learning import Coefficients, Divergence, Goal, Granularity, Losses, learn
from clipmerge.calibration.objective import Objective
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import Augmentation, Count, NonNegative, Positive, Share


def learned_coefficients(
    objective: Objective,
    *,
    granularity: Granularity = "entry",
    robustness: NonNegative = 0.3,
    steps: Count = 100,
    batch: Count = 64,
    rate: Positive = 0.01,
    start: Share | None = None,
    divergence: Divergence = "predictions",
    changes: tuple[Augmentation, ...] = KINDS,
) -> Measurements:
    """Learn how far each layer, parameter, output channel or entry goes from zero-shot to fine-tuned.

    Minimises the cross-entropy on the calibration images plus ``robustness`` times the divergence from the
    zero-shot model on generically changed copies of them, over coefficients in [0, 1]: the merged weights stay in
    the box between both checkpoints. Adam, some images a step, new changes in every step. Memory beside the model,
    with a coefficient an entry: six numbers of four bytes for each of its entries.

    Args:
        objective: Calibration loss; left at the learned coefficients.
        granularity: What has a coefficient of its own.
        robustness: Weight of the divergence: the knob of the trade-off; 0 learns for the calibration images alone.
        steps: How many.
        batch: Images of a step, at most; never more than a calibration batch has.
        rate: Adam's step size in coefficients; it falls to zero along a half cosine.
        start: The coefficient to begin with; ``None`` for the best alpha of the straight path for the same goal.
        divergence: ``predictions`` (KL divergence) or ``features`` (one minus the cosine).
        changes: What is changed in the images of the divergence.

    Returns:
        Statistics ``at_zero`` and ``at_one``, shares of a layer's entries that the box holds at either end; the losses
        of every step; and the coefficients.

    Raises:
        MeasureError: If a loss is not finite.

    Source:
        Coefficients a layer: AdaMerging, Yang et al. 2023, arXiv:2310.02575; held back by the predictions of the
        old model: Li and Hoiem 2016, arXiv:1606.09282. Together, in the box and an entry, ours.
    """
    coefficients = Coefficients(objective, granularity, start)
    goal = Goal(robustness, changes, divergence)
    trace = learn(objective, coefficients, goal, steps=steps, rate=rate, batch=batch, keep=objective.keep)
    return measured("learned-coefficients", objective, coefficients, trace)


def measured(name: str, objective: Objective, coefficients: Coefficients, trace: list[Losses]) -> Measurements:
    """Put together what was learned.

    Args:
        name: The measure.
        objective: What it was learned on.
        coefficients: What was learned.
        trace: What each step saw.
    """
    found = coefficients.by_parameter()
    at_zero, at_one = {}, {}
    for layer, names in objective.layers.items():
        spread = torch.cat([found[name].broadcast_to(objective.theta_0[name].shape).reshape(-1) for name in names])
        at_zero[layer] = float((spread == 0).double().mean())
        at_one[layer] = float((spread == 1).double().mean())
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
                title="held at fine-tuned",
                about="share of the layer's entries whose learned coefficient is 1.",
            ),
        ),
        batch_sizes=objective.batch_sizes,
        trace={
            "calibration": tuple(losses.calibration for losses in trace),
            "divergence": tuple(losses.divergence for losses in trace),
        },
        coefficients=found,
    )
