"""Stream the tensors of a merge under a plan, with at most one tensor in memory, and usually one
chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs, Location, TensorEntry
from clipmerge.errors import CheckpointError, PlanError
from clipmerge.families import is_counter, is_statistic, is_variance
from clipmerge.files.finite import require_finite
from clipmerge.files.safetensors import DTYPES, SAFETENSORS_NAME, STORED, Array
from clipmerge.files.writer import BufferProvider, OutputTensor
from clipmerge.layers import HEAD
from clipmerge.merging.floats import compute_dtype, fits, narrow, widen
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.tensor import (
    add_change,
    bind_combination,
    bind_mask,
    merge_tensor,
    whole_change,
)
from clipmerge.planning.plan import COEFFICIENTS, SCORES, LayerPlan, Plan
from clipmerge.plugins import needs_score
from clipmerge.types import Shape

#: Elements merged at a time: inputs, result and the steps of a conversion stay in a core's cache.
CHUNK = 1 << 15


def plan_tensors(inputs: Inputs, plan: Plan) -> list[OutputTensor]:
    """List the output's tensors, each with its content on demand; nothing is read yet."""
    outputs = []
    for name, key in inputs.zeroshot_keys.items():
        if _is_left_out(inputs, plan, name):
            continue
        entry = inputs.zeroshot.entries[key]
        dtype = _output_dtype(plan, entry)
        layer = plan.layers.get(inputs.layer_of[name])
        chunks: Callable[[BufferProvider], Iterator[Array]]
        whole = False
        if layer is not None and inputs.merges(name):
            whole = is_whole(inputs, plan, layer, name)
            chunks = partial(_merge, inputs, plan, name, layer, dtype)
        else:
            chunks = _unmerged_content(inputs, name, layer, dtype)
        key = inputs.output_keys[name]
        outputs.append(OutputTensor(key, name, dtype, entry.shape, chunks, whole))
    first = inputs.finetuned[0]
    for name, key in inputs.finetuned_keys[0].items():
        is_kept = plan.missing == "keep-finetuned" or (
            inputs.keeps_head and inputs.layer_of.get(name) == HEAD
        )
        if is_kept and name not in inputs.zeroshot_keys:
            entry = first.entries[key]
            dtype = _output_dtype(plan, entry)
            chunks = partial(_copy, name, (first, key), (), dtype)
            outputs.append(OutputTensor(inputs.output_keys[name], name, dtype, entry.shape, chunks))
    return outputs


def copied_tensors(checkpoint: Checkpoint) -> list[OutputTensor]:
    """List the unchanged tensors of one checkpoint, each with its content on demand."""
    return [
        OutputTensor(
            key,
            key,
            entry.dtype,
            entry.shape,
            partial(_copy, key, (checkpoint, key), (), entry.dtype),
        )
        for key, entry in checkpoint.entries.items()
    ]


