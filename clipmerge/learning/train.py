"""The loop that learns coefficients, from top to bottom.

Each step draws some images, B, and takes one step of Adam in the coefficients on this loss:

    CE(weak(B)) + weight * distance between learner's and teachers' answers to strong(B)
    + weight * CE(weak(S)), if there are labelled images of shifts, from which the step draws S

`augment` makes weak and strong views, and `loss` computes the distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from clipmerge.distributed import broadcast_
from clipmerge.errors import ClipmergeError
from clipmerge.learning.augment import AUGMENTATIONS, strong_augment, weak_augment
from clipmerge.learning.interpolate import Coefficients, Granularity
from clipmerge.learning.loss import TEACHERS, Answer, distillation_losses, mean_of_teachers
from clipmerge.learning.objective import GRADIENT, PROMPTS_A_GRADIENT, Labelled, Objective
from clipmerge.models.classifier import Classifier
from clipmerge.models.passes import Precision, dtype_of, embed_with_graph, in_precision
from clipmerge.plugins import (
    Augmentation,
    Count,
    NonNegative,
    PartialShare,
    Points,
    Positive,
    Share,
)

# Largest side of images that count as small, in pixels.
_SMALL = 64

# Number of steps whose teachers answer together, so that weights change less often.
_TAUGHT_TOGETHER = 16


# Adam's usual decay rates of the gradient and its square, and the constant against division by 0.
_MEMORY, _LONG_MEMORY, _TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Options of learning coefficients, and of the choice among the results.

    Attributes:
        granularity: The parts of a model that have one coefficient each.
        distill_weight: Weight of the distillation loss: more keeps more robustness; 0 minimises the
            loss on the calibration images alone.
        steps: Number of steps.
        batch_size: Maximum number of images per step.
        num_strong: Maximum number of strongly augmented images per step, for the distillation loss.
        small_factor: Factor of both numbers for images of at most 64 pixels a side. Their models
            are small, so more work costs little.
        ood_weight: Weight of the cross-entropy on labelled images of shifts or other tasks.
        ood_batch_size: Maximum number of these per step, all of one source; sources take turns.
        lr: Adam's step size in coefficients; it falls to zero along a half cosine.
        start: Initial coefficient.
        max_coefficient: Largest coefficient; with 1 every merged weight lies between those of both
            checkpoints.
        weak_aug: Strength of the small rotations, rescalings and shifts of the cross-entropy's
            images; 1 is as strong as the strong augmentation, and 0 does nothing.
        held_back: Share of the images that learning does not see, which choose; with 0 the learned
            coefficients are used as they are.
        max_loss: Limit, in points of accuracy on the held-back images, of the loss against the
            fine-tuned model, plus its standard error if no shift teaches. A merge that loses
            nothing always keeps to it.
        augmentations: Kinds of strong augmentation; none to distil on unchanged images.
        precision: Precision of forward passes; ``auto`` uses bfloat16 if the processor or GPU
            multiplies it faster, and float16 on a CUDA device without.
    """

    granularity: Granularity = "entry"
    distill_weight: NonNegative = 0.6
    steps: Count = 320
    batch_size: Count = 10
    num_strong: Count = 10
    small_factor: Count = 4
    ood_weight: NonNegative = 1.0
    ood_batch_size: Count = 5
    lr: Positive = 0.033
    start: Share = 0.5
    max_coefficient: Positive = 1.0
    weak_aug: NonNegative = 0.25
    held_back: PartialShare = 0.2
    max_loss: Points = 3.0
    augmentations: tuple[Augmentation, ...] = AUGMENTATIONS
    precision: Precision = "auto"

    def for_images(self, pixels: Tensor) -> LearningOptions:
        """Multiply by ``small_factor`` if images, (images, 3, height, width), are small."""
        if max(pixels.shape[-2:]) > _SMALL:
            return self
        return replace(
            self,
            batch_size=self.small_factor * self.batch_size,
            num_strong=self.small_factor * self.num_strong,
        )


class Examples(NamedTuple):
    """Labelled images of one source in one step.

    Attributes:
        weak: The images, weakly augmented, (images, 3, height, width).
        columns: The column of each image's class, (images,).
        prompts: Prompts to compare images with; ``None`` for all.
        classifier: Scores images against the classes.
    """

    weak: Tensor
    columns: Tensor
    prompts: Tensor | None
    classifier: Classifier

    def logits(self, features: Tensor, precision: Precision) -> Tensor:
        """Score image features, (images, width), against the classes: (images, columns)."""
        with in_precision(features.device, precision):
            classes = self.classifier.class_features(self.prompts)
        return self.classifier.logits(features, classes.float())


