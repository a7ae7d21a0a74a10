"""Let images that learning never saw choose how far to go from what was learned towards the
fine-tuned model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipmerge.distributed import all_reduce_
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.train import Training, draw_prompts, local_rows
from clipmerge.models.precision import passes
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.stats import class_weights, paired_mean_and_error

#: Shares of the way from the learned point to the fine-tuned model that are tried, in order.
BACKOFFS = tuple(tenth / 10 for tenth in range(10))
# Prompts that a look at the images embeds at most; looks are rare, so more than a step's.
_PROMPTS_A_LOOK = 1024
# Accuracies are means of float64, so a loss of exactly the limit may come out a little above it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Loss:
    """Accuracy lost against the fine-tuned model on the same images, and its standard error.

    Few images on which the two never differ prove little, so Agresti and Min's images are added;
    the nearer a point is to the fine-tuned model, the fewer of them differ, too.
    """

    mean: float
    error: float

    @classmethod
    def between(cls, accuracies: Tensor, finetuned: Tensor, distance: float) -> Loss:
        """Compare a point with the fine-tuned model, both (images,), at a distance from it in units
        of the learned point's.
        """
        return cls(*paired_mean_and_error(finetuned - accuracies, distance))

    def is_within(self, max_loss: float) -> bool:
        """Whether the loss and its standard error together are at most ``max_loss`` points."""
        return self.mean + self.error <= max_loss / 100 + _ROUNDING


def choose_backoff(
    accuracy_at: Callable[[float], tuple[Tensor, float]], finetuned: Tensor, max_loss: float
) -> tuple[float | None, Tensor, float]:
    """Find the least share of the way to the fine-tuned model that keeps enough accuracy.

    Args:
        accuracy_at: Accuracy by image, (images,), at a share of the way, and the distance of
            `Loss.between`.
        finetuned: Accuracy by image of the fine-tuned model, (images,).
        max_loss: Points of accuracy that may be lost, standard error included.

    Returns:
        The share, ``None`` if only the fine-tuned model keeps enough; accuracy by image and the
        distance there.
    """
    for backoff in BACKOFFS:
        accuracies, distance = accuracy_at(backoff)
        if Loss.between(accuracies, finetuned, distance).is_within(max_loss):
            return backoff, accuracies, distance
    return None, finetuned, 0.0


@torch.no_grad()
def accuracies_on_val(objective: Objective, options: Training) -> Tensor:
    """Which images of ``objective.val`` the current weights recognise, (images,), float64 on the
    CPU; every class counts the same, so that none is given up for the others.
    """
    val, classifier = objective.val, objective.classifier
    assert val is not None
    objective.announce_work(FORWARD * len(val))
    prompts, columns = draw_prompts(classifier, val.labels, objective.seed, _PROMPTS_A_LOOK)
    right = torch.zeros(len(val), device=objective.path.device)
    rows = torch.arange(len(val), device=right.device)[local_rows(objective)]
    if len(rows):
        with passes(right.device, options.precision):
            classes = classifier.class_features(*prompts)
            features = objective.embed(val.pixels[rows])
        logits = classifier.logits(features, classes.float())
        right[rows] = (logits.argmax(-1) == columns[rows]).float()
    if len(rows) < len(val):
        all_reduce_(objective.context, right)
    objective.tick(FORWARD * len(val))
    found = right.cpu().double()
    if classifier.compares_images:
        return found
    return found * torch.from_numpy(class_weights(val.labels.tolist()))


def choose(
    objective: Objective, coefficients: Coefficients, options: Training, *, max_loss: float
) -> HeldBackChoice:
    """Move the coefficients to the choice of the images ``objective.val``.

    If nothing between the learned and the fine-tuned point keeps the accuracy, they become the
    fine-tuned model's.
    """
    learned = coefficients.distance() or 1.0

    def accuracy_at(backoff: float) -> tuple[Tensor, float]:
        coefficients.place(backoff)
        distance = coefficients.distance(backoff) / learned
        return accuracies_on_val(objective, options), distance

    objective.path.set_alpha(1.0)
    finetuned = accuracies_on_val(objective, options)
    backoff, accuracies, distance = choose_backoff(accuracy_at, finetuned, max_loss)
    if backoff is None:
        coefficients.fill(1.0)
    else:
        coefficients.take(backoff)
    return HeldBackChoice(
        images=len(finetuned),
        training_images=len(objective.images),
        alpha=1.0 if backoff is None else None,
        extrapolation=1.0 if backoff is None else backoff,
        accuracy=float(accuracies.mean()),
        finetuned_accuracy=float(finetuned.mean()),
        loss_error=Loss.between(accuracies, finetuned, distance).error,
        distill_target=options.distill,
    )