def _merge(
    inputs: Inputs, plan: Plan, name: str, layer: LayerPlan, dtype: str, reserve: BufferProvider
) -> Iterator[Array]:
    """Merge a parameter: runs of elements in memory order, 1-D, in stored form."""
    entries = inputs.entries(name)
    dtypes = [entry.dtype for entry in entries]
    wide = compute_dtype(set(dtypes))
    shape = entries[0].shape

    def read(start: int, stop: int | None) -> tuple[Array, list[Array]]:
        theta_0, *finetuned = (
            widen(checkpoint.array(key, start, stop), dtype, wide)
            for (checkpoint, key), dtype in zip(inputs.holders(name), dtypes, strict=True)
        )
        return theta_0, finetuned

    def require_finite_inputs(theta_0: Array, finetuned: list[Array]) -> None:
        for values, checkpoint in zip((theta_0, *finetuned), inputs.checkpoints, strict=True):
            require_finite(values, name, checkpoint.source)

    coefficient = coefficient_of(plan, layer, name)
    change = None
    # masks and combinations need the whole parameter, everything else is done in chunks
    if is_whole(inputs, plan, layer, name):
        theta_0, finetuned = read(0, None)
        # NaN and Inf need not affect the result, and would make a decomposition fail
        require_finite_inputs(theta_0, finetuned)
        theta_0, finetuned = theta_0.reshape(shape), [theta.reshape(shape) for theta in finetuned]
        change = _whole_change(inputs, plan, layer, name, theta_0, finetuned, coefficient)
        del theta_0, finetuned
    for start, out in _buffers(entries[0].size, STORED[dtype], reserve):
        theta_0, finetuned = read(start, start + len(out))
        if change is not None:
            result = add_change(theta_0, change[start : start + len(out)])
        else:
            alpha = coefficients_of_run(coefficient, shape, start, start + len(out))
            if isinstance(alpha, np.ndarray) or alpha in (0, 1):  # NaN may not affect the result
                require_finite_inputs(theta_0, finetuned)
            result = merge_tensor(
                theta_0,
                finetuned,
                alpha=alpha,
                weights=plan.weights,
                out=out if out.dtype == wide else None,
            )
        if not fits(result, dtype):
            require_finite_inputs(theta_0, finetuned)
            raise _overflow_error(name, dtype)
        if is_variance(name) and bool((result < 0).any()):
            raise CheckpointError(
                f"tensor {name} is a variance and becomes negative when merged; use an alpha in"
                " [0, 1] for its layer"
            )
        if result is not out:
            np.copyto(out, narrow(result, dtype))
        yield out
    inputs.release(name)


def is_whole(inputs: Inputs, plan: Plan, layer: LayerPlan, name: str) -> bool:
    """Whether a parameter is merged as a whole: under a mask or a combination."""
    return plan.combine is not None or (layer.mask is not None and is_sparsifiable(inputs, name))


def is_sparsifiable(inputs: Inputs, name: str) -> bool:
    """Whether entries of a parameter may be dropped: not in a scalar or in batch norm
    statistics.
    """
    return inputs.entries(name)[0].size > 1 and not is_statistic(name)


def _whole_change(
    inputs: Inputs,
    plan: Plan,
    layer: LayerPlan,
    name: str,
    theta_0: Array,
    finetuned: list[Array],
    alpha: float | Array,
) -> Array:
    """The change of a whole parameter, 1-D."""
    key = RandomKey(plan.seed, name)
    sparsify = is_sparsifiable(inputs, name)
    combine = mask = None
    if plan.combine is not None:
        rule, options = plan.combine.rule, plan.combine.options
        combine = bind_combination(rule, options, plan.weights, key, sparsify=sparsify)
    if layer.mask is not None and sparsify:
        filled_in = {"theta_0": theta_0, "key": key}
        score = plan.loaded_tensors.get(f"{SCORES}{name}")
        if score is not None:
            filled_in["score"] = score
        elif needs_score(layer.mask):
            if np.array_equal(theta_0, finetuned[0]):  # nothing to rank
                return np.zeros_like(theta_0).ravel()
            raise PlanError(
                f"layer '{inputs.layer_of[name]}' has the mask '{layer.mask}', but the plan holds"
                f" no scores for {name}; use 'magnitude' there, or plan again"
            )
        options = {**layer.mask_options, **layer.parameters.get(name, {})}
        mask = bind_mask(layer.mask, layer.density, options, **filled_in)
    change = whole_change(theta_0, finetuned, alpha, plan.weights, combine, mask)
    return np.asarray(change).ravel()


def coefficient_of(plan: Plan, layer: LayerPlan, name: str) -> float | Array:
    """A parameter's own coefficients, or its layer's."""
    coefficient = plan.loaded_tensors.get(f"{COEFFICIENTS}{name}") if layer.is_learned else None
    if coefficient is None:  # a parameter without coefficients of its own goes with the others
        return layer.alpha
    return float(coefficient.item()) if coefficient.size == 1 else coefficient


