"""The tensors of a plan: saliency scores and learned coefficients, in one safetensors file beside
it.

A coefficient tensor has one number for the whole parameter, one per row (output channel), or one
per entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipmerge.errors import PlanError
from clipmerge.planning.layer_plan import LayerPlan, LearnedAlpha
from clipmerge.planning.plan import COEFFICIENTS, SCORES, Plan
from clipmerge.types import Layers, Shape, Tensors

if TYPE_CHECKING:
    from torch import Tensor

# Tolerance for a plan's mean and range, computed in float64 from float32 numbers: only the order of
# a sum may differ.
_SAME = 1e-6
#: Equal bins from 0 to `TOP`, twice the fine-tuned model's: no coefficient is learned beyond it.
BINS, TOP = 40, 2.0


def named_tensors(scores: Mapping[str, Tensor], coefficients: Mapping[str, Tensor]) -> Tensors:
    """Scores for the masks that need them, and coefficients, by parameter, under their names in the
    plan.
    """
    named = {f"{SCORES}{name}": tensor for name, tensor in scores.items()}
    return named | {f"{COEFFICIENTS}{name}": tensor for name, tensor in coefficients.items()}


def with_coefficients(
    layers: Mapping[str, LayerPlan],
    coefficients: Mapping[str, Tensor],
    names: Layers,
    shapes: Mapping[str, Shape],
) -> dict[str, LayerPlan]:
    """Store the mean and the range of its coefficients in each layer that has some."""
    filled = dict(layers)
    for layer, entry in layers.items():
        learned = [
            (coefficients[name], shapes[name]) for name in names[layer] if name in coefficients
        ]
        if learned:
            found = _summary(learned)
            filled[layer] = entry.replace(alpha=found.mean, alpha_range=(found.low, found.high))
    return filled


def _summary(learned: list[tuple[Tensor, Shape]]) -> LearnedAlpha:
    """Mean over all entries of the parameters, smallest and largest coefficient."""
    total = sum(math.prod(shape) * float(c.double().mean()) for c, shape in learned)
    mean = total / max(sum(math.prod(shape) for _, shape in learned), 1)
    return LearnedAlpha(
        mean, min(float(c.min()) for c, _ in learned), max(float(c.max()) for c, _ in learned)
    )


def check_coefficients(plan: Plan, names: Layers, shapes: Mapping[str, Shape]) -> None:
    """Check a plan, which may have been edited, against its coefficients."""
    coefficients = plan.coefficients
    for name, coefficient in coefficients.items():
        if name not in shapes:
            raise PlanError(
                f"the plan has coefficients for {name}, which does not exist; plan again"
            )
        actual, shape = tuple(coefficient.shape), shapes[name]
        if coefficient.numel() != 1 and actual not in (shape, rows_shape(shape)):
            raise PlanError(
                f"the coefficients of {name} have shape {actual}, but the parameter has {shape}:"
                " expected one number, one per row or one per entry"
            )
        if not coefficient.is_floating_point() or not bool(coefficient.isfinite().all()):
            raise PlanError(f"the coefficients of {name} are not finite numbers; plan again")
    for layer, entry in plan.layers.items():
        stated = entry.coefficient
        if not isinstance(stated, LearnedAlpha):
            continue
        learned = [
            (coefficients[name], shapes[name]) for name in names[layer] if name in coefficients
        ]
        if not learned:
            raise PlanError(
                f"layer '{layer}' has an alpha_range, but the plan holds no coefficients for it;"
                " remove alpha_range to give the layer one alpha"
            )
        found = _summary(learned)
        if (
            max(
                abs(found.mean - stated.mean),
                abs(found.low - stated.low),
                abs(found.high - stated.high),
            )
            > _SAME
        ):
            raise PlanError(
                f"layer '{layer}': alpha {stated.mean:g} and alpha_range are not the mean and range"
                f" of its coefficients (mean {found.mean:g}); remove alpha_range to give the layer"
                " one alpha"
            )


def rows_shape(shape: Shape) -> Shape:
    """Shape of coefficients with one number per row: (rows, 1, ...); () if the parameter is a
    scalar.
    """
    return tuple(length if axis == 0 else 1 for axis, length in enumerate(shape))


def coefficients_of_run(
    coefficient: float | Tensor, shape: Shape, start: int, stop: int | None
) -> float | Tensor:
    """Select the coefficients of a run of entries in memory order; ``stop=None`` takes all,
    unflattened.

    Example:
        >>> import torch
        >>> coefficients_of_run(torch.tensor([[0.0], [1.0]]), (2, 3), 2, 5)
        tensor([0., 1., 1.])
    """
    if isinstance(coefficient, float | int) or coefficient.numel() == 1:
        return float(coefficient)
    if stop is None:
        return coefficient
    if coefficient.shape == shape:
        return coefficient.reshape(-1)[start:stop]
    width = math.prod(shape[1:])
    first, last = start // width, -(-stop // width)
    rows = coefficient.reshape(-1)[first:last].repeat_interleave(width)
    return rows[start - first * width : stop - first * width]


def histograms(
    coefficients: Mapping[str, Tensor],
    layers: Layers,
    sizes: Mapping[str, int],
) -> dict[str, Shape]:
    """Count a model's entries by their coefficient.

    Example:
        >>> import torch
        >>> found = histograms({"w": torch.tensor([0.0, 1.0])}, {"vision.0.mlp": ("w",)}, {"w": 2})
        >>> found["vision"][0], found["vision"][20]
        (1, 1)
    """
    counts: dict[str, list[int]] = {}
    for layer, names in layers.items():
        for name in names:
            if name in coefficients:
                tower = counts.setdefault(layer.partition(".")[0], [0] * BINS)
                coefficient = coefficients[name].float().clamp(0.0, TOP)
                found = [
                    int(count) for count in coefficient.histc(bins=BINS, min=0.0, max=TOP).tolist()
                ]
                repeated = sizes[name] // max(1, sum(found))
                tower[:] = [
                    total + repeated * count for total, count in zip(tower, found, strict=True)
                ]
    return {tower: tuple(values) for tower, values in counts.items()}


def zeroshot_shares(
    coefficients: Mapping[str, Tensor],
    layers: Layers,
    sizes: Mapping[str, int],
) -> dict[str, float]:
    """Share of each layer's entries whose learned coefficient is 0: the zero-shot model's bytes."""
    shares = {}
    for layer, names in layers.items():
        learned = [name for name in names if name in coefficients]
        zeros = sum(
            float((coefficients[name] == 0).double().mean()) * sizes[name] for name in learned
        )
        shares[layer] = zeros / max(1, sum(sizes[name] for name in learned))
    return shares
