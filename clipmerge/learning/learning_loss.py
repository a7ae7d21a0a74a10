"""The loss that learning minimises: cross-entropy of weakly augmented images, plus distillation of
the zero-shot model on strongly augmented ones.

With unlabelled images, half of the strongly augmented images are replaced by them, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from clipmerge.distributed import to_device
from clipmerge.errors import MeasureError
from clipmerge.images.batches import Batch
from clipmerge.learning.augmentation import AUGMENTATIONS, strong_augment, weak_augment
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.steps import Step, Targets
from clipmerge.learning.weights import DEFAULT_ALPHA, bucketed
from clipmerge.models.precision import Precision, passes
from clipmerge.plugins import Augmentation

DistillTarget = Literal["both", "predictions", "features", "path-features"]
# Weights of the KL divergence of predictions and of one minus the cosine of features. A cosine
# differs less than predictions do, and features of the path's middle less than those of its end:
# with these weights one `distill_weight` serves all.
_TARGET_WEIGHTS: dict[DistillTarget, tuple[float, float]] = {
    "both": (0.5, 2.0),
    "predictions": (1.0, 0.0),
    "features": (0.0, 2.0),
    "path-features": (0.0, 4.0),
}
# Images that go through a teacher at once on a card, at least, if there are as many.
_TAUGHT_IMAGES = 256
# Limit on the pictures that are kept, in bytes: less than the activations of a step, which come
# later.
_PICTURE_BYTES = 1 << 30


@dataclass(frozen=True)
class LossConfig:
    """Settings of the learning loss: cross-entropy + distill_weight * distillation loss.

    Attributes:
        distill_weight: Weight of the distillation loss; 0 for the cross-entropy alone.
        augmentations: Kinds of strong augmentation; empty to distil on unchanged images.
        distill: Target of distillation. ``predictions``: KL divergence from the zero-shot model's
            predictions, in nats; ``features``: one minus the cosine to its image features, twice;
            ``path-features``: four times one minus the cosine to the mean of its features and those
            of the middle of the path; ``both``: half of ``path-features`` and half of the KL
            divergence from the mean of these two models' probabilities.
        weak_aug: Strength of the weak augmentation of the cross-entropy's images; 0 for unchanged
            images.
        strong_aug: Maximum number of strongly augmented images per step; ``None`` for one of each.
        precision: Precision of the forward passes.
        labelled: Whether images have labels; if not, the fine-tuned model's answers stand in for
            them.
    """

    distill_weight: float
    augmentations: tuple[Augmentation, ...] = AUGMENTATIONS
    distill: DistillTarget = "predictions"
    weak_aug: float = 0.0
    strong_aug: int | None = None
    precision: Precision = "float32"
    labelled: bool = True

    @property
    def target_weights(self) -> tuple[float, float]:
        """Weights of predictions and of features within the distillation loss."""
        return _TARGET_WEIGHTS[self.distill]

    @property
    def teacher_alphas(self) -> tuple[float, ...]:
        """Alphas of the points whose mean predictions and mean features teach."""
        if not self.distill_weight:
            return ()
        return (0.0, DEFAULT_ALPHA) if self.distill in ("both", "path-features") else (0.0,)

    def strong_count(self, images: int) -> int:
        """Number of strongly augmented images for a number of images."""
        if not self.distill_weight:
            return 0
        return images if self.strong_aug is None else min(images, self.strong_aug)

    def unlabelled_count(self, images: int) -> int:
        """Number of unlabelled images that take the place of strongly augmented ones: half of them,
        rounded down.
        """
        return self.strong_count(images) // 2

    def picture_count(self, images: int) -> int:
        """Number of pictures for a number of images: weakly and strongly augmented ones."""
        return images + self.strong_count(images)


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        cross_entropy: Cross-entropy of the weakly augmented images, in nats.
        distillation_loss: Mean over the strongly augmented images, without its weight.
        accuracy: Share of the weakly augmented images that are recognised.
    """

    cross_entropy: float
    distillation_loss: float
    accuracy: float


