"""Learn coefficients, and let images that learning never saw choose how far to go from there to
the fine-tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
# Prompts with which images are compared, at most; there is no way back through them.
_PROMPTS_A_LOOK = 1024
# The share at which the fine-tuned model is.
_FINETUNED = 1.0
# Accuracies are means of float64, so a loss of exactly the limit may come out a little above it.
_ROUNDING = 1e-9


class Look(NamedTuple):
    """The images' answers at one point.

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
        look_at: The images' answers at a share of the way.
        max_loss: Points of accuracy that may be lost.

    Returns:
        The answers there, and those of the fine-tuned model.
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
def accuracy_by_image(objective: Objective, held_out: Labelled, options: LearningOptions) -> Tensor:
    """Which images the current weights recognise, (images,), float64 on the CPU."""
    images, classifier = held_out
    objective.announce_work(FORWARD * len(images))
    prompts, columns = classifier.draw(images.labels, objective.seed, _PROMPTS_A_LOOK)
    device = objective.path.device
    with in_precision(device, options.precision):
        classes = classifier.class_features(*prompts)
        features = objective.embed(images.pixels.to(device))
    logits = classifier.logits(features, classes.float())
    finite_scores(logits, f"held-out images, with measure.precision={options.precision}")
    right = (logits.argmax(-1).cpu() == columns.cpu()).double()
    broadcast_(objective.context, right)
    objective.count_work(FORWARD * len(images))
    return right


def accuracies_on_val(objective: Objective, options: LearningOptions) -> Tensor:
    """Accuracy by image of ``objective.val`` at the current weights, (images,); every class counts
    the same, so that none is given up for the others.
    """
    assert objective.val is not None
    right = accuracy_by_image(objective, objective.val, options)
    if objective.val.classifier.compares_images:
        return right
    labels = objective.val.images.labels.tolist()
    return right * torch.from_numpy(class_weights(labels))


def choose(
    objective: Objective, coefficients: Coefficients, options: LearningOptions
) -> BackoffChoice:
    """Move the coefficients to the choice of the images ``objective.val``.

    If nothing between the learned and the fine-tuned point keeps the accuracy, they become the
    fine-tuned model's.
    """
    learned = coefficients.distance() or 1.0

    def look_at(backoff: float) -> Look:
        coefficients.place(backoff)
        distance = coefficients.distance(backoff) / learned
        accuracies = accuracies_on_val(objective, options)
        return Look(backoff, distance, accuracies)

    chosen, finetuned = choose_backoff(look_at, options.max_loss)
    coefficients.back_off(chosen.backoff)
    return BackoffChoice(
        images=len(chosen.accuracies),
        backoff=chosen.backoff,
        accuracy=float(chosen.accuracies.mean()),
        finetuned_accuracy=float(finetuned.accuracies.mean()),
    )


@dataclass(frozen=True)
class LearningResult:
    """The result of learning.

    Attributes:
        trace: Mean cross-entropy and mean distillation loss of each step.
        choice: The choice of the held-out images; ``None`` if none are held out.
    """

    trace: list[list[float]]
    choice: BackoffChoice | None = None


def learn(
    objective: Objective,
    coefficients: Coefficients,
    options: LearningOptions,
    *,
    units: Mapping[str, float] | None = None,
) -> LearningResult:
    """Learn coefficients, and move them to the choice of the images ``objective.val``, if any.

    Args:
        objective: Left at the chosen coefficients.
        coefficients: Changed in place.
        options: How to learn and choose.
        units: See `train`.
    """
    trace = train(objective, coefficients, options, units)
    if objective.val is None:
        return LearningResult(trace)
    choice = choose(objective, coefficients, options)
    coefficients.place()
    return LearningResult(trace, choice)
