"""Steps of learning: the images, classes and random seed of each step, and the images held back to
judge the result.
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

#: With fewer images than this nothing is held back: neither part would be informative.
FEWEST_IMAGES = 8
#: Maximum number of prompts embedded per step; if there are more, a step draws templates, and then
#: classes. Validation is rare, so it embeds more.
PROMPTS_A_STEP, PROMPTS_A_VALIDATION = 256, 1024
# Number of different seeds.
_SEEDS = 2**63 - 1
# Held-back images are repeated, with fresh changes each time, up to about this number, but at most
# `_ROUNDS` times.
_VALIDATION_IMAGES, _ROUNDS = 400, 4
# Seeds of the changes to held-back images start here, above those of all steps.
_VALIDATION_SEEDS = 2**40
# The seed of the order of unlabelled images, likewise.
_UNLABELLED_SEEDS = 2**41


class Pool:
    """The calibration images of all processes, by their position in the sample."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        """Store the batches, in order, without copying."""
        self._rows = [(batch, row) for batch in batches for row in range(len(batch))]
        self.labels = [int(label) for batch in batches for label in batch.labels]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def take(self, positions: Sequence[int], number: int) -> Batch:
        """Copy the images at some positions into a new batch of this number."""
        rows = [self._rows[position] for position in positions]
        pixels = torch.stack([batch.pixels[row] for batch, row in rows])
        return Batch(number, pixels, torch.stack([batch.labels[row] for batch, row in rows]))


@dataclass(frozen=True)
class PoolImages:
    """Some images of a pool, by their positions in it."""

    pool: Pool
    positions: tuple[int, ...]

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Copy some of the images, (images, 3, height, width)."""
        return self.pool.take([self.positions[row] for row in rows], 0).pixels


@dataclass(frozen=True)
class Targets:
    """What is distilled into changed images.

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
            nothing if each is None else list(each.tensor_split(count))
            for each in (self.predictions, self.features)
        )
        return list(map(Targets, predictions, features))


@dataclass(frozen=True)
class Step:
    """Input of one evaluation of the goal.

    Attributes:
        number: Index of the step.
        seed: Seed of all random changes; the next number is used too.
        pool: The images.
        positions: Positions of the step's images in the pool.
        classes: Class indices to distinguish, ascending; ``None`` for all.
        templates: Indices of the templates used; ``None`` for all.
        targets: What is distilled into the changed images.
        pixels: This process's views and changed copies; ``None`` if they are made whenever they are
            needed.
        unlabelled: Unlabelled images that take the place of the last changed copies; ``None`` for
            none.
        shard: This process's number and that of the processes which share the step's images; (0, 1)
            to take all.
    """

    number: int
    seed: int
    pool: Pool
    positions: tuple[int, ...]
    classes: Tensor | None = None
    templates: Tensor | None = None
    targets: Targets | None = None
    pixels: Tensor | None = None
    unlabelled: PoolImages | None = None
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    @property
    def work_share(self) -> float:
        """The share of the step's work that this process does."""
        return 1 / self.shard[1]

    @property
    def own_rows(self) -> slice:
        """This process's images of the step, or of their changed copies."""
        return slice(self.shard[0], None, self.shard[1])

    @property
    def batch(self) -> Batch:
        """This process's images, copied on every access: those of all steps together would not fit
        into memory.
        """
        return self.pool.take(self.positions[self.own_rows], self.number)


@dataclass(frozen=True)
class Layout:
    """All steps, and those that evaluate the goal on held-back images, each with its own changes;
    none if none are.
    """

    steps: tuple[Step, ...]
    validation_steps: tuple[Step, ...]


