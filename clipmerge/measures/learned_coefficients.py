"""Coefficients learned on the calibration images, regularised by the zero-shot model's
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from clipmerge.learning.augment import AUGMENTATIONS
from clipmerge.learning.interpolate import Coefficients, Granularity
from clipmerge.learning.learn import Learned, learn
from clipmerge.learning.loss import DistillTarget
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training
from clipmerge.models.precision import Precision
from clipmerge.planning.measurements import HeldBackChoice, Measurements, Statistic
from clipmerge.plugins import (
    Augmentation,
    Count,
    NonNegative,
    PartialShare,
    Points,
    Positive,
    Share,
    options_of,
)
from clipmerge.types import Names

#: Difference in accuracy between the images that learning saw and those held back from which a note
#: warns.
OVERFIT = 0.1


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How `learned_coefficients` learns.

    Attributes:
        granularity: Unit that has its own coefficient.
        distill_weight: Weight of the distillation loss, which controls the trade-off; 0 minimises
            the loss on the calibration images alone.
        steps: Number of steps.
        batch_size: Maximum number of images per step.
        num_strong: Maximum number of strongly augmented images per step, on which the distillation
            loss is computed.
        lr: Adam's step size in coefficients; it falls to zero along a half cosine.
        start: Initial coefficient.
        max_coefficient: Largest coefficient; with 1 the merged weights stay in the box between both
            checkpoints.
        weak_aug: Strength of the small rotations, rescalings and shifts of the cross-entropy's
            images; 0 for none.
        held_back: Share of the images that learning does not see; 0 uses the learned coefficients
            unchanged.
        max_loss: Points of accuracy on the held-back images that may be lost against the fine-tuned
            model, the standard error of that loss included.
        distill: Target of distillation: the zero-shot model's ``predictions`` (KL divergence), its
            ``features`` (twice one minus the cosine), ``path-features`` (four times one minus the
            cosine to the mean of its features and those of the middle of the path), or ``both``:
            half of ``path-features`` and half of the KL divergence from the mean of these two
            models' probabilities.
        augmentations: Kinds of strong augmentation.
        precision: Precision of forward passes; ``auto`` uses bfloat16 if the processor or GPU
            multiplies it faster, and float16 on a CUDA device without.
    """

    granularity: Granularity = "entry"
    distill_weight: NonNegative = 0.6
    steps: Count = 160
    batch_size: Count = 20
    num_strong: Count = 20
    lr: Positive = 0.033
    start: Share = 0.5
    max_coefficient: Positive = 1.0
    weak_aug: NonNegative = 1.0
    held_back: PartialShare = 0.2
    max_loss: Points = 3.0
    distill: DistillTarget = "both"
    augmentations: tuple[Augmentation, ...] = AUGMENTATIONS
    precision: Precision = "auto"

    def learn(self, objective: Objective, coefficients: Coefficients, **more: Any) -> Learned:
        """Learn as the options say; ``more`` goes to `clipmerge.learning.learn.learn`."""
        options = {field.name: getattr(self, field.name) for field in fields(Training)}
        return learn(
            objective,
            coefficients,
            Training(**options),
            start=self.start,
            max_loss=self.max_loss,
            **more,
        )


@options_of(LearningOptions)
def learned_coefficients(objective: Objective, **options: Any) -> Measurements:
    """Learn one coefficient per layer, parameter, output channel or entry.

    Minimises the cross-entropy on weakly augmented calibration images plus ``distill_weight`` times
    the distillation loss from the zero-shot model on strongly augmented ones, over coefficients
    from 0 to ``max_coefficient``. Uses Adam with a few images per step, augmented anew in every
    step. At the end, images held out of learning choose how far to go from what was learned
    towards fine-tuned: no further than needed to lose at most ``max_loss`` points. With one
    coefficient per entry it needs ten bytes per entry in addition to the model.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        **options: See `LearningOptions`.

    Returns:
        Statistics ``at_zero`` and ``at_one``, shares of a layer's entries whose coefficient is 0,
        or 1 and above; the losses of every step; the choice of the held-back images; and the
        coefficients.

    Raises:
        MeasureError: If a loss is not finite.

    Source:
        One coefficient per layer: AdaMerging, Yang et al. 2023, arXiv:2310.02575; regularised by
        the predictions of the old model: Li and Hoiem 2016, arXiv:1606.09282. The combination,
        bounded and per entry, is ours.
    """
    chosen = LearningOptions(**options)
    coefficients = Coefficients(objective.path, chosen.granularity, chosen.start)
    learned = chosen.learn(objective, coefficients)
    return learned_measurements("learned-coefficients", objective, coefficients, learned)


def _overfit(choice: HeldBackChoice | None) -> Names:
    """A note if the images that learning saw are recognised far more often than those held back."""
    if choice is None or choice.train_accuracy is None:
        return ()
    if choice.train_accuracy - choice.accuracy < OVERFIT:
        return ()
    return (
        f"overfitting: {choice.train_accuracy:.0%} of the views of training images are recognised,"
        f" and {choice.accuracy:.0%} of held-out images and views; use more images or fewer steps"
        " (measure.steps)",
    )


def learned_measurements(
    name: str, objective: Objective, coefficients: Coefficients, learned: Learned
) -> Measurements:
    """Make measurements from the result of learning.

    Args:
        name: The measure.
        objective: Calibration loss that was minimised.
        coefficients: The learned coefficients.
        learned: The losses of the steps, and the choice.
    """
    values = coefficients.by_parameter()
    at_zero, at_one = {}, {}
    for layer, names in objective.path.layers.items():
        shapes = {name: objective.path.parameters[name].shape for name in names}
        spread = torch.cat(
            [values[name].broadcast_to(shape).reshape(-1) for name, shape in shapes.items()]
        )
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
            "cross_entropy": tuple(losses[0] for losses in learned.trace),
            "distillation_loss": tuple(losses[2] for losses in learned.trace),
        },
        choice=learned.choice,
        notes=_overfit(learned.choice),
        coefficients=values,
    )
