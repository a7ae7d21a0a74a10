"""The merge of one tensor, and how masks select. The formula itself is in `formula`."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
        which: Number of the fine-tuned checkpoint, where each is drawn for by itself.
    """

    seed: int
    name: str
    which: int | None = None

    def of(self, which: int) -> RandomKey:
        """The key for one of several fine-tuned checkpoints."""
        return replace(self, which=which)

    def generator(self) -> np.random.Philox:
        """A counter-based generator that starts from this key alone."""
        seed = f"{self.seed}" if self.which is None else f"{self.seed}#{self.which}"
        digest = hashlib.sha256(f"{seed}:{self.name}".encode()).digest()
        return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


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

    Computes theta_0 + mask(alpha * sum_i weights_i * (theta_i - theta_0)) in float32 (float64 if any is) and rounds
    once; a combination puts another rule in the place of the sum. alpha=0 gives theta_0 back bit for bit, alpha=1
    without mask and combination theta_1.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        theta_1: Fine-tuned parameter, same shape; several for several checkpoints.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. A tensor broadcasts: one a row, or
            one an entry.
        weights: Factor of each fine-tuned checkpoint.
        combine: Makes one task vector of several, stacked along the first dimension, see `combination`; ``None`` for
            their sum.
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
    plain = combine is None and not masked
    copied: Tensor | None = copied_input(theta_0, finetuned, alpha, weights) if plain else None
    if copied is not None:
        return copied.to(dtype)
    base, *wide = _widened([theta_0, *finetuned])
    change = _change(base, wide, alpha, weights, combine)
    if masked:
        change = apply_mask(str(mask), change, base, mask_inputs)
    # an entry that is not kept is zero-shot's bit for bit, negative zero included
    merged = change.add_(base) if plain else torch.where(change == 0, base, base + change)
    if isinstance(alpha, Tensor) and plain:
        merged = torch.where(alpha == 0, base, merged)  # base + 0.0 would turn -0.0 into 0.0
        if tuple(weights) == (1.0,):
            merged = torch.where(alpha == 1, finetuned[0].to(merged.dtype), merged)
    return merged.to(dtype)


def _change(
    base: Tensor,
    finetuned: list[Tensor],
    alpha: float | Tensor,
    weights: Sequence[float],
    combine: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The change before any mask; it is new, and may be written to."""
    if combine is not None:
        return combine(torch.stack([each - base for each in finetuned])) * alpha
    change: Tensor = weighted_change(torch, base, finetuned, alpha=alpha, weights=weights)
    return change


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


def combination(
    name: str, options: dict[str, Any], weights: Sequence[float], key: RandomKey, *, thinned: bool = True
) -> Callable[[Tensor], Tensor]:
    """Make a rule of `clipmerge.combinations` ready for `merge_tensor`.

    Args:
        name: Name of the rule.
        options: Its options.
        weights: Factor of each fine-tuned checkpoint.
        key: Seed and parameter name, for rules that draw.
        thinned: Whether entries may be left out: not of a scalar, nor of batch norm's statistics.

    Returns:
        A function from stacked task vectors (checkpoints, ...) to one (...).

    Raises:
        RecipeError: If an option is unknown or out of its range.
    """
    function = load_plugin("combinations", name)
    checked = {**check_options("combinations", name, options), "key": key, "thinned": thinned}
    wanted = inspect.signature(function).parameters
    return partial(function, weights=tuple(weights), **{k: v for k, v in checked.items() if k in wanted})


def weighted_sum(task_vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """Add task vectors up one after the other, so that the order of the sum is always the same.

    Args:
        task_vectors: (checkpoints, ...).
        weights: A factor each.

    Returns:
        (...), a new tensor.
    """
    total = task_vectors[0] * weights[0]
    for each, weight in zip(task_vectors[1:], weights[1:], strict=True):
        total.add_(each * weight)
    return total


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
    return keep_first(score, max(1, round(density * score.numel())))


def keep_first(score: Tensor, kept: int) -> Tensor:
    """Select so many of the largest scores, of equal ones those with the lower index.

    Args:
        score: Non-negative, any shape.
        kept: How many; 0 selects nothing.

    Returns:
        Boolean, same shape.
    """
    flat = score.flatten()
    if kept <= 0 or kept >= flat.numel():
        return torch.full_like(score, kept > 0, dtype=torch.bool)
    # numpy selects in linear time; the value of the k-th largest is unique even though its position is not
    threshold = float(np.partition(flat.numpy(), flat.numel() - kept)[flat.numel() - kept])
    above = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    above[ties[: kept - int(above.sum())]] = True
    return above.view(score.shape)


def keep_random(shape: torch.Size, density: float | Tensor, key: RandomKey) -> Tensor:
    """Select entries independently, from a counter-based generator (Philox).

    Args:
        shape: Shape of the parameter.
        density: Probability that an entry is kept; a tensor of that shape has one for each.
        key: Seed and parameter name; nothing else enters, so neither order nor chunking matters.

    Returns:
        Boolean, of the given shape.
    """
    generator = key.generator()
    # the top 53 bits, so that the limit is exact in a float and density 1 keeps everything
    chances = density.double().flatten().numpy() if isinstance(density, Tensor) else np.array([density])
    keep = np.empty(math.prod(shape), dtype=bool)
    for start in range(0, len(keep), _DRAWS):  # a draw takes 64 times the bytes of what it decides
        part = keep[start : start + _DRAWS]
        chance = chances if len(chances) == 1 else chances[start : start + _DRAWS]
        limit = np.rint(chance * 2**53).astype(np.uint64)
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
