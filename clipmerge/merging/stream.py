"""Stream the tensors of a merge under a plan, with at most one tensor in memory, and usually one
run of its elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from clipmerge.checkpoint import Inputs, Location, OutputKind, TensorEntry
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.families import is_counter, is_statistic, is_variance
from clipmerge.files.safetensors import DTYPES, SAFETENSORS_NAME, Array, require_finite
from clipmerge.files.writer import OutputTensor
from clipmerge.layers import HEAD
from clipmerge.merging import add_change, bind_mask, merge_tensor, whole_change
from clipmerge.merging.floats import compute_dtype, fits, narrow, widen
from clipmerge.planning.plan import LayerPlan, Plan
from clipmerge.plugins import needs_score
from clipmerge.types import Shape


def merged_tensors(inputs: Inputs, plan: Plan) -> list[OutputTensor]:
    """List the output's tensors, each with its content on demand; nothing is read yet."""
    outputs = []
    for name in inputs.zeroshot_keys:
        layer = plan.layers.get(inputs.layer_of[name])
        is_finetuned = name in inputs.finetuned_keys[0]
        if not is_finetuned and _is_left_out(inputs, plan, name):
            continue
        if layer is not None and inputs.merges(name):
            outputs.append(_merged_tensor(inputs, plan, name, layer))
        else:
            holders = _holders_of_copied(inputs, name, layer)
            outputs.append(_copied_tensor(inputs, plan, name, holders))
    is_headed = inputs.output is OutputKind.FINETUNED_CLASSIFIER
    if is_headed or plan.missing == "keep-finetuned":
        outputs += _finetuned_only_tensors(inputs, plan)
    return outputs


def _is_left_out(inputs: Inputs, plan: Plan, name: str) -> bool:
    """Whether the output, in the fine-tuned checkpoint's form, has no place for a parameter that
    only the zero-shot one has.
    """
    if inputs.output is OutputKind.FINETUNED_CLASSIFIER:
        return not inputs.expects(name)
    return plan.missing == "keep-finetuned" and inputs.layout is not inputs.zeroshot


def _finetuned_only_tensors(inputs: Inputs, plan: Plan) -> list[OutputTensor]:
    """The tensors that only the first fine-tuned checkpoint has: all, or those of its head."""
    outputs = []
    for name, key in inputs.finetuned_keys[0].items():
        is_wanted = plan.missing == "keep-finetuned" or inputs.layer_of.get(name) == HEAD
        if is_wanted and name not in inputs.zeroshot_keys:
            holder = (inputs.finetuned[0], key)
            outputs.append(_copied_tensor(inputs, plan, name, [holder]))
    return outputs


def _output_dtype(plan: Plan, entry: TensorEntry) -> str:
    keeps = plan.dtype == "keep" or not entry.is_float
    return entry.dtype if keeps else SAFETENSORS_NAME[plan.dtype]


def is_sparsifiable(inputs: Inputs, name: str) -> bool:
    """Whether entries of a parameter may be dropped: not in a scalar or in batch norm
    statistics.
    """
    return inputs.zeroshot_entry(name).size > 1 and not is_statistic(name)


# --- tensors that are merged ---


def _merged_tensor(inputs: Inputs, plan: Plan, name: str, layer: LayerPlan) -> OutputTensor:
    """Merge a parameter by its layer's alpha, or by its own learned coefficients."""
    key = inputs.output_keys[name]
    entry = inputs.zeroshot_entry(name)
    dtype = _output_dtype(plan, entry)
    alpha: float | Array = layer.alpha
    learned = plan.coefficients.get(name)  # a parameter that has none goes with its layer
    if layer.is_learned and learned is not None:
        alpha = float(learned.item()) if learned.size == 1 else learned
    fill = partial(_merge_run, inputs, plan, name, alpha, dtype)
    change = None
    is_masked = layer.mask is not None and is_sparsifiable(inputs, name)
    if is_masked or plan.combine is not None:
        change = partial(_masked_change, inputs, plan, name, layer, alpha)
    return OutputTensor(key, name, dtype, entry.shape, fill, change)


def _merge_run(
    inputs: Inputs,
    plan: Plan,
    name: str,
    alpha: float | Array,
    dtype: str,
    start: int,
    out: Array,
    change: Array | None,
) -> None:
    """Merge a run of a parameter's elements in memory order, 1-D, in stored form."""
    stop = start + len(out)
    ends = _read_run(inputs, name, start, stop)
    theta_0, *finetuned = ends
    if change is not None:
        merged = add_change(theta_0, change[start:stop])
    else:
        if isinstance(alpha, np.ndarray):
            shape = inputs.zeroshot_entry(name).shape
            alpha = coefficients_of_run(alpha, shape, start, stop)
        if isinstance(alpha, np.ndarray) or alpha in (0, 1):  # NaN need not reach the result
            _require_finite(inputs, name, ends)
        place = out if out.dtype == theta_0.dtype else None
        merged = merge_tensor(theta_0, finetuned, alpha=alpha, weights=plan.weights, out=place)
    if not fits(merged, dtype):
        _require_finite(inputs, name, ends)
        raise _overflow_error(name, dtype)
    if is_variance(name):
        _refuse_negative(merged, name)
    if merged is not out:
        np.copyto(out, narrow(merged, dtype))


def _refuse_negative(merged: Array, name: str) -> None:
    """Refuse a negative variance, which extrapolation can give."""
    if bool((merged < 0).any()):
        raise CheckpointError(
            f"tensor {name} is a variance and becomes negative when merged; use an alpha in [0, 1]"
            " for its layer"
        )


