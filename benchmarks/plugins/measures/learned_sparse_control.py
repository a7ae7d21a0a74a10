"""The control for learned-sparse: the same learning, with layers that are not the sharpest."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clipmerge.measures import Measurements, Objective, Statistic, sizes_of
from clipmerge.measures.learned_sparse import SparseOptions, block_sharpness, learn_sparse, sharpest
from clipmerge.plugins import Count, options_of

#: Whether it can also learn from unlabelled images.
UNLABELLED = True


@options_of(SparseOptions, without=("rule",))
def learned_sparse_control(
    objective: Objective,
    *,
    layers: Literal["flattest", "random"] = "flattest",
    draw: Count = 1,
    **options: Any,
) -> Measurements:
    """Learn coefficients with a sparse mask in other blocks' layers, which have about as many
    entries as the sharpest ones.

    If this works as well as learned-sparse, sharpness does not matter.

    Args:
        objective: Calibration loss; left at the chosen coefficients.
        layers: The ``flattest`` layers, or ``random`` ones.
        draw: Number of the random set.
        **options: See `SparseOptions`.

    Returns:
        As `learned_sparse`.
    """
    chosen = SparseOptions(**options)
    sizes = sizes_of(objective)

    def choose(sharpness: Statistic) -> tuple[str, ...]:
        values = block_sharpness(sharpness)
        entries = sum(sizes[layer] for layer in sharpest(values, chosen.share))
        order = sorted(values, key=values.__getitem__)
        if layers == "random":
            random.Random(1000 * objective.seed + draw).shuffle(order)
        return matched(order, sizes, entries)

    return learn_sparse(objective, chosen, choose)


def matched(order: Sequence[str], sizes: Mapping[str, int], entries: int) -> tuple[str, ...]:
    """Select layers in order until they have about ``entries`` entries, skipping those that would
    overshoot too far.

    Example:
        >>> matched(["a", "b", "c"], {"a": 2, "b": 9, "c": 3}, 5)
        ('a', 'c')
    """
    chosen: list[str] = []
    taken = 0
    for layer in order:
        if taken + sizes[layer] / 2 <= entries:
            chosen.append(layer)
            taken += sizes[layer]
    return tuple(chosen)
