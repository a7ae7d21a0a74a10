"""The merge of one tensor; see `formula` for the formula and `selection` for the selections of
masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipmerge.merging.formula import unchanged_input, weighted_change
from clipmerge.merging.selection import RandomKey
from clipmerge.plugins import check_options, load_plugin
from clipmerge.types import Json


def merge_tensor(
    theta_0: Tensor,
    theta_1: Tensor | Sequence[Tensor],
    *,
    alpha: float | Tensor,
    weights: Sequence[float] = (1.0,),
    combine: Callable[[Tensor], Tensor] | None = None,
    mask: str | None = None,
    dtype: torch.dtype | None = None,
    **mask_inputs: Any,
) -> Tensor:
    """Move one parameter from zero-shot towards fine-tuned.

    Computes theta_0 + mask(alpha * sum_i weights_i * (theta_i - theta_0)) in float32 (float64 if
    any input is) and rounds once; a combination replaces the sum. alpha=0 gives theta_0 bit for
    bit, and alpha=1 without mask and combination gives theta_1.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        theta_1: Fine-tuned parameter, same shape, or a sequence for several checkpoints.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. A tensor broadcasts: one
            per row, or one per entry.
        weights: Factor of each fine-tuned checkpoint.
        combine: Combines task vectors stacked along the first dimension into one, see
            `bind_combination`; ``None`` for their sum.
        mask: Name of a mask, or ``None`` to keep the whole change. Scalars are never masked.
        dtype: Output dtype; ``None`` for that of theta_0.
        **mask_inputs: The mask's options, and ``score`` and ``key`` if it needs them.

    Returns:
        Merged parameter, shape of theta_0.

    Raises:
        ValueError: If shapes differ, or the number of weights is not that of the fine-tuned
            parameters.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.

    Example:
        >>> merge_tensor(torch.zeros(2), torch.tensor([2.0, 4.0]), alpha=0.5)
        tensor([1., 2.])
    """
    finetuned = [theta_1] if isinstance(theta_1, Tensor) else list(theta_1)
    if len(weights) != len(finetuned):
        raise ValueError(f"{len(weights)} weights for {len(finetuned)} fine-tuned parameters")
    for tensor in finetuned:
        if tensor.shape != theta_0.shape:
            raise ValueError(f"shapes differ: {tuple(theta_0.shape)} and {tuple(tensor.shape)}")
    dtype = dtype or theta_0.dtype
    if combine is not None or _is_masked(mask, theta_0):
        change = whole_change(
            theta_0,
            finetuned,
            alpha=alpha,
            weights=weights,
            combine=combine,
            mask=mask,
            **mask_inputs,
        )
        return apply_delta(theta_0, change, dtype)
    copied: Tensor | None = unchanged_input(theta_0, finetuned, alpha, weights)
    if copied is not None:
        return copied.to(dtype)
    base, *wide = _to_compute_dtype([theta_0, *finetuned])
    merged: Tensor = weighted_change(torch, base, wide, alpha=alpha, weights=weights).add_(base)
    if isinstance(alpha, Tensor):
        merged = torch.where(alpha == 0, base, merged)  # base + 0.0 would turn -0.0 into 0.0
        if tuple(weights) == (1.0,):
            merged = torch.where(alpha == 1, finetuned[0].to(merged.dtype), merged)
    return merged.to(dtype)


def whole_change(
    theta_0: Tensor,
    finetuned: Sequence[Tensor],
    *,
    alpha: float | Tensor,
    weights: Sequence[float],
    combine: Callable[[Tensor], Tensor] | None = None,
    mask: str | None = None,
    **mask_inputs: Any,
) -> Tensor:
    """The change of a whole parameter under a mask or a combination, to be added with
    `apply_delta`; see `merge_tensor`.
    """
    base, *wide = _to_compute_dtype([theta_0, *finetuned])
    if combine is None:
        change: Tensor = weighted_change(torch, base, wide, alpha=alpha, weights=weights)
    else:
        stack = torch.empty((len(wide), *base.shape), dtype=base.dtype)
        for which, theta_i in enumerate(wide):
            torch.sub(theta_i, base, out=stack[which])
        change = combine(stack) * alpha
        del stack  # free memory for the mask
    return apply_mask(str(mask), change, base, mask_inputs) if _is_masked(mask, theta_0) else change


def apply_delta(theta_0: Tensor, change: Tensor, dtype: torch.dtype) -> Tensor:
    """Add a change that may be zero for dropped entries, which stay zero-shot bit for bit, even
    negative zero.
    """
    base = theta_0.to(change.dtype)
    return torch.where(change == 0, base, base + change).to(dtype)


def _is_masked(mask: str | None, theta_0: Tensor) -> bool:
    return mask is not None and theta_0.numel() > 1


def _to_compute_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Convert tensors to the dtype of the arithmetic: float64 if any is, else float32."""
    wide = (
        torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    )
    return [tensor.to(wide) for tensor in tensors]


def apply_mask(name: str, change: Tensor, theta_0: Tensor, inputs: Json) -> Tensor:
    """Run a mask with the inputs in its signature."""
    function = load_plugin("masks", name)
    wanted = inspect.signature(function).parameters
    available = {"theta_0": theta_0, **inputs}
    masked: Tensor = function(
        change, **{key: value for key, value in available.items() if key in wanted}
    )
    return masked


def bind_combination(
    name: str,
    options: Json,
    weights: Sequence[float],
    key: RandomKey,
    *,
    sparsify: bool = True,
) -> Callable[[Tensor], Tensor]:
    """Prepare a method's rule for several task vectors: a function from (checkpoints, ...) to one
    (...).
    """
    function = load_plugin("combinations", name)
    checked = {**check_options("combinations", name, options), "key": key, "sparsify": sparsify}
    wanted = inspect.signature(function).parameters
    return partial(
        function, weights=tuple(weights), **{k: v for k, v in checked.items() if k in wanted}
    )


def weighted_sum(task_vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """Add task vectors one after another, always in the same order: (checkpoints, ...) to (...)."""
    total = task_vectors[0] * weights[0]
    for task_vector, weight in zip(task_vectors[1:], weights[1:], strict=True):
        total.add_(task_vector * weight)
    return total


def complete_mask_options(name: str, density: float, options: Json) -> Json:
    """Complete a mask's options: masks that have a density get it."""
    wanted = inspect.signature(load_plugin("masks", name)).parameters
    all_options = {"density": density, **options} if "density" in wanted else options
    checked = check_options("masks", name, all_options)
    return {key: value for key, value in checked.items() if value is not inspect.Parameter.empty}
