"""The loop that learns coefficients, from top to bottom.

    each step: B <- some images; T <- mean over the teachers of their predictions and features of
    strong(B); loss <- CE(weak(B)) + weight * distance of strong(B) from T; one step of Adam in c

Views, losses and teachers are functions of tensors: see `augment` and `loss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
_TAUGHT_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class Training:
    """How coefficients are learned.

    Attributes:
        steps: Number of steps.
        batch_size: Maximum number of images per step; ``None`` for that of a batch of calibration.
        lr: Adam's step size in coefficients, one for all or by their name; it falls to zero along
            a half cosine.
        max_coefficient: Largest coefficient.
        weak_aug: Strength of the weak augmentation of the cross-entropy's images; 0 for none.
        num_strong: Maximum number of strongly augmented images per step; ``None`` for one of each.
        augmentations: Kinds of strong augmentation; empty to distil on unchanged images.
        distill: Target of distillation, see `clipmerge.learning.loss`.
        distill_weight: Weight of the distillation loss; 0 for the cross-entropy alone.
        precision: Precision of the forward passes.
    """

    steps: int
    batch_size: int | None = None
    lr: float | dict[str, float] = 0.033
    max_coefficient: float = 1.0
    weak_aug: float = 0.0
    num_strong: int | None = None
    augmentations: tuple[Augmentation, ...] = AUGMENTATIONS
    distill: DistillTarget = "both"
    distill_weight: float = 0.0
    precision: Precision = "float32"

    def strong_count(self, images: int) -> int:
        """Number of strongly augmented images for a number of images."""
        if not self.distill_weight:
            return 0
        return images if self.num_strong is None else min(images, self.num_strong)

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
    state = objective.state
    images = len(objective.images)
    size = min(options.batch_size or objective.batch_sizes[0], images)
    order = draw_order(images, options.steps, size, objective.seed)
    adam = BoxAdam(coefficients.values, options.lr, options.max_coefficient)
    scaler = _scaler_for(objective, options)
    trace = torch.zeros(options.steps, 3, dtype=torch.float64)
    begin = state.restore(adam, scaler, trace) if state else 0
    objective.micro_batcher.max_images = objective.affordable_images()
    objective.announce_work((options.steps - begin) * options.work(size))
    with coefficients.collect_gradients():
        for first in range(begin, options.steps, _TAUGHT_TOGETHER):
            end = min(first + _TAUGHT_TOGETHER, options.steps)
            numbers = range(first, end)
            steps = [make_pictures(objective, order, number, options) for number in numbers]
            taught = teach(objective, steps, options)
            for number, pictures, targets in zip(numbers, steps, taught, strict=True):
                adam.fall = (1 + math.cos(math.pi * number / options.steps)) / 2
                coefficients.place()
                while adam.steps_taken == number:  # again if gradients in float16 overflow
                    sums = backward(objective, pictures, targets, options, scaler, adam)
                    sums = _reduce(objective, adam, sums)
                    trace[number] = _means(sums, pictures)
                    _require_finite(trace[number], number, scaler)
                    scaler.step(adam)
                    scaler.update()
                if state:
                    state.save(number + 1)
                objective.tick(options.work(size))
    losses: list[list[float]] = trace.tolist()
    return losses


def _scaler_for(objective: Objective, options: Training) -> torch.amp.GradScaler:
    """What scales gradients that pass through float16; nothing else needs it."""
    device = objective.path.device
    is_half = dtype_of(device, options.precision) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=is_half)


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
    positions = order[number].to(objective.path.device)
    pixels = objective.images.pixels[positions]
    labels = objective.images.labels[positions]
    seed = objective.seed * 1_000_003 + 2 * number
    strong_count = options.strong_count(len(labels))
    strong = pixels[:strong_count]
    if strong_count:
        strong = strong_augment(strong, seed, options.augmentations)
    weak = weak_augment(pixels, seed + 1, options.weak_aug)
    prompts, columns = draw_prompts(objective.classifier, labels, seed, _PROMPTS_A_STEP)
    own = local_rows(objective)
    return Pictures(
        weak=weak[own],
        strong=strong[own],
        columns=columns[own],
        counts=(len(labels), strong_count),
        prompts=prompts,
    )


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
    classes = classifier.classes
    are_few = classes * classifier.templates <= max_prompts
    if chosen is not None or not classifier.moves or are_few:
        return (chosen, None), columns
    generator = torch.Generator().manual_seed(seed)
    written = torch.randperm(classifier.templates, generator=generator)
    written = written[: max(1, max_prompts // classes)]
    if classes * len(written) <= max_prompts:
        return (None, written), columns
    present = torch.unique(labels.cpu())
    others = torch.randperm(classes, generator=generator)
    others = others[~torch.isin(others, present)]
    others = others[: max(0, max_prompts - len(present))]
    chosen = torch.cat([present, others]).sort().values
    columns = torch.searchsorted(chosen.to(labels.device), labels)
    return (chosen, written), columns


@torch.no_grad()
def teach(
    objective: Objective, steps: Sequence[Pictures], options: Training
) -> list[Targets | None]:
    """What the teachers make of the strongly augmented images of some steps; ``None`` where there
    are none.
    """
    if not options.distill_weight:
        return [None] * len(steps)
    # a process may have none of a step's images
    taught = [pictures for pictures in steps if len(pictures.strong)]
    outputs: list[list[Outputs]] = [[] for _ in taught]
    for alpha in teacher_alphas(options.distill):
        objective.path.set_alpha(alpha)
        classes: Tensor | None = None
        for pictures, of_step in zip(taught, outputs, strict=True):
            with passes(objective.path.device, options.precision):
                if classes is None or pictures.prompts != (None, None):
                    classes = objective.classifier.class_features(*pictures.prompts)
                features = objective.embed(pictures.strong)
            of_step.append(_outputs(objective, features, classes))
    targets = iter([mean_of_teachers(of_step) for of_step in outputs])
    return [next(targets) if len(pictures.strong) else None for pictures in steps]


def _outputs(objective: Objective, features: Tensor, classes: Tensor) -> Outputs:
    """Score features, in float32 whatever they were computed in."""
    features = features.float()
    logits = objective.classifier.logits(features, classes.float())
    return Outputs(features, logits)


def backward(
    objective: Objective,
    pictures: Pictures,
    targets: Targets | None,
    options: Training,
    scaler: torch.amp.GradScaler,
    adam: BoxAdam,
) -> Tensor:
    """Compute the gradient of this process's part of a step's loss, in pieces that fit into memory.

    Returns:
        Sums over the pictures: cross-entropy, how many are recognised, and distillation loss, (3,).
    """
    classifier = objective.classifier
    device = objective.path.device
    weak_count, strong_count = pictures.counts

    def attempt(at_once: int) -> Tensor:
        adam.zero_grad()  # of an attempt with more pictures at once
        sums = torch.zeros(3, device=device)
        if at_once == 0:
            return sums  # other processes have all pictures of this step

        def loss_of(piece: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
            weak, strong = piece
            pixels = torch.cat([pictures.weak[weak], pictures.strong[strong]])
            with passes(device, options.precision):
                features = _embed(objective, pixels, at_once)
            outputs = _outputs(objective, features, classes)
            plain, altered = outputs.tensor_split([len(weak)])
            columns = pictures.columns[weak]
            entropy = classifier.image_losses(plain.logits, columns).sum()
            right = (plain.logits.argmax(-1) == columns).sum()
            distance = torch.zeros_like(entropy)
            if targets is not None:
                taught = Targets(*(target[strong] for target in targets))
                distance = distillation_losses(altered, taught, options.distill).sum()
            sums.add_(torch.stack([entropy, right, distance]).detach())
            distilled = distance / max(strong_count, 1)
            return entropy / weak_count + options.distill_weight * distilled

        with passes(device, options.precision):
            classes = classifier.class_features(*pictures.prompts)
        pieces = _pieces(objective, pictures, at_once)
        backward_in_pieces(classes, pieces, loss_of, scaler.scale)
        return sums

    count = len(pictures.weak) + len(pictures.strong)
    return objective.micro_batcher.run(count, attempt)


def _pieces(
    objective: Objective, pictures: Pictures, at_once: int
) -> Sequence[tuple[Tensor, Tensor]]:
    """Rows of weak and strong pictures, of about ``at_once`` together; all of them where images are
    compared with one another.
    """
    weak = torch.arange(len(pictures.weak))
    strong = torch.arange(len(pictures.strong))
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
    pieces = torch.split(pixels, at_once)
    features = [checkpoint(run, piece, use_reentrant=False) for piece in pieces]
    return torch.cat(features)


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
    counts = torch.tensor([weak, weak, max(strong, 1)])
    return sums.cpu().double() / counts


def _require_finite(losses: Tensor, number: int, scaler: torch.amp.GradScaler) -> None:
    overflows = scaler.is_enabled() and scaler.get_scale() < 1
    if overflows or not bool(losses.isfinite().all()):
        raise MeasureError(
            f"the loss of calibration batch {number} is not finite; check the checkpoints, or"
            " compute with measure.precision=float32"
        )
