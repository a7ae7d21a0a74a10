"""Chunks of the output that need torch: masks, combinations, learned coefficients, half precision,
another dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from clipmerge.checkpoint import Inputs, Location
from clipmerge.checkpoint.source import stored_array
from clipmerge.errors import CheckpointError, PlanError
from clipmerge.families import is_variance
from clipmerge.files.finite import is_finite, require_finite
from clipmerge.files.safetensors import DTYPES, Array
from clipmerge.merging.formula import (
    chunk_ranges,
    integers_error,
    is_sparsifiable,
    overflow_error,
    require_finite_inputs,
)
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.tensor import (
    apply_delta,
    bind_combination,
    complete_mask_options,
    merge_tensor,
    whole_change,
)
from clipmerge.parallel import one_thread
from clipmerge.planning.plan import COEFFICIENTS, SCORES, LayerPlan, Plan
from clipmerge.plugins import needs_score
from clipmerge.types import Json, Shape


def merge_chunks(
    inputs: Inputs, plan: Plan, name: str, layer: LayerPlan, dtype: str
) -> Iterator[Array]:
    """Merge a parameter under a plan: runs of elements in memory order, 1-D, in stored form
    (bfloat16 as its bits).
    """
    entry = inputs.zeroshot.entries[inputs.zeroshot_keys[name]]
    coefficient = coefficient_of(plan, layer, name)
    sparsify = is_sparsifiable(inputs, name)
    arguments = _mask_inputs(plan, name, layer) if layer.mask and sparsify else {}
    if arguments and "score" not in arguments and needs_score(str(layer.mask)):
        # of what is unchanged none is needed
        if not torch.equal(inputs.theta_0(name), inputs.theta_1(name)):
            raise PlanError(
                f"layer '{inputs.layer_of[name]}' has the mask '{layer.mask}', but the plan holds"
                f" no scores for {name}; use 'magnitude' there, or plan again"
            )
        holder, *others = inputs.holders(name)
        yield from copy_chunks(name, holder, others, dtype)
        return
    combine = None
    if plan.combine is not None:
        key = RandomKey(plan.seed, name)
        combine = bind_combination(
            plan.combine.rule, plan.combine.options, plan.weights, key, sparsify=sparsify
        )
    # masks and combinations need the whole parameter, everything else is done in chunks
    change = None
    if arguments or combine is not None:
        alpha = coefficients_of_run(coefficient, entry.shape, 0, None)
        change = _whole_change(
            inputs, name, alpha=alpha, weights=plan.weights, combine=combine, **arguments
        )
    for start, stop in chunk_ranges(entry.size):
        theta_0 = inputs.theta_0(name, start, stop)
        with one_thread():
            # the change was made of all checkpoints, which were checked
            if change is not None:
                result = apply_delta(theta_0, change[start:stop], _torch_dtype(dtype))
            else:
                finetuned = [
                    inputs.theta_1(name, start, stop, which=i) for i in range(len(inputs.finetuned))
                ]
                alpha = coefficients_of_run(coefficient, entry.shape, start, stop)
                # NaN and Inf need not affect the result
                if isinstance(alpha, Tensor) or alpha in (
                    0,
                    1,
                ):
                    require_finite_inputs(inputs, name, theta_0, finetuned)
                result = merge_tensor(
                    theta_0, finetuned, alpha=alpha, weights=plan.weights, dtype=_torch_dtype(dtype)
                )
            if not is_finite(result):
                if change is None:
                    require_finite_inputs(inputs, name, theta_0, finetuned)
                raise overflow_error(name, DTYPES[dtype][0])
            if is_variance(name) and bool((result < 0).any()):
                raise CheckpointError(
                    f"tensor {name} is a variance and becomes negative when merged; use an alpha in"
                    " [0, 1] for its layer"
                )
        yield stored_array(result.flatten().contiguous())
    inputs.release(name)


def coefficient_of(plan: Plan, layer: LayerPlan, name: str) -> float | Tensor:
    """A parameter's own coefficients, or its layer's."""
    if layer.is_learned:  # a parameter without coefficients of its own goes with the others
        return plan.loaded_tensors.get(f"{COEFFICIENTS}{name}", layer.alpha)
    return layer.alpha


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


def _whole_change(inputs: Inputs, name: str, **rule: Any) -> Tensor:
    """The change of a whole parameter, 1-D."""
    theta_0 = inputs.theta_0(name)
    finetuned = [inputs.theta_1(name, which=i) for i in range(len(inputs.finetuned))]
    # NaN and Inf need not affect the result, and would make a decomposition fail
    require_finite_inputs(inputs, name, theta_0, finetuned)
    with one_thread():
        return whole_change(theta_0, finetuned, **rule).flatten()


def _mask_inputs(plan: Plan, name: str, layer: LayerPlan) -> Json:
    mask = str(layer.mask)
    options = {**layer.mask_options, **layer.parameters.get(name, {})}
    arguments = {
        "mask": mask,
        **complete_mask_options(mask, layer.density, options),
        "key": RandomKey(plan.seed, name),
    }
    score = plan.loaded_tensors.get(f"{SCORES}{name}")
    return arguments if score is None else arguments | {"score": score}


def copy_chunks(
    name: str, holder: Location, others: Sequence[Location], dtype: str
) -> Iterator[Array]:
    """Copy a tensor of one checkpoint, rounded to the output's dtype, and check the others' tensors
    of that name.
    """
    checkpoint, key = holder
    entry = checkpoint.entries[key]
    for start, stop in chunk_ranges(entry.size):
        with one_thread():
            values = checkpoint.tensor(key, start, stop)
            if entry.is_float:
                require_finite(values, name, checkpoint.source)
            for other, other_key in others:
                theirs = other.tensor(other_key, start, stop)
                if entry.is_float and theirs.is_floating_point():
                    require_finite(theirs, name, other.source)
                elif not torch.equal(values.double(), theirs.double()):
                    raise integers_error(name, other.source)
            rounded = values.to(_torch_dtype(dtype))
            if rounded.is_floating_point() and not is_finite(rounded):
                raise overflow_error(name, DTYPES[dtype][0])
            stored_run = stored_array(rounded.flatten().contiguous())
        yield stored_run
    for source, source_key in (holder, *others):
        source.release(source_key)


def _torch_dtype(name: str) -> torch.dtype:
    return cast("torch.dtype", getattr(torch, DTYPES[name][0]))
