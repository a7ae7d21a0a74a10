"""Let held-out images choose how far to go from what was learned towards the fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from clipmerge.distributed import to_device
from clipmerge.learning.answers import FinetunedAnswers
from clipmerge.learning.learning_loss import (
    LossConfig,
    class_features,
    embeds_less_at_once,
    terms_of,
    weak_pictures,
    with_pictures,
)
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.steps import Step
from clipmerge.stats import are_uneven, class_weights, paired_mean_and_error

#: Shares of the way from the learned point to the fine-tuned model that are tried, in order.
EXTRAPOLATIONS = tuple(tenth / 10 for tenth in range(10))
# Accuracies are means of float64, so a loss of exactly the limit may come out a little above it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class AccuracyLoss:
    """Accuracy lost against the fine-tuned model, as shares of the same images.

    Attributes:
        mean: The estimate.
        error: Its standard error, paired by image.
    """

    mean: float
    error: float

    @classmethod
    def between(cls, accuracies: Tensor, finetuned: Tensor, distance: float = 1.0) -> AccuracyLoss:
        """Compare a point with the fine-tuned model, both (images,).

        Few images on which the two never differ prove little, so Agresti and Min's images are
        added. ``distance`` is how far the point is from the fine-tuned model, in units of the
        learned point's distance: the nearer, the fewer images differ, so of the added ones too.
        """
        return cls(*paired_mean_and_error(finetuned - accuracies, distance))

    def is_within(self, max_loss: float) -> bool:
        """Whether the loss and its standard error together are at most ``max_loss`` points."""
        return self.mean + self.error <= max_loss / 100 + _ROUNDING


def choose_extrapolation(
    point_at: Callable[[float], tuple[Tensor, float]], finetuned: Tensor, max_loss: float
) -> float | None:
    """Find the least share of the way to the fine-tuned model that keeps enough accuracy.

    Args:
        point_at: Share of each image's weak augmentations recognised there, (images,), and the
            distance of `AccuracyLoss.between`; called once for each point, up to the chosen one.
        finetuned: The same share for the fine-tuned model.
        max_loss: Points of accuracy that may be lost, standard error included.

    Returns:
        The share; ``None`` if only the fine-tuned model keeps enough.
    """
    for extrapolation in EXTRAPOLATIONS:
        accuracies, distance = point_at(extrapolation)
        if AccuracyLoss.between(accuracies, finetuned, distance).is_within(max_loss):
            return extrapolation
    return None


class Judges:
    """Images that judge points. Each counts half as it is and half as altered views.

    Learning makes a merge tolerate altered views better than fine-tuning did, and images as they
    are tell less. Without labels the votes are about views, and the fine-tuned model agrees with
    its own on the images too well, so that views alone judge.
    """

    def __init__(
        self,
        objective: Objective,
        steps: Sequence[Step],
        config: LossConfig,
        answers: FinetunedAnswers,
    ) -> None:
        """Make the pictures once; without labels, leave the objective at the fine-tuned model."""
        config = replace(config, distill_weight=0.0)
        looks = [(with_pictures(objective, steps, config), config)]
        if objective.labelled:
            unaltered = replace(config, weak_aug=0.0)
            looks.append((with_pictures(objective, first_round(steps), unaltered), unaltered))
        self._looks = [(answers.with_votes(steps), config) for steps, config in looks]
        self._objective = objective
        self._weights = balance(objective, steps)

    def recognised(self) -> Tensor:
        """What the current weights recognise, as `validate`, times the weights of `balance`."""
        parts = [validate(self._objective, steps, config) for steps, config in self._looks]
        return self._weights * torch.stack(parts).mean(0)


@torch.no_grad()
def validate(objective: Objective, steps: Sequence[Step], config: LossConfig) -> Tensor:
    """Share of each image's weak augmentations that the current weights recognise; without labels,
    the share of the fine-tuned model's votes for their answers.

    Returns:
        Shape (images,), float64 on the CPU, over all processes and the steps that have an image.
    """
    cached = embeds_less_at_once(objective, steps)
    column_of = {key: column for column, key in enumerate(_distinct(steps))}
    recognised_by_step = []
    columns = list[int]()
    for step in steps:
        classes = class_features(objective, step, config, cached=cached)
        recognised_by_step.append(
            terms_of(objective, config, weak_pictures(step, config), classes)[1]
        )
        objective.work.tick(FORWARD * len(step) * step.work_share)
        columns += [column_of[key] for key in step.local_keys]
    recognised = torch.cat(recognised_by_step).float()
    sums = torch.zeros(2, len(column_of), device=recognised.device)
    rows = torch.stack([recognised, torch.ones_like(recognised)])
    sums.index_add_(1, to_device(torch.tensor(columns), recognised.device), rows)
    if any(step.world_size > 1 for step in steps):
        objective.data.all_reduce_(sums)
    return (sums[0] / sums[1]).cpu().double()


def balance(objective: Objective, steps: Sequence[Step]) -> Tensor:
    """Weights of the images, in the order of `validate`: every class counts the same if classes are
    uneven, so that none is given up for the others.

    Returns:
        Shape (images,), float64, of mean 1.
    """
    labels = [images.labels[position] for images, position in _distinct(steps)]
    has_classes = objective.labelled and not objective.criterion.is_contrastive
    if not has_classes or not are_uneven(labels):
        return torch.ones(len(labels), dtype=torch.float64)
    return torch.from_numpy(class_weights(labels))


def first_round(steps: Sequence[Step]) -> list[Step]:
    """The first of the steps, which show every image once."""
    images = len(_distinct(steps))
    counts = list(accumulate(len(step) for step in steps))
    return [step for step, count in zip(steps, counts, strict=True) if count <= images]


def _distinct(steps: Sequence[Step]) -> list[tuple[ShardedBatches, int]]:
    """The images of some steps, in the order in which they first appear."""
    return list(dict.fromkeys(key for step in steps for key in step.keys))
