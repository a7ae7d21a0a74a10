"""Steps of learning: the images, classes and random seed of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from clipmerge.calibration.held_back import held_back
from clipmerge.calibration.objective import Objective
from clipmerge.images.batches import Batch

#: Maximum number of prompts embedded per step; if there are more, a step draws templates, and then classes. Evaluations
#: on the held-back images are rare, so they embed more.
PROMPTS_A_STEP, PROMPTS_A_LOOK = 256, 1024
# Number of different seeds.
_SEEDS = 2**63 - 1
# Held-back images are repeated, with fresh changes each time, up to about this number, but at most `_ROUNDS` times.
_LOOKS, _ROUNDS = 400, 4
# Seeds of the held-back changes start here, above those of all steps.
_HELD_SEEDS = 2**40
# The seed of the order of unlabelled images, likewise.
_UNLABELLED_SEEDS = 2**41


class Pool:
    """The calibration images of all processes, by their position in the sample."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        """Store the batches without copying.

        Args:
            batches: All batches, in order.
        """
        self._places = [(batch, row) for batch in batches for row in range(len(batch))]
        self.labels = [int(label) for batch in batches for label in batch.labels]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places)

    def take(self, positions: Sequence[int], number: int) -> Batch:
        """Copy some images into a new batch.

        Args:
            positions: Positions of the images.
            number: Number of the new batch.
        """
        places = [self._places[position] for position in positions]
        pixels = torch.stack([batch.pixels[row] for batch, row in places])
        return Batch(number, pixels, torch.stack([batch.labels[row] for batch, row in places]))


@dataclass(frozen=True)
class Drawn:
    """Some images of a pool.

    Attributes:
        pool: The images.
        positions: Positions in the pool.
    """

    pool: Pool
    positions: tuple[int, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    @property
    def pixels(self) -> Tensor:
        """The images, (images, 3, height, width), copied on every access."""
        return self.pool.take(self.positions, 0).pixels


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
        features: The zero-shot model's features of the changed images, (images, projection_dim), if needed.
        target: The teacher's log probabilities of the classes for the changed images, (images, classes).
        unlabelled: Unlabelled images that take the place of the last changed copies; ``None`` for none.
        share: This process's number and that of the processes which share the step's images; (0, 1) to take all.
    """

    number: int
    seed: int
    pool: Pool
    positions: tuple[int, ...]
    classes: Tensor | None = None
    templates: Tensor | None = None
    features: Tensor | None = None
    target: Tensor | None = None
    unlabelled: Drawn | None = None
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    @property
    def part(self) -> float:
        """The part of the step's work that this process does."""
        return 1 / self.share[1]

    @property
    def own(self) -> slice:
        """This process's images of the step, or of their changed copies."""
        return slice(self.share[0], None, self.share[1])

    @property
    def batch(self) -> Batch:
        """The images, copied on every access: those of all steps together would not fit into memory."""
        return self.pool.take(self.positions, self.number)


@dataclass(frozen=True)
class Layout:
    """All steps, and the evaluations ("looks") on the images held back from them.

    Attributes:
        steps: The steps, in order.
        held: Looks at the held-back images, each with its own changes; empty if nothing is held back.
    """

    steps: tuple[Step, ...]
    held: tuple[Step, ...]

    @property
    def images_held(self) -> int:
        """Number of images held back."""
        return len({position for step in self.held for position in step.positions})


def lay_out(objective: Objective, steps: int, *, batch: int | None = None, share: float = 0.0) -> Layout:
    """Choose the images of every step: every image once, in random order, before any is repeated.

    Args:
        objective: Calibration loss with the calibration images, the same in every process.
        steps: Number of steps.
        batch: Maximum number of images per step; ``None`` for the size of the first calibration batch.
        share: Share of the images that is held back.
    """
    batches = objective.shares.every_batch()
    pool = Pool(batches)
    kept_back = held_back(pool.labels, share, objective.seed)
    learned_on = sorted(set(range(len(pool))) - set(kept_back))
    size = min(batch or len(batches[0]), len(learned_on))
    seeds = (objective.seed * 1_000_003 + 2 * number for number in range(steps))
    runs = _runs(learned_on, size, objective.seed)
    chosen = [_step(objective, pool, number, seed, next(runs)) for number, seed in enumerate(seeds)]
    rounds = range(min(_ROUNDS, max(1, _LOOKS // max(1, len(kept_back)))))
    looks = [tuple(kept_back[start : start + size]) for _ in rounds for start in range(0, len(kept_back), size)]
    shown = _drawn_prompts(objective, _classes(pool, kept_back), _HELD_SEEDS, PROMPTS_A_LOOK)
    held = [Step(number, _HELD_SEEDS + 2 * number, pool, look, *shown) for number, look in enumerate(looks)]
    return Layout(tuple(chosen), tuple(held))


def with_unlabelled(objective: Objective, steps: Sequence[Step], count: Callable[[int], int]) -> list[Step]:
    """Draw unlabelled images for every step: every image once, in random order, before any is repeated.

    Args:
        objective: Has the unlabelled images, the same in every process.
        steps: The steps.
        count: Number of unlabelled images for a number of images in a step.

    Returns:
        The steps with their images; the steps unchanged if there are no unlabelled images.
    """
    if objective.unlabelled is None:
        return list(steps)
    pool = Pool(objective.unlabelled.every_batch())
    order = _endless(range(len(pool)), (objective.seed + _UNLABELLED_SEEDS) % _SEEDS)
    return [replace(step, unlabelled=Drawn(pool, tuple(islice(order, count(len(step)))))) for step in steps]


def dealt(objective: Objective, steps: Sequence[Step], fewest: int) -> list[Step]:
    """Share the images of every step among the processes; each of them takes a step with too few images whole.

    Args:
        objective: Knows the processes.
        steps: The steps.
        fewest: Fewest images, or changed copies of them, of any step.
    """
    accelerator = objective.shares.accelerator
    share = (accelerator.process_index, accelerator.num_processes)
    return [replace(step, share=share) for step in steps] if fewest >= accelerator.num_processes else list(steps)


def _runs(positions: Sequence[int], size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless runs of ``size`` positions, from one random order after another."""
    order = _endless(positions, seed)
    while True:
        yield tuple(islice(order, size))


def _endless(positions: Sequence[int], seed: int) -> Iterator[int]:
    """The positions in one random order after another, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (positions[place] for place in torch.randperm(len(positions), generator=generator).tolist())


def _step(objective: Objective, pool: Pool, number: int, seed: int, positions: tuple[int, ...]) -> Step:
    seed %= _SEEDS
    return Step(
        number, seed, pool, positions, *_drawn_prompts(objective, _classes(pool, positions), seed, PROMPTS_A_STEP)
    )


def _classes(pool: Pool, positions: Sequence[int]) -> Tensor:
    return torch.tensor(sorted({pool.labels[position] for position in positions}), dtype=torch.int64)


def _drawn_prompts(objective: Objective, present: Tensor, seed: int, most: int) -> tuple[Tensor | None, Tensor | None]:
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
