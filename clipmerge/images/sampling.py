"""Samples with classes as balanced as possible."""

from __future__ import annotations

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
