"""The formula of every merge, and the merge of one tensor.

The formula uses only operations that IEEE 754 rounds correctly (subtract, multiply, add, one at a
time), so the same inputs give the same bytes for any number of threads, any chunking and any CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.plugins import check_options, load_plugin
from clipmerge.types import Json

if TYPE_CHECKING:
    from clipmerge.merging.selection import RandomKey

#: A function of an array that returns one: a combination of task vectors, or a mask of a change.
Rule = Callable[[Array], Array]


def weighted_change(
    theta_0: Array,
    finetuned: Sequence[Array],
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
    out: Array | None = None,
) -> Array:
    """Compute alpha * sum_i weights_i * (theta_i - theta_0), perhaps in ``out``; an array as
    ``alpha`` broadcasts.
    """
    change: Array = np.subtract(finetuned[0], theta_0, out=out)
    if weights[0] != 1:
        change *= weights[0]
    for theta_1, weight in zip(finetuned[1:], weights[1:], strict=True):
        other = theta_1 - theta_0
        other *= weight
        change += other
    change *= alpha
    return change


def unchanged_input(
    theta_0: Array, finetuned: Sequence[Array], alpha: float | Array, weights: Sequence[float]
) -> Array | None:
    """The input that equals a merge without a mask bit for bit: theta_0 or the only theta_i with a
    weight.
    """
    if not isinstance(alpha, (int, float)):
        return None
    if alpha == 0 or not any(weights):
        return theta_0
    is_one = weights.count(1.0) == 1 and weights.count(0.0) == len(weights) - 1
    if alpha == 1 and is_one:
        return finetuned[weights.index(1.0)]
    return None


def merge_tensor(
    theta_0: Array,
    finetuned: Sequence[Array],
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
    out: Array | None = None,
) -> Array:
    """Move one parameter, or a run of its entries, from zero-shot towards fine-tuned.

    Computes theta_0 + alpha * sum_i weights_i * (theta_i - theta_0) in the inputs' float32 or
    float64. Where the change is zero the result is theta_0 bit for bit, and with alpha=1 it is
    theta_1. Under a mask or a combination see `whole_change`.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        finetuned: Fine-tuned parameters, same shape and dtype; never written to.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. An array broadcasts: one
            per row, or one per entry.
        weights: Factor of each fine-tuned checkpoint.
        out: Array for the result.

    Returns:
        Merged parameter, same shape and dtype; perhaps an input itself.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.

    Example:
        >>> merge_tensor(np.zeros(2), [np.array([2.0, 4.0])], alpha=0.5)
        array([1., 2.])
    """
    unchanged = unchanged_input(theta_0, finetuned, alpha, weights)
    if unchanged is not None:
        return unchanged
    with np.errstate(all="ignore"):
        merged = weighted_change(theta_0, finetuned, alpha=alpha, weights=weights, out=out)
        merged += theta_0
    if isinstance(alpha, np.ndarray):
        np.copyto(merged, theta_0, where=alpha == 0)  # theta_0 + 0.0 would turn -0.0 into 0.0
        if tuple(weights) == (1.0,):
            np.copyto(merged, finetuned[0], where=alpha == 1)
    return merged


def whole_change(
    theta_0: Array,
    finetuned: Sequence[Array],
    alpha: float | Array,
    weights: Sequence[float],
    combine: Rule | None,
    mask: Rule | None,
) -> Array:
    """The change of a whole parameter under a mask or a combination.

    Computes mask(alpha * combine(theta_i - theta_0)).

    Args:
        theta_0: Zero-shot parameter, any shape.
        finetuned: Fine-tuned parameters, same shape and dtype.
        alpha: Mixing coefficient; see `merge_tensor`.
        weights: Factor of each fine-tuned checkpoint.
        combine: Combines task vectors stacked along the first dimension into one, see
            `bind_combination`; ``None`` for their weighted sum.
        mask: See `bind_mask`; ``None`` keeps the whole change.

    Returns:
        Same shape and dtype; see `add_change`.
    """
    with np.errstate(all="ignore"):
        if combine is None:
            change = weighted_change(theta_0, finetuned, alpha=alpha, weights=weights)
        else:
            stack = np.empty((len(finetuned), *theta_0.shape), theta_0.dtype)
            for which, theta_i in enumerate(finetuned):
                np.subtract(theta_i, theta_0, out=stack[which, ...])
            change = combine(stack)
            del stack  # free memory for the mask
            change = change * alpha
        return change if mask is None else mask(change)


def add_change(theta_0: Array, change: Array) -> Array:
    """Add a change that may be zero for dropped entries, which stay zero-shot bit for bit, even
    negative zero.
    """
    with np.errstate(all="ignore"):
        return np.where(change == 0, theta_0, theta_0 + change)


def bind_mask(name: str, density: float, options: Json, **filled_in: Any) -> Rule:
    """Prepare a mask: a function of a change alone.

    Args:
        name: Name of the mask.
        density: Share of the change to keep, by masks that have a density.
        options: The mask's own options.
        **filled_in: What masks may name beside their options: ``theta_0``, ``key``, ``score``.
    """
    function = load_plugin("masks", name)
    given = dict(options)
    if "density" in inspect.signature(function).parameters:
        given["density"] = density
    checked = check_options("masks", name, given)
    wanted = _arguments_for(function, {**checked, **filled_in})
    return partial(function, **wanted)


def bind_combination(
    name: str, options: Json, weights: Sequence[float], key: RandomKey, *, sparsify: bool = True
) -> Rule:
    """Prepare a method's rule for several task vectors: a function from (checkpoints, ...) to one
    (...).
    """
    function = load_plugin("combinations", name)
    checked = check_options("combinations", name, options)
    wanted = _arguments_for(function, {**checked, "key": key, "sparsify": sparsify})
    return partial(function, weights=tuple(weights), **wanted)


def _arguments_for(function: Callable[..., Any], available: Json) -> Json:
    parameters = inspect.signature(function).parameters
    wanted = {}
    for name, value in available.items():
        if name in parameters and value is not inspect.Parameter.empty:
            wanted[name] = value
    return wanted


def weighted_sum(task_vectors: Array, weights: Sequence[float]) -> Array:
    """Add task vectors one after another, always in the same order: (checkpoints, ...) to (...)."""
    total: Array = task_vectors[0] * weights[0]
    for task_vector, weight in zip(task_vectors[1:], weights[1:], strict=True):
        total += task_vector * weight
    return total
