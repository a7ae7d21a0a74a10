"""The distribution of learned coefficients: histograms by tower, and the share of each layer that stays zero-shot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Equal bins from 0 to `TOP`, twice the fine-tuned model's: no coefficient is learned beyond it.
BINS, TOP = 40, 2.0


def histograms(
    coefficients: Mapping[str, Tensor], layers: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
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
                found = [int(count) for count in coefficient.histc(bins=BINS, min=0.0, max=TOP).tolist()]
                repeated = sizes[name] // max(1, sum(found))
                tower[:] = [total + repeated * count for total, count in zip(tower, found, strict=True)]
    return {tower: tuple(values) for tower, values in counts.items()}


def zeroshot_shares(
    coefficients: Mapping[str, Tensor], layers: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Share of each layer's entries whose learned coefficient is 0: the zero-shot model's bytes."""
    shares = {}
    for layer, names in layers.items():
        learned = [name for name in names if name in coefficients]
        zeros = sum(float((coefficients[name] == 0).double().mean()) * sizes[name] for name in learned)
        shares[layer] = zeros / max(1, sum(sizes[name] for name in learned))
    return shares