@dataclass(frozen=True)
class Pictures:
    """Augmented images that a process sends through the model in a step, or a piece of them.

    Attributes:
        pixels: Weakly augmented images, then strongly augmented ones, (weak + strong, 3, height,
            width).
        labels: Labels of the weakly augmented images, among the classes of the step, or
            probabilities of these, (weak, classes).
        targets: `Step.targets` for the strongly augmented ones; ``None`` if nothing is distilled.
    """

    pixels: Tensor
    labels: Tensor
    targets: Targets | None

    def pieces(self, at_once: int | None) -> Iterator[Pictures]:
        """Split into pieces of about ``at_once`` pictures, sometimes one more, with their part of
        weakly and strongly augmented images.
        """
        count = math.ceil(len(self.pixels) / at_once) if at_once else 1
        # or pieces would be empty
        count = min(count, max(len(self.labels), len(self.pixels) - len(self.labels)))
        if count <= 1:
            yield self
            return
        weak, strong = self.pixels.tensor_split([len(self.labels)])
        split: Sequence[Targets | None] = (
            [None] * count if self.targets is None else self.targets.tensor_split(count)
        )
        parts = (part.tensor_split(count) for part in (weak, strong, self.labels))
        for weak_part, strong_part, labels, targets in zip(*parts, split, strict=True):
            yield Pictures(torch.cat([weak_part, strong_part]), labels, targets)


def make_pictures(step: Step, config: LossConfig) -> Pictures:
    """Make this process's pictures of a step."""
    weak, strong = weak_pictures(step, config), strong_pictures(step, config)
    return Pictures(torch.cat([weak.pixels, strong]), weak.labels, step.targets)


def weak_pictures(step: Step, config: LossConfig) -> Pictures:
    """This process's weakly augmented images of a step."""
    batch = step.batch
    pixels = step.pixels
    if pixels is None:
        pixels = weak_augment(
            batch.pixels, step.seed + 1, config.weak_aug, len(step), step.local_rows
        )
    labels = _labels(step, batch) if step.answers is None else step.answers
    return Pictures(pixels[: len(batch)], labels, None)


def strong_pictures(step: Step, config: LossConfig) -> Tensor:
    """This process's images to distil on: strongly augmented ones, then unlabelled ones."""
    batch = step.batch
    if step.pixels is not None:
        return step.pixels[len(batch) :]
    augmented = config.strong_count(len(step)) - len(step.unlabelled)
    rows = range(config.strong_count(len(step)))[step.local_rows]
    count = sum(row < augmented for row in rows)
    pixels = batch.pixels[:count]
    if count:
        pixels = strong_augment(pixels, step.seed, config.augmentations, augmented, step.local_rows)
    if step.unlabelled_images is not None and count < len(rows):
        chosen = [step.unlabelled[row - augmented] for row in rows[count:]]
        pixels = torch.cat([pixels, step.unlabelled_images.select(chosen).pixels])
    return pixels


def with_pictures(objective: Objective, steps: Sequence[Step], config: LossConfig) -> list[Step]:
    """Make pictures once for all passes that need them, until they fill the memory meant for them.

    A card, which has less memory and makes them faster, makes them again.
    """
    room = _PICTURE_BYTES if objective.data.context.device.type == "cpu" else 0
    new_steps = []
    for step in steps:
        pixels = make_pictures(step, config).pixels if room > 0 else None
        room -= 0 if pixels is None else pixels.nbytes
        new_steps.append(replace(step, pixels=pixels))
    return new_steps


def _labels(step: Step, batch: Batch) -> Tensor:
    """Labels of a step's images among its classes."""
    if step.classes is None:
        return batch.labels
    return torch.searchsorted(to_device(step.classes, batch.labels.device), batch.labels)


def embeds_less_at_once(objective: Objective, steps: Sequence[Step]) -> bool:
    """Whether embedding all prompts once, with fixed weights, costs no more than the steps' own
    prompts.
    """
    return objective.criterion.prompts.count <= count_prompts(objective, steps)


