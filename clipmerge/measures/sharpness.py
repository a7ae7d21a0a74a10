"""Sharpness of each layer: to first order, the largest rise of the loss if the layer alone moves as
far as fine-tuning moved it. Stragglers are the sharpest layers.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.linalg import vector_norm

from clipmerge.layers import block_of
from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import Measurements, Statistic
from clipmerge.plugins import Alpha, Share
from clipmerge.types import Names

#: Default share of the blocks' sharpness that stragglers have together.
STRAGGLER_SHARE = 0.15


def sharpness(
    objective: Objective, *, at: Alpha = 0.5, share: Share = STRAGGLER_SHARE
) -> Measurements:
    """Measure the sharpness of every layer at one point of the path, in one gradient pass.

    Args:
        objective: Calibration loss. Its weights are left at theta(at).
        at: Alpha of the point.
        share: Stragglers are the fewest layers that together have this share of the blocks'
            sharpness.

    Returns:
        The statistics ``sharpness`` in nats, ``sharpness_share`` of the total, and ``straggler``, 1
        or 0.

    Source:
        Inspired by Abdollahpoorrostam 2024, arXiv:2410.16476. The definition is ours.
    """
    objective.path.set_alpha(at)
    return measure_sharpness(objective, share)


def measure_sharpness(objective: Objective, share: float) -> Measurements:
    """Measure the sharpness of every layer at the current weights; see `sharpness`.

    On a batch B with loss L_B, the sharpness is ||gradient of L_B|| * ||task_vector||.
    """
    objective.announce(gradient=1)
    path = objective.path
    layers = path.layers.values()
    radii = [_norm(map(path.delta, names)) for names in layers]
    rows = {
        batch.number: [
            _norm(map(path.gradient, names)) * radius
            for names, radius in zip(layers, radii, strict=True)
        ]
        for batch, _ in objective.gradients()
    }
    measured = objective.statistic(
        "sharpness",
        rows,
        unit="nats",
        title="sharpness",
        about=(
            "largest first-order rise of the loss when this layer alone moves as far as"
            " fine-tuning moved it."
        ),
    )
    values = measured.values
    total = sum(values.values()) or 1.0
    shares = Statistic(
        name="sharpness_share",
        values={layer: value / total for layer, value in values.items()},
        title="share of the sharpness",
        about="the layer's share of all layers' sharpness.",
    )
    # Layers outside the blocks are never stragglers: a step of learning uses few rows of an
    # embedding table, and the other layers are small.
    blocks = {layer: value for layer, value in values.items() if block_of(layer)}
    stragglers = sharpest(blocks, share)
    straggler = Statistic(
        name="straggler",
        values={layer: float(layer in stragglers) for layer in values},
        title="straggler",
        about="1 for the sharpest layers of the blocks, which `straggler-sparse` makes sparse.",
    )
    return Measurements(
        measure="sharpness",
        statistics=(measured, shares, straggler),
        batch_sizes=objective.batch_sizes,
    )


def sharpest(sharpness: dict[str, float], share: float) -> Names:
    """Choose the fewest layers, the sharpest first and at least one, that together have a share of
    the total.

    Example:
        >>> sharpest({"a": 1.0, "b": 6.0, "c": 3.0}, 0.65), sharpest({"a": 1.0}, 1.0)
        (('b', 'c'), ('a',))
    """
    total = sum(sharpness.values())
    chosen: list[str] = []
    for layer in sorted(sharpness, key=sharpness.__getitem__, reverse=True):
        if chosen and sum(sharpness[sharper] for sharper in chosen) >= share * total:
            break
        chosen.append(layer)
    return tuple(layer for layer in sharpness if layer in chosen)


def _norm(tensors: Iterable[Tensor]) -> float:
    """Compute the Euclidean norm of all entries of several tensors."""
    squares = [float(vector_norm(tensor)) ** 2 for tensor in tensors]
    return float(sum(squares) ** 0.5)
