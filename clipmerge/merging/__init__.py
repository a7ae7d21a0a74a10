"""The formula of every merge, and the merge of one tensor.

The formula uses only operations that IEEE 754 rounds correctly (subtract, multiply, add, one at a
time), so the same inputs give the same bytes for any number of threads, any chunking and any CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.plugins import check_options, load_plugin
from clipmerge.types import Json

#: A mask with its options: it takes a change and returns the masked change.
Rule = Callable[[Array], Array]
# Number of entries averaged at a time: they stay in a core's cache.
_RUN = 1 << 16


def weighted_change(
    theta_0: Array,
    finetuned: Sequence[Array],
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
    out: Array | None = None,
) -> Array:
    """Compute alpha * sum_i weights_i * (theta_i - theta_0); an array as ``alpha`` broadcasts.

    The result is written to ``out``, if it is given.
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
    """Return the input that a merge without masks equals bit for bit: theta_0, or the one theta_i
    that has a weight; ``None`` if it equals neither.
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
    theta_1. Under masks see `whole_change`.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        finetuned: Fine-tuned parameters, same shape and dtype; never written to.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. An array broadcasts: one
            per row, or one per entry.
        weights: Factor of each fine-tuned checkpoint.
        out: Array that the result may be written to.

    Returns:
        Merged parameter, same shape and dtype; it may be an input itself.

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
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
    vector_masks: Sequence[Rule] = (),
    elect_signs: bool = False,
    mask: Rule | None = None,
) -> Array:
    """Compute the change of a whole parameter under masks.

    Computes mask(alpha * sum_i weights_i * mask_i(theta_i - theta_0)), or the mean of elected signs
    in place of the sum.

    Args:
        theta_0: Zero-shot parameter, any shape but ().
        finetuned: Fine-tuned parameters, same shape and dtype.
        alpha: Mixing coefficient; see `merge_tensor`.
        weights: Factor of each fine-tuned checkpoint.
        vector_masks: A mask of each task vector, see `bind_mask`; empty for none.
        elect_signs: Whether task vectors are combined by `disjoint_mean`.
        mask: A mask of the change; ``None`` keeps all of it.

    Returns:
        Same shape and dtype; see `add_change`.
    """
    with np.errstate(all="ignore"):
        vectors = [theta_i - theta_0 for theta_i in finetuned]
        for which, vector_mask in enumerate(vector_masks):
            vectors[which] = vector_mask(vectors[which])
        combine = disjoint_mean if elect_signs else weighted_sum
        change = combine(vectors, weights)
        del vectors  # free memory for the mask
        change *= alpha
        return change if mask is None else mask(change)


def add_change(theta_0: Array, change: Array) -> Array:
    """Add a change to theta_0; where the change is zero, theta_0 keeps its bits, even those of
    negative zero.
    """
    with np.errstate(all="ignore"):
        return np.where(change == 0, theta_0, theta_0 + change)


def bind_mask(name: str, density: float, options: Json, **filled_in: Any) -> Rule:
    """Load a mask and fix its options, so that it takes a change and returns the masked change.

    Args:
        name: Name of the mask.
        density: Share of the change to keep, for masks that have a density.
        options: The mask's own options.
        **filled_in: ``key`` and ``score``, for the masks that use them.
    """
    function = load_plugin("masks", name)
    parameters = inspect.signature(function).parameters
    given = dict(options)
    if "density" in parameters:
        given["density"] = density
    given = check_options("masks", name, given)
    given.update((name, value) for name, value in filled_in.items() if name in parameters)
    return partial(function, **given)


def weighted_sum(task_vectors: Sequence[Array] | Array, weights: Sequence[float]) -> Array:
    """Add task vectors one after another, always in the same order."""
    total: Array = task_vectors[0] * weights[0]
    for task_vector, weight in zip(task_vectors[1:], weights[1:], strict=True):
        total += task_vector * weight
    return total


def disjoint_mean(task_vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Average, entry by entry, the task vectors whose sign is that of their sum; zero if there are
    none.

    Args:
        task_vectors: One per checkpoint, any shape; zeros are ignored.
        weights: Factor of each task vector in the average, not in the election.

    Returns:
        Same shape.

    Example:
        >>> disjoint_mean([np.array([4.0, 1.0]), np.array([2.0, -3.0])], (1.0, 1.0))
        array([ 3., -3.])
    """
    flat = [task_vector.ravel() for task_vector in task_vectors]
    mean: Array = np.empty_like(flat[0])
    for start in range(0, len(mean), _RUN):
        stop = start + _RUN
        run = np.stack([task_vector[start:stop] for task_vector in flat])
        votes = weighted_sum(run, (1.0,) * len(run))
        agrees = np.sign(run) == np.where(votes >= 0, 1.0, -1.0)
        total = weighted_sum(np.where(agrees, run, 0), weights)
        count = np.maximum(agrees.sum(axis=0), 1).astype(run.dtype)
        np.divide(total, count, out=mean[start:stop])
    return mean.reshape(task_vectors[0].shape)