def coefficients_of_run(
    coefficient: float | Array, shape: Shape, start: int, stop: int
) -> float | Array:
    """Select the coefficients of a run of entries in memory order.

    Example:
        >>> coefficients_of_run(np.array([[0.0], [1.0]]), (2, 3), 2, 5)
        array([0., 1., 1.])
    """
    if not isinstance(coefficient, np.ndarray):
        return coefficient
    if coefficient.shape == shape:
        return coefficient.ravel()[start:stop]
    width = math.prod(shape[1:])
    first, last = start // width, -(-stop // width)
    rows = coefficient.ravel()[first:last].repeat(width)
    return rows[start - first * width : stop - first * width]


def _copy(
    name: str, holder: Location, others: Sequence[Location], dtype: str, reserve: BufferProvider
) -> Iterator[Array]:
    """Copy a tensor of one checkpoint, rounded to the output's dtype, and check the others' tensors
    of that name.
    """
    checkpoint, key = holder
    entry = checkpoint.entries[key]
    for start, out in _buffers(entry.size, STORED[dtype], reserve):
        stop = start + len(out)
        stored = checkpoint.array(key, start, stop)
        values = widen(stored, entry.dtype)
        if entry.is_float:
            require_finite(values, name, checkpoint.source)
        for other, other_key in others:
            other_entry = other.entries[other_key]
            theirs = widen(other.array(other_key, start, stop), other_entry.dtype)
            if entry.is_float and other_entry.is_float:
                require_finite(theirs, name, other.source)
            elif not np.array_equal(values, theirs):
                raise CheckpointError(
                    f"{other.source}: integer tensor {name} differs from the zero-shot one, but"
                    " integers cannot be averaged; use the base that was fine-tuned"
                )
        if dtype == entry.dtype:
            np.copyto(out, stored)
        elif fits(values, dtype):
            np.copyto(out, narrow(values, dtype))
        else:
            raise _overflow_error(name, dtype)
        yield out
    for source, source_key in (holder, *others):
        source.release(source_key)


def _buffers(size: int, dtype: str, reserve: BufferProvider) -> Iterator[tuple[int, Array]]:
    """Divide a tensor into runs of at most `CHUNK` elements that fit the buffers; yields the first
    element and the buffer of each.
    """
    start = 0
    while start < size:
        out = reserve(min(CHUNK, size - start), dtype)
        yield start, out
        start += len(out)


def _overflow_error(name: str, dtype: str) -> CheckpointError:
    """The error for a merge that overflows its dtype."""
    wider = "" if dtype in ("F32", "F64") else "use `dtype=float32`, or "
    return CheckpointError(
        f"tensor {name} overflows {DTYPES[dtype][0]} when merged; {wider}use an alpha in [0, 1] and"
        " check the weights"
    )


def _unmerged_content(
    inputs: Inputs, name: str, layer: LayerPlan | None, dtype: str
) -> Callable[[BufferProvider], Iterator[Array]]:
    """The content of a zero-shot tensor that is not merged: of another kind, or of a layer that the
    plan leaves out.
    """
    holder, *others = inputs.holders(name)
    if is_counter(name):  # counters may differ without any effect on the model
        is_finetuned = layer is not None and layer.alpha == 1 and not layer.is_learned
        if is_finetuned and name in inputs.finetuned_keys[0]:
            holder = (inputs.finetuned[0], inputs.finetuned_keys[0][name])
        others = []
    entry = holder[0].entries[holder[1]]
    # only `position_ids` may differ here, because the alignment does not compare them
    for checkpoint, key in others:
        shape = checkpoint.entries[key].shape
        if shape != entry.shape:
            raise CheckpointError(
                f"tensor {name} differs in shape: zeroshot {entry.shape}, finetuned {shape}"
            )
    return partial(_copy, name, holder, others, dtype)


def _is_left_out(inputs: Inputs, plan: Plan, name: str) -> bool:
    """Whether the output lacks a zero-shot parameter because it has the form of the fine-tuned
    checkpoint.
    """
    if name in inputs.finetuned_keys[0]:
        return False
    if inputs.keeps_head:
        return not inputs.expects(name)
    return plan.missing == "keep-finetuned" and not inputs.is_partial


def _output_dtype(plan: Plan, entry: TensorEntry) -> str:
    return (
        entry.dtype if plan.dtype == "keep" or not entry.is_float else SAFETENSORS_NAME[plan.dtype]
    )
