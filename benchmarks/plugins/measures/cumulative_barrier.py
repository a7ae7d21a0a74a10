"""Cumulative barriers: how much each layer adds to the barrier as layers join from the first or
from the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipmerge.measures.layer_instability import instabilities

from clipmerge.measures import (
    Measurements,
    Objective,
    Statistic,
    by_layer,
    statistic,
    with_few_prompts,
)
from clipmerge.plugins import Count


@with_few_prompts
def cumulative_barrier(objective: Objective, *, points: Count = 3) -> Measurements:
    """Compute the barrier of the first k and of the last k layers for every k, and what each layer
    adds to it.

    The barrier of a set of layers is max over alpha of L(alpha) - (L(0) + L(1)) / 2, where the set
    moves together and all other layers are fine-tuned. Costs 1 + 2 L (``points`` + 1) forward
    passes for L layers.

    Args:
        objective: Calibration loss; left at theta_1.
        points: Evenly spaced values of alpha between 0 and 1.

    Returns:
        Statistics ``from_first`` and ``from_last`` in nats: the barrier with this layer minus the
        barrier without it, as layers join in the order of the network or against it. Either sums to
        the barrier of the whole path.

    Source:
        Adilova et al. 2023, arXiv:2307.06966.
    """
    objective.announce(forward=1 + 2 * (points + 1) * len(objective.weights.layers))
    objective.weights.set_alpha(1.0)
    finetuned = objective.losses()
    order = list(objective.weights.layers)
    return Measurements(
        measure="cumulative-barrier",
        statistics=(
            _added(
                objective, "from_first", order, points, finetuned, "the first layers up to this one"
            ),
            _added(
                objective,
                "from_last",
                order[::-1],
                points,
                finetuned,
                "the last layers from this one on",
            ),
        ),
        batch_sizes=objective.data.batch_sizes,
    )


def _added(
    objective: Objective,
    name: str,
    order: Sequence[str],
    points: int,
    finetuned: dict[int, float],
    moving: str,
) -> Statistic:
    """The rise of the barrier with every further layer."""
    before = dict.fromkeys(finetuned, 0.0)
    added: dict[str, dict[int, float]] = {}
    for count, layer in enumerate(order, start=1):
        barrier = instabilities(objective, order[:count], points, finetuned)
        added[layer] = {number: barrier[number] - before[number] for number in barrier}
        before = barrier
    values = {
        number: [added[layer][number] for layer in objective.weights.layers] for number in finetuned
    }
    return statistic(
        objective,
        name,
        by_layer(objective, values),
        signed=True,
        unit="nats",
        title=f"barrier added {name.replace('_', ' the ')} layer",
        about=f"what this layer adds to the barrier when {moving} go to fine-tuned together.",
    )