def count_prompts(objective: Objective, steps: Sequence[Step]) -> int:
    """Count the prompts of steps, each with its own classes and templates."""
    classes = objective.criterion.prompts.classes
    templates = objective.criterion.prompts.templates
    return sum(
        (classes if step.classes is None else len(step.classes))
        * (templates if step.templates is None else len(step.templates))
        for step in steps
    )


@torch.no_grad()
def with_teacher_targets(
    objective: Objective, steps: Sequence[Step], config: LossConfig
) -> list[Step]:
    """Add the teachers' outputs for the strongly augmented images to every step.

    Leaves the objective at the last of the `LossConfig.teacher_alphas`.
    """
    steps, cached = list(steps), embeds_less_at_once(objective, steps)
    for alpha in config.teacher_alphas:
        objective.weights.set_alpha(alpha)
        for indices in _group_for_teacher(objective, steps, config):
            pictures = [strong_pictures(steps[index], config) for index in indices]
            features = image_features(objective, config, torch.cat(pictures))
            parts = torch.split(features, [len(pixels) for pixels in pictures])
            for index, part in zip(indices, parts, strict=True):
                step = steps[index]
                targets = _teacher_targets(objective, step, config, part, cached=cached)
                steps[index] = replace(step, targets=targets)
                objective.work.tick(FORWARD * config.strong_count(len(step)) * step.work_share)
    return steps


def _group_for_teacher(
    objective: Objective, steps: Sequence[Step], config: LossConfig
) -> Iterator[list[int]]:
    """Steps whose images go through a teacher at once: on a card several, which takes fewer
    kernels.
    """
    least = 1 if objective.data.context.device.type == "cpu" else _TAUGHT_IMAGES
    return bucketed(range(len(steps)), lambda index: config.strong_count(len(steps[index])), least)


def _teacher_targets(
    objective: Objective, step: Step, config: LossConfig, features: Tensor, *, cached: bool
) -> Targets:
    """A teacher's targets for a step's strongly augmented images, given its features of them, added
    to those of others.
    """
    predictions_weight, features_weight = config.target_weights
    predictions = mean_features = None
    teachers = len(config.teacher_alphas)
    if step.targets is not None:
        predictions, mean_features = step.targets.predictions, step.targets.features
    if predictions_weight:
        classes = class_features(objective, step, config, cached=cached)
        logits = objective.criterion.model.logits(features, classes)
        part = logits.log_softmax(-1) - math.log(teachers)
        predictions = part if predictions is None else torch.logaddexp(predictions, part)
    if features_weight:
        part = features / teachers
        mean_features = part if mean_features is None else mean_features + part
    return Targets(predictions, mean_features)


def image_features(
    objective: Objective, config: LossConfig, pixels: Tensor, at_once: int | None = None
) -> Tensor:
    """Embed pictures at the current weights, (pictures, projection_dim), in the loss's
    precision; a graph holds the activations of ``at_once`` pictures.
    """
    with passes(pixels.device, config.precision):
        return objective.criterion.embed(pixels, at_once).float()


def class_features(
    objective: Objective, step: Step, config: LossConfig, *, cached: bool = False
) -> Tensor:
    """Embed a step's classes at the current weights, (classes, projection_dim), in the loss's
    precision.

    For ``cached`` see `ZeroShotLoss.class_features`.
    """
    with passes(objective.data.context.device, config.precision):
        return objective.criterion.class_features(
            step.classes, step.templates, cached=cached
        ).float()


