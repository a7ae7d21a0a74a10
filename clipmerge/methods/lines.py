"""Coefficients that increase with depth."""

from __future__ import annotations

from clipmerge.layers import block_of
from clipmerge.methods import Decision, Task
from clipmerge.planning.plan import LayerPlan
from clipmerge.plugins import Alpha


def lines(task: Task, *, alpha: Alpha = 0.5, slope: Alpha | None = None) -> Decision:
    """Scale the task vector linearly with depth: shallow layers stay general, deep ones specialise.

    Block l of L (l = 1 ... L, separately for each tower) gets alpha + slope * (l - 1) / (L - 1);
    everything outside the blocks gets alpha.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Coefficient of the first block and of everything outside the blocks.
        slope: Increase from the first to the last block; by default 1 - alpha, the value for one
            fine-tuned model.

    Returns:
        One coefficient per block.

    Source:
        LiNeS, Wang et al. 2024, arXiv:2410.17146.
    """
    rise = 1.0 - alpha if slope is None else slope
    layers = task.everywhere(alpha)
    reasons = dict.fromkeys(layers, "outside the blocks")
    blocks = {layer: block for layer in layers if (block := block_of(layer))}
    for layer, (tower, depth, _) in blocks.items():
        deepest = max(other for of, other, _ in blocks.values() if of == tower)
        layers[layer] = LayerPlan(alpha=alpha + rise * depth / max(deepest, 1))
        reasons[layer] = f"block {depth + 1} of {deepest + 1}, {tower} tower"
    return Decision(layers, reasons=reasons, weights=task.uniform_weights)
