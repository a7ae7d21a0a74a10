"""The goal of learning: cross-entropy of fresh views, plus the divergence of changed copies from
the zero-shot model.

With unlabelled images, half of the changed copies are replaced by them, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from clipmerge.distributed import to_device
from clipmerge.errors import MeasureError
from clipmerge.images.batches import Batch
from clipmerge.learning.augmentation import KINDS, augmented, viewed
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.path import DEFAULT_ALPHA
from clipmerge.learning.steps import Step, Targets
from clipmerge.models.precision import Precision, casts_repeated, passes
from clipmerge.plugins import Augmentation

Divergence = Literal["both", "predictions", "features", "path-features"]
# Weights of the divergence of predictions and of one minus the cosine of features. A cosine differs
# less than predictions do, and features of the path's middle less than those of its end: with these
# weights one `robustness` serves all.
_WEIGHTS: dict[Divergence, tuple[float, float]] = {
    "both": (0.5, 2.0),
    "predictions": (1.0, 0.0),
    "features": (0.0, 2.0),
    "path-features": (0.0, 4.0),
}
# Limit on the pictures that are kept, in bytes: less than the activations of a step, which come
# later.
_PICTURE_BYTES = 1 << 30


@dataclass(frozen=True)
class Goal:
    """Calibration loss + weight * divergence from the zero-shot model.

    Attributes:
        robustness: Weight of the divergence; 0 for the calibration loss alone.
        changes: Kinds of change applied to the images of the divergence; empty for unchanged
            images.
        divergence: ``predictions``: KL divergence from the zero-shot model's predictions, in nats;
            ``features``: one minus the cosine to its image features, twice; ``path-features``: four
            times one minus the cosine to the mean of its features and those of the middle of the
            path; ``both``: half of ``predictions`` and half of ``path-features``.
        views: Strength of the small changes to the images of the calibration loss; 0 for unchanged
            images.
        copies: Maximum number of images per step with a changed copy; ``None`` for all.
        precision: Precision of the forward passes.
    """

    robustness: float
    changes: tuple[Augmentation, ...] = KINDS
    divergence: Divergence = "predictions"
    views: float = 0.0
    copies: int | None = None
    precision: Precision = "float32"

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the divergences of predictions and of features within the divergence."""
        return _WEIGHTS[self.divergence]

    @property
    def teachers(self) -> tuple[float, ...]:
        """Alphas of the points whose mean features, and of the first also predictions, teach."""
        if not self.robustness:
            return ()
        return (0.0, DEFAULT_ALPHA) if self.divergence in ("both", "path-features") else (0.0,)

    def copy_count(self, images: int) -> int:
        """Number of changed copies for a number of images."""
        if not self.robustness:
            return 0
        return images if self.copies is None else min(images, self.copies)

    def unlabelled_count(self, images: int) -> int:
        """Number of unlabelled images among the changed copies if there are any: half of them,
        rounded down.
        """
        return self.copy_count(images) // 2

    def picture_count(self, images: int) -> int:
        """Number of pictures in the goal for a number of images: views and changed copies."""
        return images + self.copy_count(images)


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        calibration: Cross-entropy of the views, in nats.
        divergence: Divergence from the zero-shot model.
        accuracy: Share of the views that are recognised.
    """

    calibration: float
    divergence: float
    accuracy: float


@dataclass(frozen=True)
class Pictures:
    """Pictures that a process sends through the model in a step, or a piece of them.

    Attributes:
        pixels: Views first and changed copies after them, (views + copies, 3, height, width).
        labels: Labels of the views, among the classes of the step.
        targets: `Step.targets` for the copies; ``None`` if nothing is distilled.
    """

    pixels: Tensor
    labels: Tensor
    targets: Targets | None

    def pieces(self, at_once: int | None) -> Iterator[Pictures]:
        """Split into pieces of about ``at_once`` pictures, sometimes one more, with their part of
        views and copies.
        """
        count = math.ceil(len(self.pixels) / at_once) if at_once else 1
        count = min(
            count, max(len(self.labels), len(self.pixels) - len(self.labels))
        )  # or pieces would be empty
        if count <= 1:
            yield self
            return
        views, copies = self.pixels.tensor_split([len(self.labels)])
        split: Sequence[Targets | None] = (
            [None] * count if self.targets is None else self.targets.tensor_split(count)
        )
        parts = (part.tensor_split(count) for part in (views, copies, self.labels))
        for own_views, own_copies, labels, targets in zip(*parts, split, strict=True):
            yield replace(
                self, pixels=torch.cat([own_views, own_copies]), labels=labels, targets=targets
            )


def make_pictures(step: Step, goal: Goal) -> Pictures:
    """Make this process's pictures of a step."""
    views = views_alone(step, goal)
    return replace(
        views,
        pixels=torch.cat([views.pixels, copies_alone(step, goal)]),
        targets=step.targets,
    )


