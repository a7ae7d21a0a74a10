"""The goal of learning: calibration loss of fresh views plus divergence from a teacher on changed copies.

The teacher is the zero-shot model, or its predictions blended with the fine-tuned model's. With unlabelled images, half
of the changed copies are replaced by them, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from clipmerge.calibration.augmentation import KINDS, augmented, viewed
from clipmerge.calibration.objective import FORWARD, Objective
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

    def copy_count(self, images: int) -> int:
        """Number of changed copies for a number of images."""
        if not self.divergence_weight:
            return 0
        return images if self.copies is None else min(images, self.copies)

    def unlabelled_count(self, images: int) -> int:
        """Number of unlabelled images among the changed copies if there are any: half of them, rounded down."""
        return self.copy_count(images) // 2

    def picture_count(self, images: int) -> int:
        """Number of pictures in the goal for a number of images: views and changed copies."""
        return images + self.copy_count(images)

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
        accuracy: Share of the views that are recognised.
    """

    calibration: float
    divergence: float
    accuracy: float = 0.0


@dataclass(frozen=True)
class Pictures:
    """Pictures that a process sends through the model in a step, or a piece of them.

    Attributes:
        pixels: Views first and changed copies after them, (views + copies, 3, height, width).
        labels: Labels of the views, among the classes of the step.
        target: The teacher's log probabilities for the copies, if needed.
        features: The zero-shot model's features of the copies, if needed.
        step_views: Number of views in the whole step.
        step_copies: Number of changed copies in the whole step.
    """

    pixels: Tensor
    labels: Tensor
    target: Tensor | None
    features: Tensor | None
    step_views: int
    step_copies: int

    def pieces(self, at_once: int | None) -> Iterator[Pictures]:
        """Split into pieces of about ``at_once`` pictures, sometimes one more, with their part of views and copies."""
        count = math.ceil(len(self.pixels) / at_once) if at_once else 1
        count = min(count, max(len(self.labels), len(self.pixels) - len(self.labels)))  # or pieces would be empty
        if count <= 1:
            yield self
            return
        views = self.pixels[: len(self.labels)].tensor_split(count)
        copies = self.pixels[len(self.labels) :].tensor_split(count)
        labels = self.labels.tensor_split(count)
        target, features = (_split(values, count) for values in (self.target, self.features))
        for place, pixels in enumerate(zip(views, copies, strict=True)):
            teacher = target[place], features[place]
            yield Pictures(torch.cat(pixels), labels[place], *teacher, self.step_views, self.step_copies)


