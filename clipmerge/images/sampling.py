"""Samples with classes as balanced as possible, read in few blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np

from clipmerge.types import Shape


def balanced_sample(labels: Shape, count: int, seed: int) -> list[int]:
    """Positions of a shuffled sample with classes as balanced as possible; the seed draws which get
    one more.
    """
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[int]] = {}
    for position in rng.permutation(len(labels)).tolist():
        by_class.setdefault(labels[position], []).append(position)
    picked: list[int] = []
    for turn in range(max((len(positions) for positions in by_class.values()), default=0)):
        classes = [label for label in sorted(by_class) if turn < len(by_class[label])]
        missing = count - len(picked)
        # drawn apart, so that a sample of some blocks draws the same classes
        if missing < len(classes):
            drawn = np.random.default_rng([seed, count]).permutation(len(classes))[:missing]
            classes = [classes[at] for at in sorted(drawn.tolist())]
        picked += [by_class[label][turn] for label in classes]
    return [picked[at] for at in rng.permutation(len(picked)).tolist()]


def candidate_positions(labels: Shape, blocks: Shape, count: int, seed: int) -> list[int]:
    """List positions to sample from: the fewest blocks that give every class its share of a
    balanced sample.

    Blocks are visited in a seeded order, and one is taken when it holds a class that still lacks
    images. A sample of the result has as many images per class as a sample of everything.
    """
    if not blocks or count >= len(labels):
        return list(range(len(labels)))
    classes = np.asarray(labels)
    block_numbers = np.asarray(blocks)
    sizes = np.bincount(classes)
    rounds = next(
        turn for turn in range(1, len(labels) + 1) if np.minimum(sizes, turn).sum() >= count
    )
    lacking = np.minimum(sizes, rounds)
    taken = []
    for block in np.random.default_rng([seed, len(labels)]).permutation(block_numbers[-1] + 1):
        here = np.bincount(
            classes[
                np.searchsorted(block_numbers, block) : np.searchsorted(
                    block_numbers, block, "right"
                )
            ]
        )
        here = np.pad(here, (0, len(sizes) - len(here)))
        if not (lacking > 0).any():
            break
        if ((here > 0) & (lacking > 0)).any():
            lacking = lacking - here
            taken.append(block)
    return [int(position) for position in np.flatnonzero(np.isin(block_numbers, taken))]


def holds_a_balanced_sample(labels: Iterable[Hashable], count: int, classes: int = 0) -> bool:
    """Whether images are enough for a sample with an equal share of each class."""
    sizes = Counter(labels)
    share = -(-count // max(classes, len(sizes), 1))
    return sum(min(size, share) for size in sizes.values()) >= count
