"""Learn coefficients, and let images that learning never saw choose how far to move from there
towards the fine-tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clipmerge.distributed import broadcast_
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import FORWARD, Labelled, Objective
from clipmerge.learning.train import LearningOptions, train
from clipmerge.models.passes import finite_scores, in_precision
from clipmerge.planning.measurements import BackoffChoice
from clipmerge.stats import class_weights, paired_mean_and_error

#: Shares of the way from the learned point to the fine-tuned model that are tried, in order.
BACKOFFS = tuple(tenth / 10 for tenth in range(10))
# Prompts with which images are compared, at most; no gradient goes back through them.
_PROMPTS_A_LOOK = 1024
# The whole way ends at the fine-tuned model.
_FINETUNED = 1.0
# Accuracies are means of float64, so a loss of exactly the limit may come out a little above it.
_ROUNDING = 1e-9


class Look(NamedTuple):
    """Which images the model recognises at one point.

    Attributes:
        backoff: Share of the way from the learned point to the fine-tuned model.
        distance: Distance from the fine-tuned model, in units of the learned point's.
        accuracies: Accuracy by image of the target, (images,), float64.
    """

    backoff: float
    distance: float
    accuracies: Tensor

    def loss_against(self, finetuned: Look) -> tuple[float, float]:
        """Accuracy lost against the fine-tuned model on the same images, and its standard error.

        Few images on which the two never differ prove little, so Agresti and Min's images are
        added; the nearer a point is to the fine-tuned model, the fewer of them differ, too.
        """
        return paired_mean_and_error(finetuned.accuracies - self.accuracies, self.distance)


def choose_backoff(look_at: Callable[[float], Look], max_loss: float) -> tuple[Look, Look]:
    """Find the least share of the way to the fine-tuned model that keeps enough accuracy.

    A point is far enough if its loss and the standard error together keep to the limit. A point
    that loses nothing is, too: with few images the error alone exceeds the limit, and would send
    back a model that is better than the fine-tuned one.

    Args:
        look_at: Moves the model a share of the way, and looks at the images.
        max_loss: Points of accuracy that may be lost.

    Returns:
        The look at that point, and the look at the fine-tuned model.
    """
    limit = max_loss / 100
    finetuned = look_at(_FINETUNED)
    for backoff in BACKOFFS:
        look = look_at(backoff)
        loss, error = look.loss_against(finetuned)
        if loss <= max(limit - error, min(limit, 0)) + _ROUNDING:
            return look, finetuned
    return finetuned, finetuned


@torch.no_grad()
def weighted_accuracies(objective: Objective, val: Labelled, options: LearningOptions) -> Tensor:
    """Compute which images the current weights recognise, (images,), float64 on the CPU.

    The mean of the result is a mean over classes, so that none is given up for the others.
    """
    images, classifier = val
    objective.work.announce(FORWARD * len(images))
    prompts, columns = classifier.draw(images.labels, objective.seed, _PROMPTS_A_LOOK)
    device = objective.path.device
    with in_precision(device, options.precision):
        classes = classifier.class_features(prompts)
        features = objective.embed(images.pixels.to(device))
    logits = classifier.logits(features, classes.float())
    finite_scores(logits, f"held-out images, with measure.precision={options.precision}")
    right = (logits.argmax(-1).cpu() == columns.cpu()).double()
    broadcast_(objective.context, right)
    objective.work.count(FORWARD * len(images))
    if classifier.compares_images:
        return right
    return right * torch.from_numpy(class_weights(images.labels.tolist()))


def choose(
    objective: Objective, coefficients: Coefficients, val: Labelled, options: LearningOptions
) -> BackoffChoice:
    """Move the coefficients to the choice of images that learning did not see.

    If nothing between the learned and the fine-tuned point keeps the accuracy, they become the
    fine-tuned model's.
    """
    learned = coefficients.distance() or 1.0

    def look_at(backoff: float) -> Look:
        coefficients.place(backoff)
        distance = coefficients.distance(backoff) / learned
        return Look(backoff, distance, weighted_accuracies(objective, val, options))

    chosen, finetuned = choose_backoff(look_at, options.max_loss)
    coefficients.back_off(chosen.backoff)
    coefficients.place()
    return BackoffChoice(
        images=len(chosen.accuracies),
        backoff=chosen.backoff,
        accuracy=float(chosen.accuracies.mean()),
        finetuned_accuracy=float(finetuned.accuracies.mean()),
    )


def learn(
    objective: Objective,
    coefficients: Coefficients,
    options: LearningOptions,
    *,
    units: Mapping[str, float] | None = None,
) -> tuple[list[list[float]], BackoffChoice | None]:
    """Learn coefficients, and let the held-out images choose how far to back off, if there are any.

    Args:
        objective: Left at the chosen coefficients.
        coefficients: Changed in place.
        options: How to learn and choose.
        units: See `train`.

    Returns:
        The trace of `train`, and the choice.
    """
    options = options.for_images(objective.images.pixels)
    trace = train(objective, coefficients, options, units)
    val = objective.val
    return trace, choose(objective, coefficients, val, options) if val else None