def _split(values: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if values is None else values.tensor_split(count)


def make_pictures(step: Step, goal: Goal) -> Pictures:
    """Make this process's pictures of a step."""
    batch = step.batch
    pixels = viewed(batch.pixels, step.seed + 1, goal.views)[step.own_rows]
    copies = goal.copy_count(len(batch))
    if copies:
        pixels = torch.cat([pixels, make_copies(step, goal, batch.pixels)])
    labels = batch.labels[step.own_rows]
    if step.classes is not None:
        labels = torch.searchsorted(step.classes.to(labels.device), labels)
    return Pictures(pixels, labels, step.target, step.features, len(batch), copies)


def make_copies(step: Step, goal: Goal, pixels: Tensor) -> Tensor:
    """Make this process's images of the divergence: changed copies, then unlabelled images, unchanged.

    Args:
        step: The step.
        goal: The goal with its changes.
        pixels: The step's images, (images, 3, height, width).
    """
    copies, unlabelled = goal.copy_count(len(step)), step.unlabelled
    if not unlabelled:
        return augmented(pixels[:copies], step.seed, goal.changes)[step.own_rows]
    changed = augmented(pixels[: copies - len(unlabelled)], step.seed, goal.changes)
    return torch.cat([changed, unlabelled.pixels])[step.own_rows]


@torch.no_grad()
def with_teacher_targets(objective: Objective, steps: Sequence[Step], goal: Goal, *, cached: bool) -> list[Step]:
    """Add the teacher's predictions or features for the changed images to every step.

    Leaves the objective at theta_0, or at theta_1 if the teacher is blended; for ``cached`` see
    `CalibrationLoss.class_features`.
    """
    completed = list(steps)
    for alpha in goal.teachers:
        objective.path.move_to(alpha)
        share = goal.blend if alpha else 1 - goal.blend
        for place, step in enumerate(completed):
            completed[place] = _with_teacher(objective, step, goal, share, cached=cached)
            objective.work.tick(FORWARD * goal.copy_count(len(step)) * step.work_share)
    return completed


def _with_teacher(objective: Objective, step: Step, goal: Goal, share: float, *, cached: bool) -> Step:
    """Add one model's features, or its share of the teacher's probabilities."""
    pixels = make_copies(step, goal, step.batch.pixels)
    with passes(pixels.device, goal.precision):
        features = objective.criterion.embed(pixels)
        classes = objective.criterion.class_features(step.classes, step.templates, cached=cached)
    if goal.divergence == "features":
        return replace(step, features=features.float())
    own = objective.criterion.class_logits(features.float(), classes.float()).log_softmax(-1)
    if share == 1:
        return replace(step, target=own)
    own = own + math.log(share)
    return replace(step, target=own if step.target is None else torch.logaddexp(step.target, own))


def goal_at(objective: Objective, step: Step, goal: Goal, *, cached: bool = False) -> tuple[Tensor, Losses]:
    """Compute the goal at the current weights, a scalar, and its parts; those of all processes add up.

    For ``cached`` see `CalibrationLoss.class_features`.
    """
    pictures = make_pictures(step, goal)
    classes = _class_features(objective, step, goal, pictures.pixels.device, cached=cached)
    return _goal_of(objective, goal, pictures, classes)


def _class_features(
    objective: Objective, step: Step, goal: Goal, device: torch.device, *, cached: bool = False
) -> Tensor:
    with passes(device, goal.precision):
        return objective.criterion.class_features(step.classes, step.templates, cached=cached).float()


def _goal_of(objective: Objective, goal: Goal, pictures: Pictures, classes: Tensor) -> tuple[Tensor, Losses]:
    """The part of the goal that pictures contribute, and its parts: those of all pieces add up.

    Args:
        objective: Calibration loss.
        goal: The goal to compute.
        pictures: The pictures.
        classes: Features of the step's classes, (classes, projection_dim).
    """
    with passes(pictures.pixels.device, goal.precision):
        features = objective.criterion.embed(pictures.pixels)
    views, copies = features.float().tensor_split([len(pictures.labels)])
    logits = objective.criterion.class_logits(views, classes)
    share = len(views) / pictures.step_views
    # a piece may have no views, whose mean would not be finite
    calibration = cross_entropy(logits, pictures.labels) * share if len(views) else logits.sum()
    divergence = _divergence(objective, pictures, copies, classes) * (len(copies) / max(pictures.step_copies, 1))
    right = logits.detach().argmax(1) == pictures.labels
    accuracy = float(right.double().mean() * share) if len(views) else 0.0
    losses = Losses(float(calibration.detach()), float(divergence.detach()), accuracy)
    return calibration + goal.divergence_weight * divergence, losses


def _divergence(objective: Objective, pictures: Pictures, copies: Tensor, classes: Tensor) -> Tensor:
    if len(copies) and pictures.features is not None:
        return 1 - (copies * pictures.features).sum(-1).mean()
    if len(copies) and pictures.target is not None:
        own = objective.criterion.class_logits(copies, classes).log_softmax(-1)
        return kl_div(own, pictures.target, reduction="batchmean", log_target=True)
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
        sums = _backpropagate(objective, step, goal, at_once, last)
    if step.shard[1] > 1:
        objective.shares.add_up(sums)
    losses = Losses(*sums.tolist())
    if not math.isfinite(losses.calibration + losses.divergence):
        raise MeasureError(f"the loss of calibration batch {step.number} is not finite; check the checkpoints")
    return losses


def _backpropagate(
    objective: Objective,
    step: Step,
    goal: Goal,
    at_once: int | None,
    last: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Backpropagate through all pieces, and return the sums of their losses, float64."""
    pictures = make_pictures(step, goal)
    classes = _class_features(objective, step, goal, pictures.pixels.device)
    leaf = classes.detach().requires_grad_(classes.requires_grad)
    sums = torch.zeros(len(fields(Losses)), dtype=torch.float64)
    pieces = pictures.pieces(at_once)
    piece = next(pieces)
    for following in pieces:
        loss, losses = _goal_of(objective, goal, piece, leaf)
        loss.backward()  # type: ignore[no-untyped-call]
        sums += torch.tensor(astuple(losses), dtype=torch.float64)
        piece = following
    loss, losses = _goal_of(objective, goal, piece, classes)
    # one pass for both: a weight that both towers share gets its whole gradient in it
    roots, gradients = ([loss], [None]) if leaf.grad is None else ([loss, classes], [None, leaf.grad])
    with last():
        torch.autograd.backward(roots, gradients)
    return sums + torch.tensor(astuple(losses), dtype=torch.float64)