class Lesson(NamedTuple):
    """The images of one step.

    Attributes:
        target: Labelled images of the target.
        strong: Strongly augmented images of the target, (strong, 3, height, width); none without
            distillation.
        ood: Labelled images of one shift; ``None`` if there are no shifts.
    """

    target: Examples
    strong: Tensor
    ood: Examples | None


def train(
    objective: Objective,
    coefficients: Coefficients,
    options: LearningOptions,
    units: Mapping[str, float] | None = None,
) -> list[list[float]]:
    """Learn coefficients, in place, from the objective's images and, in turn, those of its shifts.

    Every process takes every step, because a sum of parts rounds differently. At the end, all
    processes get the coefficients of the first one.

    Args:
        objective: Its path is left near the learned coefficients.
        coefficients: The start of learning, and its result.
        options: How to learn.
        units: Adam's step size by coefficient, in units of ``options.lr``; 1 by default.

    Returns:
        Mean cross-entropy and mean distillation loss of every step.

    Raises:
        ClipmergeError: If a loss is not finite.
    """
    path, state = objective.path, objective.state
    sizes = [(len(objective.images), options.batch_size)]
    sizes += [(len(shift.images), options.ood_batch_size) for shift in objective.ood]
    orders = [draw_order(images, options.steps, size, objective.seed) for images, size in sizes]
    teachers = TEACHERS if options.distill_weight else ()
    adam = BoxAdam(coefficients.values, options.lr, options.max_coefficient, units or {})
    is_half = dtype_of(path.device, options.precision) == torch.float16
    scaler = torch.amp.GradScaler(path.device.type, enabled=is_half)
    trace = torch.zeros(options.steps, 2, device=path.device)
    begin = state.restore(adam, scaler, trace) if state else 0
    objective.bound_activations()
    work = GRADIENT * (options.batch_size + options.num_strong)
    objective.work.announce((options.steps - begin) * work)
    with coefficients.collect_gradients():
        for first in range(begin, options.steps, _TAUGHT_TOGETHER):
            numbers = range(first, min(first + _TAUGHT_TOGETHER, options.steps))
            lessons = [make_lesson(objective, orders, at, options) for at in numbers]
            answers = []
            for alpha in teachers:
                path.set_alpha(alpha)  # the teacher
                answers.append(answer_lessons(objective, lessons, options))
            for number, lesson, *of_teachers in zip(numbers, lessons, *answers, strict=True):
                coefficients.set_weights()  # the learner
                adam.fall = (1 + math.cos(math.pi * number / options.steps)) / 2
                while adam.steps_taken == number:  # again if gradients in float16 overflow
                    trace[number] = backward(objective, lesson, of_teachers, options, scaler, adam)
                    if scaler.is_enabled() or number % _TAUGHT_TOGETHER == 0:  # a card waits for it
                        _require_finite(trace, scaler)
                    scaler.step(adam)
                    scaler.update()
                if state:
                    state.save(number + 1)
                objective.work.count(work)
    _require_finite(trace, scaler)
    adam.zero_grad()  # gradients and moments are as large as the model, and not needed again
    if state:
        state.release()
    for value in coefficients.values.values():
        broadcast_(objective.context, value)
    losses: list[list[float]] = trace.tolist()
    return losses