def terms_of(
    objective: Objective,
    config: LossConfig,
    pictures: Pictures,
    classes: Tensor,
    *,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the terms of the loss at the current weights, for classes (classes, projection_dim).

    Returns:
        The loss of every weakly augmented image by the criterion, in nats, whether it is
        recognised (without labels, how probably), and the distillation loss of every strongly
        augmented one.
    """
    features = image_features(objective, config, pictures.pixels, at_once)
    logits = objective.criterion.model.logits(features, classes)
    weak, strong = logits.tensor_split([len(pictures.labels)])
    losses = objective.criterion.image_losses(weak, pictures.labels)
    best = weak.detach().argmax(1)
    labels = pictures.labels
    # without labels, the probability that the answer is right
    recognised = labels.gather(1, best[:, None])[:, 0] if labels.ndim == 2 else best == labels
    return (
        losses,
        recognised,
        _distillation_loss(config, features[len(weak) :], strong, pictures.targets),
    )


def _distillation_loss(
    config: LossConfig, features: Tensor, logits: Tensor, targets: Targets | None
) -> Tensor:
    """Weighted distance from the targets, (pictures,); 0 without any."""
    loss = torch.zeros(len(logits), device=logits.device)
    if targets is None:
        return loss
    predictions_weight, features_weight = config.target_weights
    if targets.predictions is not None:
        log_probabilities = logits.log_softmax(-1)
        divergences = kl_div(
            log_probabilities, targets.predictions, reduction="none", log_target=True
        )
        loss = loss + predictions_weight * divergences.sum(-1)
    if targets.features is not None:
        loss = loss + features_weight * (1 - (features * targets.features).sum(-1))
    return loss


def _loss_of(
    objective: Objective,
    step: Step,
    config: LossConfig,
    pictures: Pictures,
    classes: Tensor,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The part of a step's loss that some of its pictures contribute, and its `Losses` as a tensor:
    parts add up.
    """
    losses, recognised, distillation = terms_of(
        objective, config, pictures, classes, at_once=at_once
    )
    mean = losses.sum() / len(step)
    distilled = distillation.sum() / max(config.strong_count(len(step)), 1)
    parts = torch.stack([mean.detach(), distilled.detach(), recognised.sum() / len(step)])
    return mean + config.distill_weight * distilled, parts


def backpropagate(
    objective: Objective,
    step: Step,
    config: LossConfig,
    pictures: Pictures,
    *,
    at_once: int | None = None,
    scale: float = 1.0,
    last: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Compute this process's part of the loss's gradient at the current weights in
    ``parameter.grad``.

    Gradients of pieces of the pictures add up. The class features are computed once, and
    backpropagated through the text tower once, together with the last piece.

    Args:
        objective: Calibration loss.
        step: The classes of the step.
        config: The loss to compute.
        pictures: Result of `make_pictures` for the step.
        at_once: Pictures whose activations are held at once; ``None`` for all.
        scale: Factor of the gradients, so that small ones are not lost in float16.
        last: Makes a context for the last backward pass, after which ``parameter.grad`` has the
            sum.

    Returns:
        The parts of the loss, for `losses_of`; on a card they may still be computed.
    """
    device = objective.data.context.device
    seed = None if scale == 1 else torch.full((), scale, device=device)
    classes = class_features(objective, step, config)
    leaf = classes.detach().requires_grad_(classes.requires_grad)
    sums = torch.zeros(len(fields(Losses)), device=classes.device)
    # a contrastive loss needs all images of a step; their activations are computed twice
    whole = objective.criterion.is_contrastive
    pieces = pictures.pieces(None if whole else at_once)
    piece = next(pieces)
    for following in pieces:
        loss, losses = _loss_of(objective, step, config, piece, leaf)
        loss.backward(seed)  # type: ignore[no-untyped-call]
        sums += losses
        piece = following
    loss, losses = _loss_of(objective, step, config, piece, classes, at_once if whole else None)
    # one pass for both: a weight that both towers share gets its whole gradient in it
    roots, gradients = (
        ([loss], [seed]) if leaf.grad is None else ([loss, classes], [seed, leaf.grad])
    )
    with last():
        torch.autograd.backward(roots, gradients)
    return sums + losses


def losses_of(objective: Objective, step: Step, sums: Tensor) -> Losses:
    """Read the result of `backpropagate`, over all processes if they share the step.

    Raises:
        MeasureError: If a loss is not finite.
    """
    if step.world_size > 1:
        objective.data.all_reduce_(sums)
    losses = Losses(*sums.tolist())
    if not math.isfinite(losses.cross_entropy + losses.distillation_loss):
        raise MeasureError(
            f"the loss of calibration batch {step.number} is not finite; check the checkpoints, or"
            " compute with measure.precision=float32"
        )
    return losses