def lay_out(
    objective: Objective, steps: int, *, batch: int | None = None, share: float = 0.0
) -> Layout:
    """Choose the images of every step: every image once, in random order, before any is repeated.

    Args:
        objective: Calibration loss with the calibration images, the same in every process.
        steps: Number of steps.
        batch: Maximum number of images per step; ``None`` for the size of the first calibration
            batch.
        share: Share of the images that is held back.
    """
    batches = objective.shares.every_batch()
    pool = Pool(batches)
    held_back = held_back_positions(pool.labels, share, objective.seed)
    training = sorted(set(range(len(pool))) - set(held_back))
    size = min(batch or len(batches[0]), len(training))
    order = _endless(training, objective.seed)
    laid_out = []
    for number in range(steps):
        seed, positions = (
            (objective.seed * 1_000_003 + 2 * number) % _SEEDS,
            tuple(islice(order, size)),
        )
        prompts = _drawn_prompts(objective, _classes(pool, positions), seed, PROMPTS_A_STEP)
        laid_out.append(Step(number, seed, pool, positions, *prompts))
    rounds = range(min(_ROUNDS, math.ceil(_VALIDATION_IMAGES / max(1, len(held_back)))))
    runs = [
        tuple(held_back[start : start + size])
        for _ in rounds
        for start in range(0, len(held_back), size)
    ]
    prompts = _drawn_prompts(
        objective, _classes(pool, held_back), _VALIDATION_SEEDS, PROMPTS_A_VALIDATION
    )
    validation = [
        Step(n, _VALIDATION_SEEDS + 2 * n, pool, positions, *prompts)
        for n, positions in enumerate(runs)
    ]
    return Layout(tuple(laid_out), tuple(validation))


def held_back_positions(labels: Sequence[int], share: float, seed: int) -> list[int]:
    """Choose images to hold back, ascending: equally many per class if possible, and the last of a
    class last.

    Fewer than `FEWEST_IMAGES` images are all learned from.

    Example:
        >>> labels = [0] * 4 + [1] * 4
        >>> [labels[position] for position in held_back_positions(labels, 0.25, seed=0)]
        [0, 1]
    """
    if len(labels) < FEWEST_IMAGES or share == 0:
        return []
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    images, counts = Counter(labels), Counter[int]()
    ranked = []
    for place, position in enumerate(order):
        label = labels[position]
        counts[label] += 1
        ranked.append((counts[label] == images[label], counts[label], place, position))
    count = max(1, round(share * len(labels)))
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
    pool = Pool(objective.unlabelled.every_batch())
    order = _endless(range(len(pool)), (objective.seed + _UNLABELLED_SEEDS) % _SEEDS)
    return [
        replace(step, unlabelled=PoolImages(pool, tuple(islice(order, count(len(step))))))
        for step in steps
    ]


def shard_steps(objective: Objective, steps: Sequence[Step], fewest: int) -> list[Step]:
    """Share the images of every step among the processes; each of them takes a step with too few
    images whole.

    Args:
        objective: Knows the processes.
        steps: The steps.
        fewest: Fewest images, or changed copies of them, of any step.
    """
    context = objective.shares.context
    shard = (context.rank, context.world_size)
    return (
        [replace(step, shard=shard) for step in steps]
        if fewest >= context.world_size
        else list(steps)
    )


def _endless(positions: Sequence[int], seed: int) -> Iterator[int]:
    """The positions in one random order after another, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (
            positions[place]
            for place in torch.randperm(len(positions), generator=generator).tolist()
        )


def _classes(pool: Pool, positions: Sequence[int]) -> Tensor:
    return torch.tensor(
        sorted({pool.labels[position] for position in positions}), dtype=torch.int64
    )


def _drawn_prompts(
    objective: Objective, present: Tensor, seed: int, most: int
) -> tuple[Tensor | None, Tensor | None]:
    """Draw templates, and if necessary classes, so that at most ``most`` prompts are embedded."""
    count, templates = objective.criterion.prompts.classes, objective.criterion.prompts.templates
    if count * templates <= most:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(templates, generator=generator)[: max(1, most // count)]
    if count * len(chosen) <= most:
        return None, chosen
    others = torch.randperm(count, generator=generator)
    others = others[~torch.isin(others, present)][: max(0, most - len(present))]
    return torch.cat([present, others]).sort().values, chosen
