"""The merge of one tensor, and how masks select. The formula itself is in `formula`."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmerge.formula import copied_input, weighted_change
from clipmerge.plugins import check_options, load_plugin
from clipmerge.threads import one_thread

_DRAWS = 1 << 20


@dataclass(frozen=True)
class RandomKey:
    """What a random mask depends on, and nothing else.

    Attributes:
        seed: Seed of the run.
        name: Parameter name.
    """

    seed: int
    name: str


def merge_tensor(
    theta_0: Tensor,
    theta_1: Tensor | Sequence[Tensor],
    *,
    alpha: float | Tensor,
    weights: Sequence[float] = (1.0,),
    mask: str | None = None,
    dtype: torch.dtype | None = None,
    **mask_inputs: Any,
) -> Tensor:
    """Move one parameter from zero-shot towards fine-tuned.

    Computes theta_0 + mask(alpha * sum_i weights_i * (theta_i - theta_0)) in float32 (float64 if any is) and rounds
    once. alpha=0 gives theta_0 back bit for bit, alpha=1 without a mask theta_1.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        theta_1: Fine-tuned parameter, same shape; several for several checkpoints.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. A tensor broadcasts: one a row, or
            one an entry.
        weights: Factor of each fine-tuned checkpoint.
        mask: Name of a mask, or ``None`` to keep the whole change. Scalars are never masked.
        dtype: Output dtype; ``None`` for that of theta_0.
        **mask_inputs: The mask's options, and what it needs of ``score`` and ``key``.

    Returns:
        Merged parameter, shape of theta_0.

    Raises:
        ValueError: If shapes differ, or there is not one weight a fine-tuned parameter.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.

    Example:
        >>> merge_tensor(torch.zeros(2), torch.tensor([2.0, 4.0]), alpha=0.5)
        tensor([1., 2.])
    """
    finetuned = [theta_1] if isinstance(theta_1, Tensor) else list(theta_1)
    if len(weights) != len(finetuned):
        raise ValueError(f"{len(weights)} weights for {len(finetuned)} fine-tuned parameters")
    for each in finetuned:
        if each.shape != theta_0.shape:
            raise ValueError(f"shapes differ: {tuple(theta_0.shape)} and {tuple(each.shape)}")
    dtype = dtype or theta_0.dtype
    masked = mask is not None and theta_0.numel() > 1
    copied: Tensor | None = None if masked else copied_input(theta_0, finetuned, alpha, weights)
    if copied is not None:
        return copied.to(dtype)
    base, *wide = _widened([theta_0, *finetuned])
    change: Tensor = weighted_change(base, wide, alpha=alpha, weights=weights)
    if masked:
        change = apply_mask(str(mask), change, base, mask_inputs)
        # an entry that is not kept is zero-shot's bit for bit, negative zero included
        merged = torch.where(change == 0, base, base + change)
    else:
        merged = change.add_(base)
    if isinstance(alpha, Tensor) and not masked:
        merged = torch.where(alpha == 0, base, merged)  # base + 0.0 would turn -0.0 into 0.0
        if tuple(weights) == (1.0,):
            merged = torch.where(alpha == 1, finetuned[0].to(merged.dtype), merged)
    return merged.to(dtype)


def _widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give tensors the arithmetic's dtype: float64 if any is, else float32."""
    wide = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    return [each.to(wide) for each in tensors]


def apply_mask(name: str, change: Tensor, theta_0: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Run a mask with the inputs that it asks for.

    Args:
        name: Name of the mask.
        change: alpha * task_vector, any shape.
        theta_0: Zero-shot parameter in the same dtype.
        inputs: Options and context by name; what the mask does not ask for is left out.

    Returns:
        The change that is made, same shape.
    """
    function = load_plugin("masks", name)
    wanted = inspect.signature(function).parameters
    available = {"theta_0": theta_0, **inputs}
    kept: Tensor = function(change, **{key: value for key, value in available.items() if key in wanted})
    return kept


def mask_options(name: str, density: float, options: dict[str, Any]) -> dict[str, Any]:
    """Complete a mask's options: density goes to the masks that have one.

    Args:
        name: Name of the mask.
        density: Share of the task vector kept.
        options: The mask's own options.

    Returns:
        Options to call the mask with.

    Raises:
        RecipeError: If an option is unknown or out of its range.
    """
    wanted = inspect.signature(load_plugin("masks", name)).parameters
    given = {"density": density, **options} if "density" in wanted else options
    checked = check_options("masks", name, given)
    return {key: value for key, value in checked.items() if value is not inspect.Parameter.empty}


def keep_largest(score: Tensor, density: float) -> Tensor:
    """Select the largest scores; equal scores are taken by index, so the selection is unique.

    Args:
        score: Non-negative, any shape.
        density: Share kept, in (0, 1]; at least one entry is.

    Returns:
        Boolean, same shape.

    Example:
        >>> keep_largest(torch.tensor([1.0, 1.0, 0.0, 1.0]), 0.5)
        tensor([ True,  True, False, False])
    """
    kept = max(1, round(density * score.numel()))
    flat = score.flatten()
    if kept >= flat.numel():
        return torch.ones_like(score, dtype=torch.bool)
    # numpy selects in linear time; the value of the k-th largest is unique even though its position is not
    threshold = float(np.partition(flat.numpy(), flat.numel() - kept)[flat.numel() - kept])
    above = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    above[ties[: kept - int(above.sum())]] = True
    return above.view(score.shape)


def keep_random(shape: torch.Size, density: float, key: RandomKey) -> Tensor:
    """Select entries independently with one probability, from a counter-based generator (Philox).

    Args:
        shape: Shape of the parameter.
        density: Probability that an entry is kept.
        key: Seed and parameter name; nothing else enters, so neither order nor chunking matters.

    Returns:
        Boolean, of the given shape.
    """
    digest = hashlib.sha256(f"{key.seed}:{key.name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    # the top 53 bits, so that the limit is exact in a float and density 1 keeps everything
    limit = np.uint64(round(density * 2**53))
    keep = np.empty(math.prod(shape), dtype=bool)
    for start in range(0, len(keep), _DRAWS):  # a draw takes 64 times the bytes of what it decides
        part = keep[start : start + _DRAWS]
        np.less(generator.random_raw(len(part)) >> np.uint64(11), limit, out=part)
    return torch.from_numpy(keep).view(shape)


def spectral_split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split a matrix into its ``rank`` largest singular directions and the rest.

    Args:
        matrix: At least 2-D; further dimensions are flattened into the columns.
        rank: Number of principal directions.

    Returns:
        Principal part and rest, shape and dtype of ``matrix``; they add up to it.
    """
    flat = matrix.flatten(1).double()
    transposed = flat.shape[0] > flat.shape[1]
    flat = flat.T if transposed else flat
    with one_thread():
        # eigenvectors of flat @ flat.T are the left singular vectors, at a fraction of an SVD's cost
        basis = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -rank:]
        principal = basis @ (basis.T @ flat)
    principal = (principal.T if transposed else principal).reshape(matrix.shape).to(matrix.dtype)
    return principal, matrix - principal


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix, largest first.

    Args:
        matrix: At least 2-D; further dimensions are flattened into the columns.

    Returns:
        Shape (min(rows, columns),), float64.
    """
    with one_thread():
        values: Tensor = torch.linalg.svdvals(matrix.flatten(1).double())
    return values
