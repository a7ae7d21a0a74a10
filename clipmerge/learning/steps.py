"""Steps of learning: the images, classes and random seed of each, and the images held out to judge
the result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from clipmerge.images.batches import Batch
from clipmerge.learning.objective import Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.types import Shape

#: With fewer images than this nothing is held out: neither part would be informative.
MIN_IMAGES = 8
#: Maximum number of prompts embedded per step; if there are more, a step draws templates, and then
#: classes. Validation is rare, so it embeds more.
PROMPTS_A_STEP, PROMPTS_A_VALIDATION = 256, 1024
# Held-out images are repeated, with fresh changes each time, up to about this number, but at most
# `_ROUNDS` times.
_VALIDATION_IMAGES, _ROUNDS = 400, 4
# Seeds of the augmentation of held-out images start here, above those of all steps.
_VALIDATION_SEEDS = 2**40
# The seed of the order of unlabelled images, likewise.
_UNLABELLED_SEEDS = 2**41


@dataclass(frozen=True)
class Targets:
    """The teachers' outputs for the strongly augmented images of a step.

    Attributes:
        predictions: The zero-shot model's log probabilities of a step's classes, (images, classes);
            ``None`` if they are not distilled.
        features: Mean image features of the teachers, (images, projection_dim), likewise.
    """

    predictions: Tensor | None = None
    features: Tensor | None = None

    def tensor_split(self, count: int) -> list[Targets]:
        """Split the images into so many parts of about the same size."""
        nothing: list[Tensor | None] = [None] * count
        predictions, features = (
            nothing if tensor is None else list(tensor.tensor_split(count))
            for tensor in (self.predictions, self.features)
        )
        return list(map(Targets, predictions, features))


@dataclass(frozen=True)
class Step:
    """Input of one evaluation of the learning loss.

    Attributes:
        number: Index of the step.
        seed: Seed of all random augmentation; the next number is used too.
        images: The images of all steps.
        positions: Positions of the step's images among them.
        classes: Class indices to distinguish, ascending; ``None`` for all.
        templates: Indices of the templates used; ``None`` for all.
        targets: The teachers' outputs for the strongly augmented images.
        answers: The fine-tuned model's answers about this process's images in place of labels,
            (images, classes of the step), see `FinetunedAnswers`; ``None`` where there are
            labels.
        pixels: This process's weakly and strongly augmented images; ``None`` if they are made
            whenever they are needed.
        unlabelled_images: Unlabelled images; ``None`` for none.
        unlabelled: Positions of those that replace the last strongly augmented images.
        rank: This process's number among those that share the step's images.
        world_size: The number of these; 1 if this process takes all of them.
    """

    number: int
    seed: int
    images: ShardedBatches
    positions: Shape
    classes: Tensor | None = None
    templates: Tensor | None = None
    targets: Targets | None = None
    answers: Tensor | None = None
    pixels: Tensor | None = None
    unlabelled_images: ShardedBatches | None = None
    unlabelled: Shape = ()
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    @property
    def work_share(self) -> float:
        """The share of the step's work that this process does."""
        return 1 / self.world_size

    @property
    def keys(self) -> list[tuple[ShardedBatches, int]]:
        """The step's images, each as a key."""
        return [(self.images, position) for position in self.positions]

    @property
    def local_keys(self) -> list[tuple[ShardedBatches, int]]:
        """This process's images of the step, each as a key."""
        return self.keys[self.local_rows]

    @property
    def local_rows(self) -> slice:
        """This process's images of the step, or of their strongly augmented ones."""
        return slice(self.rank, None, self.world_size)

    @property
    def batch(self) -> Batch:
        """This process's images, copied on every access: those of all steps together would not fit
        into memory.
        """
        return self.images.select(self.positions[self.local_rows], self.number)


@dataclass(frozen=True)
class Layout:
    """Training steps, the number of images that they draw from, validation steps on held-out
    images (empty if none are held out), and validation steps on training and held-out images.
    """

    steps: tuple[Step, ...]
    training_images: int
    validation_steps: tuple[Step, ...]
    validation_steps_on_all: tuple[Step, ...]


def lay_out(
    objective: Objective, steps: int, *, batch: int | None = None, held_out_share: float = 0.0
) -> Layout:
    """Choose the images of every step: every image once, in random order, before any is repeated.

    Args:
        objective: Calibration loss with the calibration images, the same in every process.
        steps: Number of steps.
        batch: Maximum number of images per step; ``None`` for the size of the first calibration
            batch.
        held_out_share: Share of the images that is held out.
    """
    images = choosers = objective.data
    held_out = held_out_positions(images.labels, held_out_share, objective.seed)
    training = sorted(set(range(len(images.labels))) - set(held_out))
    size = min(batch or images.batch_sizes[0], len(training))
    order = _endless(training, objective.seed)
    training_steps = []
    for number in range(steps):
        seed = objective.seed * 1_000_003 + 2 * number
        positions = tuple(islice(order, size))
        prompts = _draw_prompts(
            objective, _classes_present(images, positions), seed, PROMPTS_A_STEP
        )
        training_steps.append(Step(number, seed, images, positions, *prompts))
    if objective.choosers is not None:
        choosers = objective.choosers
        held_out = list(range(len(choosers.labels)))
    return Layout(
        tuple(training_steps),
        len(training),
        _lay_out_validation(objective, [(choosers, held_out)], size),
        _lay_out_validation(objective, [(choosers, held_out), (images, training)], size),
    )


