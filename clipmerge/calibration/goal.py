"""The goal of learning: calibration loss of fresh views plus divergence from a teacher on changed copies.

With unlabelled images, half of the changed copies are replaced by them, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from clipmerge.calibration.augmentation import KINDS, augmented, viewed
from clipmerge.calibration.objective import Objective
from clipmerge.calibration.steps import Step
from clipmerge.errors import MeasureError
from clipmerge.models.precision import Precision, casts_repeated, passes
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
        copies: Maximum number of images per step with a changed copy; ``None`` for all.
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


@dataclass(frozen=True)
class Pictures:
    """Pictures that a process sends through the model in a step, or a piece of them.

    Attributes:
        pixels: Views first and changed copies after them, (views + copies, 3, height, width).
        labels: Labels of the views, among the classes of the step.
        target: The teacher's log probabilities for the copies, if needed.
        features: The zero-shot model's features of the copies, if needed.
        images: Views of the whole step.
        copied: Changed copies of the whole step.
    """

    pixels: Tensor
    labels: Tensor
    target: Tensor | None
    features: Tensor | None
    images: int
    copied: int

    def pieces(self, at_once: int | None) -> Iterator[Pictures]:
        """Split into pieces, each with its part of the views and of the copies.

        Args:
            at_once: Pictures per piece, sometimes one more; at least one. ``None`` for one piece.
        """
        count = math.ceil(len(self.pixels) / at_once) if at_once else 1
        count = min(count, max(len(self.labels), len(self.pixels) - len(self.labels)))  # or pieces would be empty
        if count <= 1:
            yield self
            return
        views = self.pixels[: len(self.labels)].tensor_split(count)
        copies = self.pixels[len(self.labels) :].tensor_split(count)
        labels = self.labels.tensor_split(count)
        target, features = (_split(each, count) for each in (self.target, self.features))
        for place, pixels in enumerate(zip(views, copies, strict=True)):
            answers = target[place], features[place]
            yield Pictures(torch.cat(pixels), labels[place], *answers, self.images, self.copied)


def _split(values: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if values is None else values.tensor_split(count)


def pictures_of(step: Step, goal: Goal) -> Pictures:
    """Make this process's pictures of a step.

    Args:
        step: Images, classes and seed of the step.
        goal: The goal with its changes.
    """
    batch = step.batch
    pixels = viewed(batch.pixels, step.seed + 1, goal.views)[step.own]
    copied = goal.copied(len(batch))
    if copied:
        pixels = torch.cat([pixels, copies_of(step, goal, batch.pixels)])
    labels = batch.labels[step.own]
    if step.classes is not None:
        labels = torch.searchsorted(step.classes.to(labels.device), labels)
    return Pictures(pixels, labels, step.target, step.features, len(batch), copied)


def goal_at(objective: Objective, step: Step, goal: Goal, *, kept: bool = False) -> tuple[Tensor, Losses]:
    """Compute the goal at the current weights.

    Args:
        objective: Calibration loss.
        step: Images, classes and seed of the step.
        goal: The goal to compute.
        kept: See `Objective.class_features`.

    Returns:
        The goal, a scalar, and its parts, for this process's share of the images; those of all processes add up.
    """
    shown = pictures_of(step, goal)
    return _goal_of(objective, goal, shown, _classes(objective, step, goal, shown.pixels.device, kept=kept))


def _classes(objective: Objective, step: Step, goal: Goal, device: torch.device, *, kept: bool = False) -> Tensor:
    with passes(device, goal.precision):
        return objective.criterion.class_features(step.classes, step.templates, kept=kept).float()


def _goal_of(objective: Objective, goal: Goal, shown: Pictures, classes: Tensor) -> tuple[Tensor, Losses]:
    """The part of the goal that pictures contribute, and its parts: those of all pieces add up.

    Args:
        objective: Calibration loss.
        goal: The goal to compute.
        shown: The pictures.
        classes: Features of the step's classes, (classes, projection_dim).
    """
    with passes(shown.pixels.device, goal.precision):
        features = objective.criterion.embed(shown.pixels)
    views, copies = features.float().tensor_split([len(shown.labels)])
    logits = objective.criterion.class_logits(views, classes)
    own = len(views) / shown.images
    # a piece may have no views, whose mean would not be finite
    calibration = cross_entropy(logits, shown.labels) * own if len(views) else logits.sum()
    divergence = _divergence(objective, shown, copies, classes) * (len(copies) / max(shown.copied, 1))
    right = float((logits.detach().argmax(1) == shown.labels).double().mean() * own) if len(views) else 0.0
    seen = Losses(float(calibration.detach()), float(divergence.detach()), right)
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


def _divergence(objective: Objective, shown: Pictures, copies: Tensor, classes: Tensor) -> Tensor:
    if len(copies) and shown.features is not None:
        return 1 - (copies * shown.features).sum(-1).mean()
    if len(copies) and shown.target is not None:
        own = objective.criterion.class_logits(copies, classes).log_softmax(-1)
        return kl_div(own, shown.target, reduction="batchmean", log_target=True)
    return torch.zeros((), device=classes.device)


def descend(
    objective: Objective,
    step: Step,
    goal: Goal,
    *,
    at_once: int | None = None,
    last: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Losses:
    """Compute the goal's gradient at the current weights in ``parameter.grad``.

    Gradients of pieces of the pictures add up. The class features are computed once, and backpropagated through the
    text tower once, together with the last piece.

    Args:
        objective: Calibration loss.
        step: Images, classes and seed of the step.
        goal: The goal to compute.
        at_once: Pictures whose activations are held at once; ``None`` for all.
        last: Makes a context for the last backward pass, after which ``parameter.grad`` has the sum.

    Returns:
        The parts of the goal. If processes share the step, the parts are those of all processes, and the gradient that
        of this process's images.

    Raises:
        MeasureError: If a loss is not finite.
    """
    with casts_repeated():
        parts = _taken_back(objective, step, goal, at_once, last)
    if step.share[1] > 1:
        objective.shares.add_up(parts)
    seen = Losses(*parts.tolist())
    if not math.isfinite(seen.calibration + seen.divergence):
        raise MeasureError(f"the loss of calibration batch {step.number} is not finite; check the checkpoints")
    return seen


def _taken_back(
    objective: Objective,
    step: Step,
    goal: Goal,
    at_once: int | None,
    last: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Backpropagate through all pieces, and return the sums of their losses, float64."""
    shown = pictures_of(step, goal)
    classes = _classes(objective, step, goal, shown.pixels.device)
    leaf = classes.detach().requires_grad_(classes.requires_grad)
    sums = torch.zeros(len(fields(Losses)), dtype=torch.float64)
    pieces = shown.pieces(at_once)
    piece = next(pieces)
    for following in pieces:
        loss, seen = _goal_of(objective, goal, piece, leaf)
        loss.backward()  # type: ignore[no-untyped-call]
        sums += torch.tensor(astuple(seen), dtype=torch.float64)
        piece = following
    loss, seen = _goal_of(objective, goal, piece, classes)
    # one pass for both: a weight that both towers share gets its whole gradient in it
    roots, gradients = ([loss], [None]) if leaf.grad is None else ([loss, classes], [None, leaf.grad])
    with last():
        torch.autograd.backward(roots, gradients)
    return sums + torch.tensor(astuple(seen), dtype=torch.float64)
