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
from clipmerge.plugins import check_options, load_plugin, plugin_options
from clipmerge.types import Json

#: A mask with its options: it takes a change and returns the masked change.
Rule = Callable[[Array], Array]


def merge_tensor(
    theta_0: Array,
    finetuned: Sequence[Array],
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
) -> Array:
    """Move one parameter, or a run of its entries, from zero-shot towards fine-tuned.

    Computes theta_0 + alpha * sum_i weights_i * (theta_i - theta_0) in the inputs' float32 or
    float64. Where alpha is zero, the result is theta_0 bit for bit. Where alpha is 1, and the only
    fine-tuned checkpoint has weight 1, the result is this checkpoint bit for bit.

    Args:
        theta_0: Zero-shot parameter, any shape; never written to.
        finetuned: Fine-tuned parameters, same shape and dtype; never written to.
        alpha: Mixing coefficient, no unit; outside [0, 1] it extrapolates. An array broadcasts: one
            per row, or one per entry.
        weights: Factor of each fine-tuned checkpoint.

    Returns:
        Merged parameter, same shape and dtype; it may be an input itself.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.

    Example:
        >>> merge_tensor(np.zeros(2), [np.array([2.0, 4.0])], alpha=0.5)
        array([1., 2.])
    """
    if not isinstance(alpha, np.ndarray):
        used = [weight for weight in weights if weight != 0]
        if alpha == 0 or not used:
            return theta_0
        if alpha == 1 and used == [1]:
            return finetuned[weights.index(1)]
    merged = merged_change(theta_0, finetuned, alpha=alpha, weights=weights)
    with np.errstate(all="ignore"):
        merged += theta_0
    if isinstance(alpha, np.ndarray):
        np.copyto(merged, theta_0, where=alpha == 0)  # theta_0 + 0.0 would turn -0.0 into 0.0
        if tuple(weights) == (1.0,):
            np.copyto(merged, finetuned[0], where=alpha == 1)
    return merged


def merged_change(
    theta_0: Array,
    finetuned: Sequence[Array],
    *,
    alpha: float | Array,
    weights: Sequence[float] = (1.0,),
    vector_masks: Sequence[Rule] = (),
    elect_signs: bool = False,
    mask: Rule | None = None,
) -> Array:
    """Compute the change of a parameter, under masks if there are any.

    Computes mask(alpha * sum_i weights_i * mask_i(theta_i - theta_0)), or the mean of elected signs
    in place of the sum. Masks need the whole parameter.

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
        change = disjoint_mean(vectors, weights) if elect_signs else weighted_sum(vectors, weights)
        del vectors  # free memory for the mask
        change *= alpha
        return change if mask is None else mask(change)


def add_change(theta_0: Array, change: Array) -> Array:
    """Add a change to theta_0. Where the change is zero, theta_0 keeps its bits, even those of a
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
    if "density" in plugin_options("masks", name):
        options = {**options, "density": density}
    checked = check_options("masks", name, options)
    function = load_plugin("masks", name)
    used = filled_in.keys() & inspect.signature(function).parameters
    return partial(function, **checked, **{parameter: filled_in[parameter] for parameter in used})


def weighted_sum(task_vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Add task vectors one after another, always in the same order; they are overwritten."""
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        if weight != 1:
            task_vector *= weight
    total, *others = task_vectors
    for task_vector in others:
        total += task_vector
    return total


def disjoint_mean(task_vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Average each entry over the task vectors whose entry has the sign of the sum. Without such a
    task vector, the entry is zero.

    Args:
        task_vectors: One per checkpoint, any shape; zeros are ignored.
        weights: Factor of each task vector in the average, not in the election.

    Returns:
        Same shape.

    Example:
        >>> disjoint_mean([np.array([4.0, 1.0]), np.array([2.0, -3.0])], (1.0, 1.0))
        array([ 3., -3.])
    """
    votes: Any = sum(task_vectors)
    is_positive = votes >= 0
    mean = np.zeros_like(task_vectors[0])
    count = np.zeros_like(task_vectors[0])
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        agrees = np.where(is_positive, task_vector > 0, task_vector < 0)
        count += agrees
        mean += np.where(agrees, task_vector, 0) * weight
    mean /= np.maximum(count, 1)
    return mean