def views_alone(step: Step, goal: Goal) -> Pictures:
    """This process's views of a step."""
    batch, pixels = step.batch, step.pixels
    if pixels is None:
        pixels = viewed(batch.pixels, step.seed + 1, goal.views, len(step), step.own_rows)
    return Pictures(pixels[: len(batch)], _labels(step, batch), None)


def copies_alone(step: Step, goal: Goal) -> Tensor:
    """This process's images of the divergence: changed copies, then unlabelled images,
    unchanged.
    """
    batch = step.batch
    if step.pixels is not None:
        return step.pixels[len(batch) :]
    changed = goal.copy_count(len(step)) - (
        len(step.unlabelled.positions) if step.unlabelled else 0
    )
    own = range(goal.copy_count(len(step)))[step.own_rows]
    count = sum(row < changed for row in own)
    copies = batch.pixels[:count]
    if count:
        copies = augmented(copies, step.seed, goal.changes, changed, step.own_rows)
    if step.unlabelled and count < len(own):
        copies = torch.cat([copies, step.unlabelled.pixels([row - changed for row in own[count:]])])
    return copies


def with_pictures(objective: Objective, steps: Sequence[Step], goal: Goal) -> list[Step]:
    """Make pictures once for all passes that need them, until they fill the memory meant for them.

    A card, which has less memory and makes them faster, makes them again.
    """
    room = _PICTURE_BYTES if objective.shares.context.device.type == "cpu" else 0
    found = []
    for step in steps:
        pixels = make_pictures(step, goal).pixels if room > 0 else None
        room -= 0 if pixels is None else pixels.nbytes
        found.append(replace(step, pixels=pixels))
    return found


def _labels(step: Step, batch: Batch) -> Tensor:
    """Labels of a step's images among its classes."""
    if step.classes is None:
        return batch.labels
    return torch.searchsorted(to_device(step.classes, batch.labels.device), batch.labels)


def embeds_less_at_once(objective: Objective, steps: Sequence[Step]) -> bool:
    """Whether embedding all prompts once, with fixed weights, costs no more than the steps' own
    prompts.
    """
    return objective.criterion.prompts.count <= own_prompts(objective, steps)


def own_prompts(objective: Objective, steps: Sequence[Step]) -> int:
    """Count the prompts of steps, each with its own classes and templates."""
    classes, templates = objective.criterion.prompts.classes, objective.criterion.prompts.templates
    return sum(
        (classes if step.classes is None else len(step.classes))
        * (templates if step.templates is None else len(step.templates))
        for step in steps
    )


@torch.no_grad()
def with_teacher_targets(objective: Objective, steps: Sequence[Step], goal: Goal) -> list[Step]:
    """Add what is distilled into the changed images to every step.

    Leaves the objective at the last of the `Goal.teachers`.
    """
    steps, cached = list(steps), embeds_less_at_once(objective, steps)
    for alpha in goal.teachers:
        objective.path.move_to(alpha)
        for place, step in enumerate(steps):
            targets = _teacher_targets(objective, step, goal, cached=cached)
            steps[place] = replace(step, targets=targets)
            objective.work.tick(FORWARD * goal.copy_count(len(step)) * step.work_share)
    return steps


def _teacher_targets(objective: Objective, step: Step, goal: Goal, *, cached: bool) -> Targets:
    """What the current weights teach of a step's changed images, beside earlier teachers."""
    features = _features(objective, goal, copies_alone(step, goal))
    predictions_weight, features_weight = goal.weights
    predictions = mean_features = None
    if step.targets is not None:
        predictions, mean_features = step.targets.predictions, step.targets.features
    if predictions_weight and predictions is None:
        classes = class_features(objective, step, goal, cached=cached)
        predictions = objective.criterion.model.logits(features, classes).log_softmax(-1)
    if features_weight:
        part = features / len(goal.teachers)
        mean_features = part if mean_features is None else mean_features + part
    return Targets(predictions, mean_features)


def _features(objective: Objective, goal: Goal, pixels: Tensor) -> Tensor:
    """Embed pictures at the current weights, (pictures, projection_dim), in the goal's
    precision.
    """
    with passes(pixels.device, goal.precision):
        return objective.criterion.embed(pixels).float()