def _lay_out_validation(
    objective: Objective, parts: Sequence[tuple[ShardedBatches, Sequence[int]]], size: int
) -> tuple[Step, ...]:
    """Steps that show all of the given images in every round, at most ``size`` per step."""
    count = sum(len(positions) for _, positions in parts)
    rounds = range(min(_ROUNDS, math.ceil(_VALIDATION_IMAGES / max(1, count))))
    present = sorted({images.labels[at] for images, positions in parts for at in positions})
    prompts = _draw_prompts(
        objective, torch.tensor(present), _VALIDATION_SEEDS, PROMPTS_A_VALIDATION
    )
    runs = [
        (images, tuple(positions[start : start + size]))
        for _ in rounds
        for images, positions in parts
        for start in range(0, len(positions), size)
    ]
    return tuple(
        Step(n, _VALIDATION_SEEDS + 2 * n, images, positions, *prompts)
        for n, (images, positions) in enumerate(runs)
    )


def held_out_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold out, ascending: equally many per class if possible, more than half of a
    class only after half of all, and its last one at the very last.

    Fewer than `MIN_IMAGES` images are all learned from. `images.split` holds out the images of the
    verdict by another order, in proportion to the classes; this one stays as long as the published
    results, which depend on it.

    Example:
        >>> labels = [0] * 4 + [1] * 4
        >>> [labels[position] for position in held_out_positions(labels, 0.25, seed=0)]
        [0, 1]
    """
    if len(labels) < MIN_IMAGES or share == 0:
        return []
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    images = Counter(labels)
    counts = Counter[int]()
    ranked = []
    for index, position in enumerate(order):
        label = labels[position]
        counts[label] += 1
        given, all_of_class = counts[label], images[label]
        rank = (given == all_of_class, 2 * given > all_of_class, given)
        ranked.append((*rank, index, position))
    count = min(max(1, round(share * len(labels))), len(labels) - 1)
    return sorted(position for *_, position in sorted(ranked)[:count])


def with_unlabelled(
    objective: Objective, steps: Sequence[Step], count: Callable[[int], int]
) -> list[Step]:
    """Draw unlabelled images for every step, if there are any: every image once, in random order,
    before any repeats.

    Args:
        objective: Has the unlabelled images, the same in every process.
        steps: The steps.
        count: Number of unlabelled images for a number of images in a step.
    """
    if objective.unlabelled is None:
        return list(steps)
    images = objective.unlabelled
    order = _endless(range(len(images.labels)), objective.seed + _UNLABELLED_SEEDS)
    return [
        replace(step, unlabelled_images=images, unlabelled=tuple(islice(order, count(len(step)))))
        for step in steps
    ]


def shard_steps(objective: Objective, steps: Sequence[Step], min_images: int) -> list[Step]:
    """Shard the images of every step over the processes; each of them takes steps with too few
    images whole.

    Args:
        objective: Knows the processes.
        steps: The steps.
        min_images: Fewest images, or strongly augmented ones, of any step.
    """
    context = objective.data.context
    # a contrastive loss compares all images of a step, so every process takes all of them
    if min_images < context.world_size or objective.criterion.is_contrastive:
        return list(steps)
    return [replace(step, rank=context.rank, world_size=context.world_size) for step in steps]


def _endless(positions: Sequence[int], seed: int) -> Iterator[int]:
    """The positions in one random order after another, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (
            positions[index]
            for index in torch.randperm(len(positions), generator=generator).tolist()
        )


def _classes_present(images: ShardedBatches, positions: Sequence[int]) -> Tensor:
    present = sorted({images.labels[position] for position in positions})
    return torch.tensor(present, dtype=torch.int64)


def _draw_prompts(
    objective: Objective, present: Tensor, seed: int, max_prompts: int
) -> tuple[Tensor | None, Tensor | None]:
    """Draw templates, and if necessary classes, so that at most ``max_prompts`` prompts are
    embedded; of captions, take those that are present.
    """
    if objective.criterion.is_contrastive:
        return present, None
    count = objective.criterion.prompts.classes
    templates = objective.criterion.prompts.templates
    if count * templates <= max_prompts:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(templates, generator=generator)[: max(1, max_prompts // count)]
    if count * len(chosen) <= max_prompts:
        return None, chosen
    others = torch.randperm(count, generator=generator)
    others = others[~torch.isin(others, present)][: max(0, max_prompts - len(present))]
    return torch.cat([present, others]).sort().values, chosen
