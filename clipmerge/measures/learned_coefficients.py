"""Coefficients learned on the calibration images, held back by the zero-shot model's own predictions."""

from __future__ import annotations

import torch

from clipmerge.calibration.augmentation import KINDS
from clipmerge.calibration.coefficients import Coefficients, Granularity
from clipmerge.calibration.goal import Divergence, Goal
from clipmerge.calibration.learning import Course, Learned, learn
from clipmerge.calibration.objective import Objective
from clipmerge.calibration.precision import Precision
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import Augmentation, Count, NonNegative, PartialShare, Points, Positive, Share


def learned_coefficients(
    objective: Objective,
    *,
    granularity: Granularity = "entry",
    robustness: NonNegative = 0.3,
    steps: Count = 120,
    batch: Count = 128,
    copies: Count = 64,
    rate: Positive = 0.03,
    start: Share | None = None,
    views: NonNegative = 1.0,
    held_back: PartialShare = 0.2,
    max_loss: Points = 5.0,
    blend: Share = 0.0,
    divergence: Divergence = "predictions",
    changes: tuple[Augmentation, ...] = KINDS,
    precision: Precision = "auto",
) -> Measurements:
    """Learn how far each layer, parameter, output channel or entry goes from zero-shot to fine-tuned.

    Minimises the cross-entropy on fresh views of the calibration images plus ``robustness`` times the divergence from
    the zero-shot model on generically changed copies of them, over coefficients in [0, 1]: the merged weights stay in
    the box between both checkpoints. Adam, some images per step, new views and changes in every step. A part of the
    images is held back: they choose where learning starts, and at the end between the learned point, points on the way
    to it and those of the straight path. Memory beside the model, with one coefficient per entry: six numbers of four
    bytes for each of its entries.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        granularity: What has a coefficient of its own.
        robustness: Weight of the divergence: the knob of the trade-off; 0 learns for the calibration images alone.
        steps: How many.
        batch: Images per step, at most.
        copies: How many of them, at most, have a changed copy on which the divergence is taken.
        rate: Adam's step size in coefficients; it falls to zero along a half cosine.
        start: The coefficient to begin with; ``None`` for the best alpha of the straight path for the same goal.
        views: Strength of the small turns, changes of size and shifts of the cross-entropy's images; 0 for none.
        held_back: Share of the images that learning does not see; 0 takes what was learned as it is.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned model.
        blend: Share of the fine-tuned model's predictions in those that the divergence is taken from.
        divergence: ``predictions`` (KL divergence) or ``features`` (one minus the cosine).
        changes: What is changed in the images of the divergence.
        precision: Of the forward passes: ``auto`` takes bfloat16 where the processor or the card multiplies it faster.

    Returns:
        Statistics ``at_zero`` and ``at_one``, shares of a layer's entries that the box holds at either end; the losses
        of every step; what the held-back images chose; and the coefficients.

    Raises:
        MeasureError: If a loss is not finite.

    Source:
        One coefficient per layer: AdaMerging, Yang et al. 2023, arXiv:2310.02575; held back by the predictions of the
        old model: Li and Hoiem 2016, arXiv:1606.09282. Together, in the box and per entry, ours.
    """
    coefficients = Coefficients(objective, granularity, start)
    course = course_of(
        robustness=robustness,
        steps=steps,
        batch=batch,
        copies=copies,
        rate=rate,
        views=views,
        held_back=held_back,
        max_loss=max_loss,
        blend=blend,
        divergence=divergence,
        changes=changes,
        precision=precision,
    )
    return measured("learned-coefficients", objective, coefficients, learn(objective, coefficients, course))


def course_of(
    *,
    robustness: float,
    steps: int,
    batch: int,
    copies: int,
    rate: float,
    views: float,
    held_back: float,
    max_loss: float,
    blend: float,
    divergence: Divergence,
    changes: tuple[Augmentation, ...],
    precision: Precision,
) -> Course:
    """Put the options of `learned_coefficients` together."""
    goal = Goal(robustness, changes, divergence, views, blend, copies, precision)
    return Course(goal, steps, rate, batch=batch, held_back=held_back, max_loss=max_loss)


def measured(name: str, objective: Objective, coefficients: Coefficients, learned: Learned) -> Measurements:
    """Put together what was learned.

    Args:
        name: The measure.
        objective: What it was learned on.
        coefficients: What was learned.
        learned: What was seen on the way, and the choice.
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
            "calibration": tuple(losses.calibration for losses in learned.trace),
            "divergence": tuple(losses.divergence for losses in learned.trace),
        },
        choice=learned.choice,
        path=learned.path,
        coefficients=found,
    )
