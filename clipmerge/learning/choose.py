"""Learn coefficients, and let held-out images choose how far to move from there towards the
fine-tuned model.
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
# Most prompts that images are compared with; no gradient goes back through them.
_PROMPTS_A_LOOK = 1024
# Share of the way at whose end the fine-tuned model is.
_FINETUNED = 1.0
# A mean of float64 that equals the limit may be rounded to a little above it.
_ROUNDING = 1e-9


class PointAccuracy(NamedTuple):
    """Accuracy at one point between the learned coefficients and the fine-tuned model.

    Attributes:
        backoff: Share of the way from the learned point to the fine-tuned model.
        distance: Distance from the fine-tuned model, in units of the learned point's.
        accuracies: Accuracy by image of the target, (images,), float64.
    """

    backoff: float
    distance: float
    accuracies: Tensor


def choose_backoff(
    evaluate_at: Callable[[float], PointAccuracy], max_loss: float, margin: float = 1.0
) -> tuple[PointAccuracy, PointAccuracy]:
    """Find the smallest share of the way to the fine-tuned model that keeps enough accuracy.

    A point is accepted if its loss plus a margin keeps to the limit, or if it loses nothing.
    Without the second rule, few images would reject a model that is better than the fine-tuned
    one, because the margin alone exceeds the limit.

    Args:
        evaluate_at: Moves the model a share of the way, and evaluates it there.
        max_loss: Points of accuracy that may be lost.
        margin: Standard errors of the loss that are added to it.

    Returns:
        The accuracies at that point, and those of the fine-tuned model.
    """
    limit = max_loss / 100
    finetuned = evaluate_at(_FINETUNED)
    for backoff in BACKOFFS:
        point = evaluate_at(backoff)
        # Agresti and Min add images on which the models differ, since two models may agree on a few
        # images by chance. The nearer the point is to the fine-tuned model, the less they differ.
        lost = finetuned.accuracies - point.accuracies
        loss, error = paired_mean_and_error(lost, point.distance)
        if loss <= max(limit - margin * error, min(limit, 0)) + _ROUNDING:
            return point, finetuned
    return finetuned, finetuned


@torch.no_grad()
def weighted_accuracies(objective: Objective, val: Labelled, options: LearningOptions) -> Tensor:
    """Compute which images the model recognises, (images,), float64 on the CPU.

    Images are weighted so that the mean is a mean over classes: no class is given up for others.
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
    """Let held-out images choose how far the coefficients move towards fine-tuned, and move them.

    If no point before the fine-tuned model keeps the accuracy, they become the fine-tuned model's.
    If learning used images of a shift, there is no margin, which would undo their effect by chance.
    """
    learned = coefficients.distance() or 1.0

    def evaluate_at(backoff: float) -> PointAccuracy:
        coefficients.set_weights(backoff)
        distance = coefficients.distance(backoff) / learned
        return PointAccuracy(backoff, distance, weighted_accuracies(objective, val, options))

    margin = 0.0 if objective.ood else 1.0
    chosen, finetuned = choose_backoff(evaluate_at, options.max_loss, margin)
    coefficients.back_off(chosen.backoff)
    coefficients.set_weights()
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
    """Learn coefficients. If there are held-out images, they choose how far to back off.

    Args:
        objective: On return, its model has the chosen coefficients.
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