def _read_run(inputs: Inputs, name: str, start: int = 0, stop: int | None = None) -> list[Array]:
    """A run of a parameter in every checkpoint, 1-D, in the dtype of the arithmetic."""
    holders = inputs.holders[name]
    dtypes = [checkpoint.entries[key].dtype for checkpoint, key in holders]
    wide = compute_dtype(set(dtypes))
    ends = []
    for dtype, (checkpoint, key) in zip(dtypes, holders, strict=True):
        stored = checkpoint.array(key, start, stop)
        ends.append(widen(stored, dtype, wide))
    return ends


def read_parameter(inputs: Inputs, name: str) -> list[Array]:
    """A whole parameter in every checkpoint, in its shape, or (1,) for a scalar.

    Refuses NaN and Inf, which a mask may hide, and with which a decomposition fails.
    """
    shape = inputs.zeroshot_entry(name).shape or (1,)
    ends = [values.reshape(shape) for values in _read_run(inputs, name)]
    _require_finite(inputs, name, ends)
    return ends


def _require_finite(inputs: Inputs, name: str, ends: Sequence[Array]) -> None:
    for values, checkpoint in zip(ends, inputs.checkpoints, strict=True):
        require_finite(values, name, checkpoint.source)


def _overflow_error(name: str, dtype: str) -> CheckpointError:
    """The error for a merge that overflows its dtype."""
    wider = "" if dtype in ("F32", "F64") else "use `dtype=float32`, or "
    return CheckpointError(
        f"tensor {name} overflows {DTYPES[dtype][0]} when merged; {wider}use an alpha in [0, 1] and"
        " check the weights"
    )


def _masked_change(
    inputs: Inputs, plan: Plan, name: str, layer: LayerPlan, alpha: float | Array
) -> Array:
    """The change of a whole parameter under masks, 1-D."""
    from clipmerge.merging.selection import RandomKey

    theta_0, *finetuned = read_parameter(inputs, name)
    key = RandomKey(plan.seed, name)
    filled_in = {"score": plan.scores[name]} if name in plan.scores else {}
    combine = plan.combine
    vector_masks = []
    mask = None
    if is_sparsifiable(inputs, name):
        masks = [named.mask for named in (layer, combine) if named and named.mask]
        if name not in plan.scores and any(map(needs_score, masks)):
            if np.array_equal(theta_0, finetuned[0]):  # nothing to rank
                return np.zeros_like(theta_0).ravel()
            raise UsageError(
                f"layer '{inputs.layer_of[name]}' has the mask '{masks[0]}', but the plan holds no"
                f" scores for {name}; use 'magnitude' there, or plan again"
            )
        if combine is not None:
            bind = partial(bind_mask, combine.mask, combine.density, combine.mask_options)
            keys = map(key.for_checkpoint, range(len(finetuned)))
            vector_masks = [bind(**filled_in, key=own) for own in keys]
        if layer.mask is not None:
            options = {**layer.mask_options, **layer.parameters.get(name, {})}
            mask = bind_mask(layer.mask, layer.density, options, **filled_in, key=key)
    change = whole_change(
        theta_0,
        finetuned,
        alpha=alpha,
        weights=plan.weights,
        vector_masks=vector_masks,
        elect_signs=combine is not None and combine.elect_signs,
        mask=mask,
    )
    return change.ravel()


def coefficients_of_run(coefficient: Array, shape: Shape, start: int, stop: int) -> Array:
    """Select the coefficients of a run of entries in memory order.

    Example:
        >>> coefficients_of_run(np.array([[0.0], [1.0]]), (2, 3), 2, 5)
        array([0., 1., 1.])
    """
    if coefficient.shape == shape:
        return coefficient.ravel()[start:stop]
    width = math.prod(shape[1:])
    first = start // width
    last = -(-stop // width)
    rows = coefficient.ravel()[first:last]
    entries = rows.repeat(width)
    begin = start - first * width
    return entries[begin : begin + stop - start]


# --- tensors that are copied ---


def _copied_tensor(inputs: Inputs, plan: Plan, name: str, holders: list[Location]) -> OutputTensor:
    """Copy a tensor from the first of these checkpoints; integers must be equal in the others."""
    (checkpoint, key), *others = holders
    entry = checkpoint.entries[key]
    for other, other_key in others:  # alignment has compared the shapes of floats
        shape = other.entries[other_key].shape
        if shape != entry.shape:
            raise CheckpointError(
                f"tensor {name} differs in shape: zeroshot {entry.shape}, finetuned {shape}"
            )
    dtype = _output_dtype(plan, entry)
    fill = partial(_copy_run, name, holders, dtype)
    return OutputTensor(inputs.output_keys[name], name, dtype, entry.shape, fill)


def _holders_of_copied(inputs: Inputs, name: str, layer: LayerPlan | None) -> list[Location]:
    """The checkpoint from which a tensor that is not merged is copied, then those that must
    agree.
    """
    holders = inputs.holders[name]
    if not is_counter(name):
        return holders
    # counters may differ without any effect on the model
    is_finetuned = layer is not None and layer.alpha == 1 and not layer.is_learned
    at = 1 if is_finetuned and name in inputs.finetuned_keys[0] else 0
    return [holders[at]]


def _copy_run(
    name: str, holders: list[Location], dtype: str, start: int, out: Array, change: None = None
) -> None:
    """Copy a run of a tensor in the output's dtype, and check the tensor in the other
    checkpoints.
    """
    (checkpoint, key), *others = holders
    entry = checkpoint.entries[key]
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