def class_features(objective: Objective, step: Step, goal: Goal, *, cached: bool = False) -> Tensor:
    """Embed a step's classes at the current weights, (classes, projection_dim), in the goal's
    precision.

    For ``cached`` see `CalibrationLoss.class_features`.
    """
    with passes(objective.shares.context.device, goal.precision):
        return objective.criterion.class_features(
            step.classes, step.templates, cached=cached
        ).float()


def terms_of(
    objective: Objective, goal: Goal, pictures: Pictures, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the terms of the goal at the current weights, for classes (classes, projection_dim).

    Returns:
        The cross-entropy of every view, in nats, whether it is recognised, and the divergence of
        every changed copy.
    """
    features = _features(objective, goal, pictures.pixels)
    logits = objective.criterion.model.logits(features, classes)
    views, copies = logits.tensor_split([len(pictures.labels)])
    losses = cross_entropy(views, pictures.labels, reduction="none")
    recognised = views.detach().argmax(1) == pictures.labels
    return losses, recognised, _divergence(goal, features[len(views) :], copies, pictures.targets)


def _divergence(goal: Goal, features: Tensor, logits: Tensor, targets: Targets | None) -> Tensor:
    """Weighted divergence from the targets, (pictures,); 0 without any."""
    divergence = torch.zeros(len(logits), device=logits.device)
    if targets is None:
        return divergence
    predictions_weight, features_weight = goal.weights
    if targets.predictions is not None:
        log_probabilities = logits.log_softmax(-1)
        divergences = kl_div(
            log_probabilities, targets.predictions, reduction="none", log_target=True
        )
        divergence = divergence + predictions_weight * divergences.sum(-1)
    if targets.features is not None:
        divergence = divergence + features_weight * (1 - (features * targets.features).sum(-1))
    return divergence


def _goal_of(
    objective: Objective, step: Step, goal: Goal, pictures: Pictures, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """The part of a step's goal that some of its pictures contribute, and its `Losses` as a tensor:
    parts add up.
    """
    losses, recognised, divergences = terms_of(objective, goal, pictures, classes)
    calibration, divergence = (
        losses.sum() / len(step),
        divergences.sum() / max(goal.copy_count(len(step)), 1),
    )
    parts = torch.stack([calibration.detach(), divergence.detach(), recognised.sum() / len(step)])
    return calibration + goal.robustness * divergence, parts


def backpropagate(
    objective: Objective,
    step: Step,
    goal: Goal,
    pictures: Pictures,
    *,
    at_once: int | None = None,
    last: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Compute this process's part of the goal's gradient at the current weights in
    ``parameter.grad``.

    Gradients of pieces of the pictures add up. The class features are computed once, and
    backpropagated through the text tower once, together with the last piece.

    Args:
        objective: Calibration loss.
        step: The classes of the step.
        goal: The goal to compute.
        pictures: Result of `make_pictures` for the step.
        at_once: Pictures whose activations are held at once; ``None`` for all.
        last: Makes a context for the last backward pass, after which ``parameter.grad`` has the
            sum.

    Returns:
        The parts of the goal, for `losses_of`; on a card they may still be computed.
    """
    with casts_repeated():
        classes = class_features(objective, step, goal)
        leaf = classes.detach().requires_grad_(classes.requires_grad)
        sums = torch.zeros(len(fields(Losses)), device=classes.device)
        pieces = pictures.pieces(at_once)
        piece = next(pieces)
        for following in pieces:
            loss, losses = _goal_of(objective, step, goal, piece, leaf)
            loss.backward()  # type: ignore[no-untyped-call]
            sums += losses
            piece = following
        loss, losses = _goal_of(objective, step, goal, piece, classes)
        # one pass for both: a weight that both towers share gets its whole gradient in it
        roots, gradients = (
            ([loss], [None]) if leaf.grad is None else ([loss, classes], [None, leaf.grad])
        )
        with last():
            torch.autograd.backward(roots, gradients)
    return sums + losses


def losses_of(objective: Objective, step: Step, sums: Tensor) -> Losses:
    """Read the result of `backpropagate`, over all processes if they share the step.

    Raises:
        MeasureError: If a loss is not finite.
    """
    if step.shard[1] > 1:
        objective.shares.all_reduce_(sums)
    losses = Losses(*sums.tolist())
    if not math.isfinite(losses.calibration + losses.divergence):
        raise MeasureError(
            f"the loss of calibration batch {step.number} is not finite; check the checkpoints"
        )
    return losses
