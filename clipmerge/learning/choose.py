"""Let images that learning never saw choose how far to go from what was learned towards the
fine-tuned model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipmerge.distributed import all_reduce_
from clipmerge.images.batches import Batch
from clipmerge.learning.augment import weak_augment
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.train import Training, draw_prompts, local_rows
from clipmerge.models.precision import passes
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.stats import are_uneven, class_weights, paired_mean_and_error

#: Shares of the way from the learned point to the fine-tuned model that are tried, in order.
BACKOFFS = tuple(tenth / 10 for tenth in range(10))
# Images are shown as altered views several times, up to about this number, but at most so often: a
# few dozen images choose by luck.
_VIEWS, _ROUNDS = 400, 4
# Prompts that a look at the images embeds at most; looks are rare, so more than a step's.
_PROMPTS_A_LOOK = 1024
# Seeds of views start here, above those of all steps.
_SEEDS = 2**40
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


class Judges:
    """Images that judge points of the path. Each counts half as it is and half as altered views.

    Learning makes a merge tolerate altered views better than fine-tuning did, and images as they
    are tell less.
    """

    def __init__(self, objective: Objective, images: Batch, options: Training) -> None:
        """Make the views once."""
        self._objective, self._images, self._options = objective, images, options
        size = options.batch or objective.batch_sizes[0]
        pieces = list(torch.arange(len(images), device=images.pixels.device).split(size))
        rounds = min(_ROUNDS, math.ceil(_VIEWS / max(1, len(images))))
        own = local_rows(objective)
        self._views: list[tuple[Tensor, Tensor]] = []
        for number, at in enumerate(pieces * rounds):
            seed = _SEEDS + 2 * number + 1
            view = weak_augment(images.pixels[at], seed, options.weak_aug)
            self._views.append((at[own], view[own]))
        self._plain = [(at[own], images.pixels[at[own]]) for at in pieces]
        self._prompts, _ = draw_prompts(
            objective.classifier, images.labels, _SEEDS, _PROMPTS_A_LOOK
        )
        labels = images.labels.tolist()
        self._weights = torch.ones(len(labels), dtype=torch.float64)
        if not objective.classifier.compares_images and are_uneven(labels):
            # every class counts the same, so that none is given up for the others
            self._weights = torch.from_numpy(class_weights(labels))

    def accuracies(self) -> Tensor:
        """How often the current weights recognise each image, (images,), float64 on the CPU."""
        work = FORWARD * sum(len(at) for at, _ in (*self._views, *self._plain))
        self._objective.announce_work(work)
        looks = torch.stack([self._look(self._views), self._look(self._plain)])
        self._objective.tick(work)
        return self._weights * looks.mean(0)

    @torch.no_grad()
    def _look(self, pictures: list[tuple[Tensor, Tensor]]) -> Tensor:
        objective, classifier = self._objective, self._objective.classifier
        sums = torch.zeros(2, len(self._images), device=objective.path.device)
        with passes(objective.path.device, self._options.precision):
            classes = None
            if not classifier.compares_images:
                classes = classifier.class_features(*self._prompts).float()
            for at, pixels in pictures:
                if not len(at):
                    continue
                chosen, columns = self._columns(at)
                seen = classifier.class_features(chosen).float() if classes is None else classes
                logits = classifier.logits(objective.embed(pixels), seen)
                right = (logits.argmax(-1) == columns).float()
                sums.index_add_(1, at, torch.stack([right, torch.ones_like(right)]))
        all_reduce_(objective.context, sums)
        return (sums[0] / sums[1]).cpu().double()

    def _columns(self, at: Tensor) -> tuple[Tensor | None, Tensor]:
        labels = self._images.labels[at]
        if self._prompts[0] is None or self._objective.classifier.compares_images:
            return self._objective.classifier.columns(labels)
        return None, torch.searchsorted(self._prompts[0].to(labels.device), labels)


def choose(
    objective: Objective,
    coefficients: Coefficients,
    options: Training,
    *,
    start: float,
    max_loss: float,
) -> HeldBackChoice:
    """Move the coefficients to the choice of the images ``objective.val``.

    If nothing between the learned and the fine-tuned point keeps the accuracy, all images choose an
    alpha of the straight path: it was not learned, so those that learning saw can judge it as well.
    """
    train, val, learned = objective.images, objective.val, coefficients.distance() or 1.0
    assert val is not None

    def let_choose(images: Batch) -> tuple[float | None, Tensor, float, Tensor]:
        judges = Judges(objective, images, options)

        def accuracy_at(backoff: float) -> tuple[Tensor, float]:
            coefficients.place(backoff)
            return judges.accuracies(), coefficients.distance(backoff) / learned

        objective.path.set_alpha(1.0)
        finetuned = judges.accuracies()
        return *choose_backoff(accuracy_at, finetuned, max_loss), finetuned

    backoff, accuracies, distance, finetuned = let_choose(val)
    alpha = None
    if backoff is None:
        coefficients.fill(start)
        pixels = torch.cat([val.pixels, train.pixels])
        both = Batch(0, pixels, torch.cat([val.labels, train.labels]))
        share, accuracies, distance, finetuned = let_choose(both)
        alpha = 1.0 if share is None else start + share * (1 - start)
        coefficients.fill(alpha)
    else:
        coefficients.take(backoff)
    return HeldBackChoice(
        images=len(finetuned),
        training_images=len(train),
        alpha=alpha,
        extrapolation=1.0 if backoff is None else backoff,
        accuracy=float(accuracies.mean()),
        finetuned_accuracy=float(finetuned.mean()),
        loss_error=Loss.between(accuracies, finetuned, distance).error,
        distill_target=options.distill,
    )
