"""Sharpness of every layer, with the distance moved by fine-tuning as its radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.linalg import vector_norm

from clipmerge.calibration.objective import Objective


def layer_sharpness(objective: Objective) -> dict[str, tuple[float, ...]]:
    """Estimate how much a change of each layer can raise the loss at the current weights, in one gradient pass.

    For layer l and batch B it is ||gradient_l of L_B|| * ||task_vector_l||: to first order the largest rise of the
    loss if the layer alone moves as far as fine-tuning moved it, in any direction.

    Args:
        objective: Calibration loss, at weights set by `Objective.move_to`; see `Objective.fewer_prompts`.

    Returns:
        One value per calibration batch of all processes, in nats, by layer.
    """
    radii = {
        layer: _norm([objective.path.task_vector[name] for name in names])
        for layer, names in objective.path.layers.items()
    }
    rows = {}
    for batch, _ in objective.gradients():
        gradients = {
            layer: _norm([objective.path.gradient_of(name) for name in names])
            for layer, names in objective.path.layers.items()
        }
        rows[batch.number] = [gradients[layer] * radii[layer] for layer in objective.path.layers]
    ordered = objective.shares.by_batch(rows)
    return {layer: tuple(row[column] for row in ordered) for column, layer in enumerate(objective.path.layers)}


def sharpest(sharpness: dict[str, float], share: float) -> tuple[str, ...]:
    """Choose the fewest layers, sharpest first, that together hold a share of the total; at least one.

    Args:
        sharpness: Sharpness by layer.
        share: Share of the total, in [0, 1].

    Returns:
        The layers, in the order of ``sharpness``.

    Example:
        >>> sharpest({"a": 1.0, "b": 6.0, "c": 3.0}, 0.65)
        ('b', 'c')
    """
    total = sum(sharpness.values())
    chosen: list[str] = []
    for layer in sorted(sharpness, key=sharpness.__getitem__, reverse=True):
        if chosen and sum(sharpness[each] for each in chosen) >= share * total:
            break
        chosen.append(layer)
    return tuple(layer for layer in sharpness if layer in chosen)


def matched(order: Sequence[str], sizes: Mapping[str, int], entries: int) -> tuple[str, ...]:
    """Select layers in order until they have about ``entries`` entries, skipping those that would overshoot too far.

    Args:
        order: Layers.
        sizes: Number of entries by layer.
        entries: Number of entries wanted.

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


def _norm(tensors: list[Tensor]) -> float:
    return float(sum(float(vector_norm(tensor).double()) ** 2 for tensor in tensors) ** 0.5)