def draw_order(images: int, steps: int, size: int, seed: int) -> Tensor:
    """Draw the positions of every step's images, (steps, size), or fewer columns if there are fewer
    images. Every image is drawn once, in random order, before any is repeated.
    """
    size = min(size, images)
    generator = torch.Generator().manual_seed(seed)
    rounds = range(-(-steps * size // images))
    every = torch.cat([torch.randperm(images, generator=generator) for _ in rounds])
    return every[: steps * size].view(steps, size)


def make_lesson(
    objective: Objective, orders: Sequence[Tensor], number: int, options: LearningOptions
) -> Lesson:
    """Draw and augment the images of a step. Its number determines the seed and the shift."""
    seed = objective.seed * 1_000_003 + 2 * number

    def take_examples(source: Labelled, order: Tensor) -> Examples:
        """Load this step's images of a source, weakly augmented, and draw their prompts."""
        images = source.images.take(order[number])
        prompts, columns = source.classifier.draw(images.labels, seed, PROMPTS_A_GRADIENT)
        weak = weak_augment(images.pixels, seed + 1, options.weak_aug)
        return Examples(weak, columns, prompts, source.classifier)

    order, *of_shifts = orders
    count = options.num_strong if options.distill_weight else 0
    plain = objective.images.take(order[number][:count]).pixels
    shifts = objective.ood
    turn = number % max(1, len(shifts))
    return Lesson(
        target=take_examples(Labelled(objective.images, objective.classifier), order),
        strong=strong_augment(plain, seed, options.augmentations) if count else plain,
        ood=take_examples(shifts[turn], of_shifts[turn]) if shifts else None,
    )


@torch.no_grad()
def answer_lessons(
    objective: Objective, lessons: Sequence[Lesson], options: LearningOptions
) -> list[Answer]:
    """Compute features and logits of several steps' strongly augmented images at the current
    weights.
    """
    answers = []
    classes: Tensor | None = None
    for lesson in lessons:
        with in_precision(objective.path.device, options.precision):
            if classes is None or lesson.target.prompts is not None:
                classes = objective.classifier.class_features(lesson.target.prompts)
            features = objective.embed(lesson.strong)
        answers.append(Answer(features, objective.classifier.logits(features, classes.float())))
    return answers


def backward(
    objective: Objective,
    lesson: Lesson,
    of_teachers: Sequence[Answer],
    options: LearningOptions,
    scaler: torch.amp.GradScaler,
    adam: BoxAdam,
) -> Tensor:
    """Compute the gradient of a step's loss, with no more activations in memory than fit.

    Returns:
        Mean cross-entropy and mean distillation loss, (2,).
    """
    target, strong, ood = lesson
    pixels = torch.cat([target.weak, strong, *([ood.weak] if ood else [])])
    weak = len(target.weak)
    run = objective.classifier.model.image_features

    def attempt(at_once: int) -> Tensor:
        adam.zero_grad()  # of an attempt with more images at once
        with in_precision(objective.path.device, options.precision):
            features = embed_with_graph(run, torch.split(pixels, at_once))
        seen, of_shift = features.float().tensor_split([weak + len(strong)])
        logits = target.logits(seen, options.precision)
        entropy = target.classifier.image_losses(logits[:weak], target.columns).mean()
        distance = torch.zeros_like(entropy)
        if of_teachers:
            own = Answer(seen[weak:], logits[weak:])
            distance = distillation_losses(own, mean_of_teachers(of_teachers)).mean()
        loss = entropy + options.distill_weight * distance
        if ood:
            scores = ood.logits(of_shift, options.precision)
            losses = ood.classifier.image_losses(scores, ood.columns)
            loss = loss + options.ood_weight * losses.mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return torch.stack([entropy, distance]).detach()

    return objective.micro_batcher.run(len(pixels), attempt)


def _require_finite(trace: Tensor, scaler: torch.amp.GradScaler) -> None:
    """Raise an error if a loss is not finite, or if gradients overflow at any scale."""
    if scaler.get_scale() < 1 or not bool(trace.isfinite().all()):
        raise ClipmergeError(
            "a loss of learning is not finite; check the checkpoints, or compute with"
            " measure.precision=float32"
        )


class BoxAdam(torch.optim.Optimizer):
    """Adam with values from 0 to a maximum, and one second moment for each parameter.

    With a second moment of its own, a coefficient whose gradient is mostly noise would move as far
    as one that matters. With a shared moment, it takes small steps.

    Attributes:
        fall: Factor of the step sizes, set before every step.
        steps_taken: Steps taken so far.
    """

    def __init__(
        self, values: Mapping[str, Tensor], lr: float, max_value: float, units: Mapping[str, float]
    ) -> None:
        """Start with zero moments; ``units`` are factors of the step size by name, 1 by default."""
        groups = [
            {"params": [value], "lr": lr * units.get(name, 1.0)} for name, value in values.items()
        ]
        super().__init__(groups, {})
        self.fall = 1.0
        self.steps_taken = 0
        self._max_value = max_value
        for value in values.values():
            self.state[value] = {"first": torch.zeros_like(value), "second": value.new_zeros(())}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, and clamp the values."""
        # counted before any change: if both counts are equal, a saved state has no half step
        self.steps_taken += 1
        for group in self.param_groups:
            (value,) = group["params"]
            if value.grad is None:
                continue
            moments = self.state[value]
            first = moments["first"].lerp_(value.grad, 1 - _MEMORY)
            mean_square = torch.linalg.vector_norm(value.grad).square() / value.numel()
            second = moments["second"].lerp_(mean_square, 1 - _LONG_MEMORY)
            scale = (second / (1 - _LONG_MEMORY**self.steps_taken)).sqrt() + _TINY
            rate = group["lr"] * self.fall / (scale * (1 - _MEMORY**self.steps_taken))
            value.addcmul_(first, rate, value=-1).clamp_(0, self._max_value)

    def tensors(self) -> list[Tensor]:
        """List the coefficients and their moments, on which the next step depends."""
        return [
            tensor for value, moments in self.state.items() for tensor in (value, *moments.values())
        ]
