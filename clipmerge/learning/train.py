"""The loop that learns coefficients, from top to bottom.

    each step: B <- some images; T <- mean over the teachers of their predictions and features of
    strong(B); loss <- CE(weak(B)) + weight * distance of strong(B) from T; one step of Adam in c

Views, losses and teachers are functions of tensors: see `augment` and `loss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipmerge.distributed import all_reduce_
from clipmerge.errors import MeasureError
from clipmerge.learning.adam import BoxAdam
from clipmerge.learning.augment import AUGMENTATIONS, strong_augment, weak_augment
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.loss import (
    DistillTarget,
    Outputs,
    Targets,
    distillation_losses,
    mean_of_teachers,
    teacher_alphas,
)
from clipmerge.learning.objective import FORWARD, GRADIENT, Objective, backward_in_pieces
from clipmerge.models.classifier import Classifier
from clipmerge.models.precision import Precision, dtype_of, passes
from clipmerge.plugins import Augmentation

# Prompts that a step embeds at most: about as much work as its images. If there are more, it draws
# templates, and then classes.
_PROMPTS_A_STEP = 256
# Steps whose teachers' outputs are computed together, so that weights are placed less often.
_TAUGHT_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """How coefficients are learned.

    Attributes:
        steps: Number of steps.
        batch: Maximum number of images per step; ``None`` for that of a batch of calibration.
        rate: Adam's step size in coefficients, one for all or by their name; it falls to zero along
            a half cosine.
        ceiling: Largest coefficient.
        weak_aug: Strength of the weak augmentation of the cross-entropy's images; 0 for none.
        strong_aug: Maximum number of strongly augmented images per step; ``None`` for one of each.
        augmentations: Kinds of strong augmentation; empty to distil on unchanged images.
        distill: Target of distillation, see `clipmerge.learning.loss`.
        distill_weight: Weight of the distillation loss; 0 for the cross-entropy alone.
        precision: Precision of the forward passes.
    """

    steps: int
    batch: int | None = None
    rate: float | dict[str, float] = 0.033
    ceiling: float = 1.0
    weak_aug: float = 0.0
    strong_aug: int | None = None
    augmentations: tuple[Augmentation, ...] = AUGMENTATIONS
    distill: DistillTarget = "both"
    distill_weight: float = 0.0
    precision: Precision = "float32"

    def strong_count(self, images: int) -> int:
        """Number of strongly augmented images for a number of images."""
        if not self.distill_weight:
            return 0
        return images if self.strong_aug is None else min(images, self.strong_aug)

    def work(self, images: int) -> float:
        """The work of a step, in images x forward passes."""
        strong = self.strong_count(images)
        return FORWARD * len(teacher_alphas(self.distill)) * strong + GRADIENT * (images + strong)


class Pictures(NamedTuple):
    """This process's share of a step's pictures, and what all of them are compared with.

    Attributes:
        weak: Weakly augmented images, (weak, 3, height, width).
        strong: Strongly augmented ones, (strong, 3, height, width).
        columns: The column of each weak one's class, (weak,).
        counts: Number of weak and of strong ones of all processes.
        prompts: Classes and templates to compare them with; ``None`` for all.
    """

    weak: Tensor
    strong: Tensor
    columns: Tensor
    counts: tuple[int, int]
    prompts: tuple[Tensor | None, Tensor | None]


def train(objective: Objective, coefficients: Coefficients, options: Training) -> list[list[float]]:
    """Learn coefficients, in place, from the objective's images.

    Processes share the images of every step, add up their gradients, and end with the same
    coefficients, whether they take all steps or resume an interrupted run.

    Returns:
        Mean cross-entropy, accuracy and mean distillation loss of every step.

    Raises:
        MeasureError: If a loss is not finite.
    """
    device, state, batcher = objective.path.device, objective.state, objective.micro_batcher
    images = len(objective.images)
    size = min(options.batch or objective.batch_sizes[0], images)
    order = draw_order(images, options.steps, size, objective.seed)
    adam = BoxAdam(coefficients.values, options.rate, options.ceiling)
    half = dtype_of(device, options.precision) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    trace = torch.zeros(options.steps, 3, dtype=torch.float64)
    begin = state.restore(adam, scaler, trace) if state else 0
    batcher.max_images = batcher.max_images or objective.affordable_images()
    objective.announce_work((options.steps - begin) * options.work(size))
    with coefficients.collect_gradients():
        for first in range(begin, options.steps, _TAUGHT_TOGETHER):
            numbers = range(first, min(first + _TAUGHT_TOGETHER, options.steps))
            steps = [make_pictures(objective, order, number, options) for number in numbers]
            taught = teach(objective, steps, options)
            for number, pictures, targets in zip(numbers, steps, taught, strict=True):
                adam.fall = (1 + math.cos(math.pi * number / options.steps)) / 2
                run = partial(backward, objective, pictures, targets, options, scaler, adam)
                coefficients.place()
                while adam.steps_taken == number:  # again if gradients in float16 overflow
                    sums = batcher.run(len(pictures.weak) + len(pictures.strong), run)
                    trace[number] = _means(_reduce(objective, adam, sums), pictures)
                    _require_finite(trace[number], number, scaler)
                    scaler.step(adam)
                    scaler.update()
                if state:
                    state.save(number + 1)
                objective.tick(options.work(size))
    return trace.tolist()


def draw_order(images: int, steps: int, size: int, seed: int) -> Tensor:
    """Positions of every step's images, (steps, size): every image once, in random order, before
    any is repeated.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = range(-(-steps * size // images))
    every = torch.cat([torch.randperm(images, generator=generator) for _ in rounds])
    return every[: steps * size].view(steps, size)


def make_pictures(objective: Objective, order: Tensor, number: int, options: Training) -> Pictures:
    """Augment this process's share of a step's images; every process draws the same numbers."""
    images, positions = objective.images, order[number].to(objective.path.device)
    pixels, labels = images.pixels[positions], images.labels[positions]
    seed = objective.seed * 1_000_003 + 2 * number
    strong_count = options.strong_count(len(labels))
    strong = pixels[:strong_count]
    if strong_count:
        strong = strong_augment(strong, seed, options.augmentations)
    weak = weak_augment(pixels, seed + 1, options.weak_aug)
    prompts, columns = draw_prompts(objective.classifier, labels, seed, _PROMPTS_A_STEP)
    own = local_rows(objective)
    return Pictures(weak[own], strong[own], columns[own], (len(labels), strong_count), prompts)


def local_rows(objective: Objective) -> slice:
    """This process's share of some images; all of them where images are compared with one
    another.
    """
    if objective.classifier.compares_images:
        return slice(None)
    return slice(objective.context.rank, None, objective.context.world_size)


def draw_prompts(
    classifier: Classifier, labels: Tensor, seed: int, max_prompts: int
) -> tuple[tuple[Tensor | None, Tensor | None], Tensor]:
    """Draw templates, and if necessary classes, so that at most ``max_prompts`` prompts are
    embedded.

    Returns:
        The classes and the templates, ``None`` for all, and the column of each label.
    """
    chosen, columns = classifier.columns(labels)
    classes, templates = classifier.classes, classifier.templates
    if chosen is not None or not classifier.moves or classes * templates <= max_prompts:
        return (chosen, None), columns
    generator = torch.Generator().manual_seed(seed)
    written = torch.randperm(templates, generator=generator)[: max(1, max_prompts // classes)]
    if classes * len(written) <= max_prompts:
        return (None, written), columns
    present = torch.unique(labels.cpu())
    others = torch.randperm(classes, generator=generator)
    others = others[~torch.isin(others, present)][: max(0, max_prompts - len(present))]
    chosen = torch.cat([present, others]).sort().values
    return (chosen, written), torch.searchsorted(chosen.to(labels.device), labels)


@torch.no_grad()
def teach(
    objective: Objective, steps: Sequence[Pictures], options: Training
) -> list[Targets | None]:
    """What the teachers make of the strongly augmented images of some steps; ``None`` where there
    are none.
    """
    if not options.distill_weight:
        return [None] * len(steps)
    outputs: list[list[Outputs]] = [[] for _ in steps]
    for alpha in teacher_alphas(options.distill):
        objective.path.set_alpha(alpha)
        shared = steps[0].prompts if steps[0].prompts == (None, None) else None
        with passes(objective.path.device, options.precision):
            classes = objective.classifier.class_features(*shared) if shared else None
            for pictures, of_step in zip(steps, outputs, strict=True):
                if shared is None:
                    classes = objective.classifier.class_features(*pictures.prompts)
                features = objective.embed(pictures.strong)
                of_step.append(_outputs(objective, features, classes))
    return [mean_of_teachers(of_step) for of_step in outputs]


def _outputs(objective: Objective, features: Tensor, classes: Tensor) -> Outputs:
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        return Outputs(features, objective.classifier.logits(features, classes.float()))


def backward(
    objective: Objective,
    pictures: Pictures,
    targets: Targets | None,
    options: Training,
    scaler: torch.amp.GradScaler,
    adam: BoxAdam,
    at_once: int,
) -> Tensor:
    """Compute the gradient of this process's part of the loss, whatever an attempt with more
    pictures at once has left.

    Returns:
        Sums over the pictures: cross-entropy, how many are recognised, and distillation loss, (3,).
    """
    classifier, device = objective.classifier, objective.path.device
    adam.zero_grad()
    sums = torch.zeros(3, device=device)
    if not len(pictures.weak) + len(pictures.strong):
        return sums
    weak_count, strong_count = pictures.counts

    def loss_of(piece: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
        weak, strong = piece
        pixels = torch.cat([pictures.weak[weak], pictures.strong[strong]])
        with passes(device, options.precision):
            features = _embed(objective, pixels, at_once)
        plain, altered = _outputs(objective, features, classes).tensor_split([len(weak)])
        losses = classifier.image_losses(plain.logits, pictures.columns[weak])
        right = (plain.logits.argmax(-1) == pictures.columns[weak]).sum()
        distance = losses.new_zeros(())
        if targets is not None:
            taught = Targets(*(target[strong] for target in targets))
            distance = distillation_losses(altered, taught, options.distill).sum()
        sums.add_(torch.stack([losses.sum(), right, distance]).detach())
        return losses.sum() / weak_count + options.distill_weight * distance / max(strong_count, 1)

    with passes(device, options.precision):
        classes = classifier.class_features(*pictures.prompts)
    backward_in_pieces(classes, _pieces(objective, pictures, at_once), loss_of, scaler.scale)
    return sums


def _pieces(
    objective: Objective, pictures: Pictures, at_once: int
) -> Sequence[tuple[Tensor, Tensor]]:
    """Rows of weak and strong pictures, of about ``at_once`` together; all of them where images are
    compared with one another.
    """
    weak, strong = (torch.arange(len(part)) for part in (pictures.weak, pictures.strong))
    count = math.ceil((len(weak) + len(strong)) / at_once)
    count = min(count, max(len(weak), len(strong)))  # or pieces would be empty
    if objective.classifier.compares_images:
        count = 1
    return list(zip(weak.tensor_split(count), strong.tensor_split(count), strict=True))


def _embed(objective: Objective, pixels: Tensor, at_once: int) -> Tensor:
    """Embed pictures; the graph of more than ``at_once`` holds the activations of so many."""
    run = objective.classifier.model.image_features
    if len(pixels) <= at_once + 1:  # pieces of both kinds round up
        return run(pixels)
    pieces = pixels.split(at_once)
    return torch.cat([checkpoint(run, piece, use_reentrant=False) for piece in pieces])


def _reduce(objective: Objective, adam: BoxAdam, sums: Tensor) -> Tensor:
    """Add up gradients and losses over all processes; of what each of them computed whole, take the
    mean, so that all go on from the same bits.
    """
    context = objective.context
    if context.world_size == 1:
        return sums
    copies = context.world_size if objective.classifier.compares_images else 1
    for value in adam.values.values():
        if value.grad is None:
            value.grad = torch.zeros_like(value)
        all_reduce_(context, value.grad)
        value.grad /= copies
    all_reduce_(context, sums)
    return sums / copies


def _means(sums: Tensor, pictures: Pictures) -> Tensor:
    weak, strong = pictures.counts
    return sums.cpu().double() / torch.tensor([weak, weak, max(strong, 1)])


def _require_finite(losses: Tensor, number: int, scaler: torch.amp.GradScaler) -> None:
    if not bool(losses.isfinite().all()) or (scaler.is_enabled() and scaler.get_scale() < 1):
        raise MeasureError(
            f"the loss of calibration batch {number} is not finite; check the checkpoints, or"
            " compute with measure.precision=float32"
        )
