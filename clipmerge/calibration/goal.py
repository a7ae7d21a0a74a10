"""The goal of learning: calibration loss of fresh views plus divergence from a teacher on changed copies.

With unlabelled images, half of the changed copies are replaced by them, unchanged.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from clipmerge.calibration.augmentation import KINDS, augmented, viewed
from clipmerge.calibration.objective import Objective
from clipmerge.calibration.steps import Step
from clipmerge.errors import MeasureError
from clipmerge.models.precision import Precision, passes
from clipmerge.plugins import Augmentation

Divergence = Literal["predictions", "features"]


@dataclass(frozen=True)
class Goal:
    """Calibration loss + divergence_weight * divergence from the teacher.

    Attributes:
        divergence_weight: 0 for the calibration loss alone.
        changes: Kinds of change applied to the images of the divergence; empty for unchanged images.
        divergence: ``predictions``: KL divergence from the teacher's predictions, in nats; ``features``: one minus the
            cosine to the zero-shot model's image features.
        views: Strength of the small changes to the images of the calibration loss; 0 for unchanged images.
        blend: Share of the fine-tuned model's predictions in the teacher's; the rest is the zero-shot model's.
        copies: Most images per step with a changed copy; ``None`` for all.
        precision: Precision of the forward passes.
    """

    divergence_weight: float
    changes: tuple[Augmentation, ...] = KINDS
    divergence: Divergence = "predictions"
    views: float = 0.0
    blend: float = 0.0
    copies: int | None = None
    precision: Precision = "float32"

    def copied(self, images: int) -> int:
        """Number of changed copies for a number of images."""
        if not self.divergence_weight:
            return 0
        return images if self.copies is None else min(images, self.copies)

    def unlabelled(self, images: int) -> int:
        """Number of unlabelled images among the changed copies if there are any: half of them, rounded down."""
        return self.copied(images) // 2

    def seen(self, images: int) -> int:
        """Number of pictures in the goal for a number of images: views and changed copies."""
        return images + self.copied(images)

    @property
    def teachers(self) -> tuple[float, ...]:
        """Alphas of the models that the teacher consists of."""
        if not self.divergence_weight:
            return ()
        if self.divergence == "features":
            return (0.0,)
        return tuple(alpha for alpha, share in ((0.0, 1 - self.blend), (1.0, self.blend)) if share)


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        calibration: Cross-entropy, in nats.
        divergence: Divergence from the teacher.
        right: Share of the views that are recognised.
    """

    calibration: float
    divergence: float
    right: float = 0.0


def goal_at(objective: Objective, step: Step, goal: Goal, *, kept: bool = False) -> tuple[Tensor, Losses]:
    """Compute the goal at the current weights.

    Args:
        objective: Calibration loss.
        step: Images, classes and seed of the step.
        goal: The goal to compute.
        kept: See `Objective.class_features`.

    Returns:
        The goal, a scalar, and its parts; of this process's share of the images, so that all processes' add up.
    """
    batch = step.batch
    pixels = viewed(batch.pixels, step.seed + 1, goal.views)[step.own]
    copied = goal.copied(len(batch))
    if copied:
        pixels = torch.cat([pixels, copies_of(step, goal, batch.pixels)])
    with passes(batch.pixels.device, goal.precision):
        classes = objective.class_features(step.classes, step.templates, kept=kept)
        features = objective.embed(pixels)
    classes, features = classes.float(), features.float()
    labels = batch.labels[step.own]
    if step.classes is not None:
        labels = torch.searchsorted(step.classes.to(labels.device), labels)
    logits = objective.class_logits(features[: len(labels)], classes)
    own = len(labels) / len(batch)
    calibration = cross_entropy(logits, labels) * own
    copies = features[len(labels) :]
    divergence = _divergence(objective, step, goal, copies, classes) * (len(copies) / max(copied, 1))
    right = (logits.detach().argmax(1) == labels).double().mean() * own
    seen = Losses(float(calibration.detach()), float(divergence.detach()), float(right))
    return calibration + goal.divergence_weight * divergence, seen


def copies_of(step: Step, goal: Goal, pixels: Tensor) -> Tensor:
    """Make the images of the divergence: changed copies of the step's images, then unlabelled images, unchanged.

    Args:
        step: The step.
        goal: The goal with its changes.
        pixels: The step's images, (images, 3, height, width).

    Returns:
        This process's share of them, (copies, 3, height, width).
    """
    copied, unlabelled = goal.copied(len(step)), step.unlabelled
    if not unlabelled:
        return augmented(pixels[:copied], step.seed, goal.changes)[step.own]
    changed = augmented(pixels[: copied - len(unlabelled)], step.seed, goal.changes)
    return torch.cat([changed, unlabelled.pixels])[step.own]


def _divergence(objective: Objective, step: Step, goal: Goal, features: Tensor, classes: Tensor) -> Tensor:
    if goal.divergence == "features" and step.features is not None:
        return 1 - (features * step.features).sum(-1).mean()
    if step.target is None:
        return torch.zeros((), device=classes.device)
    own = objective.class_logits(features, classes).log_softmax(-1)
    return kl_div(own, step.target, reduction="batchmean", log_target=True)


def descend(objective: Objective, step: Step, goal: Goal) -> Losses:
    """Compute the goal's gradient at the current weights in ``parameter.grad``.

    Args:
        objective: Calibration loss.
        step: Images, classes and seed of the step.
        goal: The goal to compute.

    Returns:
        The parts of the goal; where processes share the step, of all of them, and the gradient of this one's images.

    Raises:
        MeasureError: If a loss is not finite.
    """
    loss, seen = goal_at(objective, step, goal)
    loss.backward()  # type: ignore[no-untyped-call]
    if step.share[1] > 1:
        parts = torch.tensor(astuple(seen), dtype=torch.float64)
        objective.add_up(parts)
        seen = Losses(*parts.tolist())
    if not math.isfinite(seen.calibration + seen.divergence):
        raise MeasureError(f"the loss of calibration batch {step.number} is not finite; check the checkpoints")
    return seen
