"""Compute the tensors of a merge in runs of elements, so that memory holds one tensor at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from clipmerge.checkpoint import Inputs, Location
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.families import is_counter, is_statistic, is_variance
from clipmerge.files.safetensors import DTYPES, SAFETENSORS_NAME, Array, require_finite
from clipmerge.files.writer import OutputTensor
from clipmerge.merging import Rule, add_change, bind_mask, merge_tensor, whole_change
from clipmerge.merging.floats import fits, narrow, widen
from clipmerge.planning.plan import LayerPlan, Plan
from clipmerge.plugins import needs_score
from clipmerge.types import Shape


def merged_tensors(inputs: Inputs, plan: Plan) -> list[OutputTensor]:
    """List the output's tensors, each with the function that computes it; nothing is read yet."""
    outputs = []
    for name, key in inputs.output_keys.items():
        layer = plan.layers.get(inputs.layer_of[name])
        locations = inputs.locations[name]
        checkpoint, first_key = locations[0]
        entry = checkpoint.entries[first_key]
        keeps_dtype = plan.dtype == "keep" or not entry.is_float
        dtype = entry.dtype if keeps_dtype else SAFETENSORS_NAME[plan.dtype]
        output = partial(OutputTensor, key, name, dtype, entry.shape)
        if layer is not None and inputs.merges(name):
            merge = _Merge(inputs, plan, name, layer, dtype, entry.shape)
            is_masked = layer.mask is not None and is_sparsifiable(inputs, name)
            needs_change = is_masked or plan.combine is not None
            outputs.append(output(merge.fill_run, merge.masked_change if needs_change else None))
            continue
        if is_counter(name):  # may differ without any effect on the model
            is_finetuned = layer is not None and layer.alpha == 1 and not layer.is_learned
            locations = (is_finetuned and locations[1:2]) or locations[:1]
        _require_equal_shapes(name, locations)
        outputs.append(output(partial(_copy_run, name, locations, dtype)))
    return outputs


def is_sparsifiable(inputs: Inputs, name: str) -> bool:
    """Whether masks apply to a parameter: not to a scalar, and not to statistics of batch norms."""
    return inputs.zeroshot_entry(name).size > 1 and not is_statistic(name)


@dataclass(frozen=True)
class _Merge:
    """The merge of one parameter under a plan."""

    inputs: Inputs
    plan: Plan
    name: str
    layer: LayerPlan
    dtype: str  # of the output, as safetensors names it
    shape: Shape

    @property
    def alpha(self) -> float | Array:
        """The layer's alpha, or learned coefficients of this parameter."""
        learned = self.plan.coefficients.get(self.name)
        if learned is None or not self.layer.is_learned:
            return self.layer.alpha
        return float(learned.item()) if learned.size == 1 else learned

    def fill_run(self, start: int, out: Array, change: Array | None) -> None:
        """Write merged elements into ``out``, from the parameter's element ``start`` on."""
        name, dtype = self.name, self.dtype
        stop = start + len(out)
        ends = _read_run(self.inputs, name, start, stop)
        theta_0, *finetuned = ends
        if change is not None:
            merged = add_change(theta_0, change[start:stop])
        else:
            alpha = self.alpha
            if isinstance(alpha, np.ndarray):
                alpha = coefficients_of_run(alpha, self.shape, start, stop)
            if isinstance(alpha, np.ndarray) or alpha in (0, 1):  # NaN need not reach the result
                _require_finite(self.inputs, name, ends)
            place = out if out.dtype == theta_0.dtype else None
            merged = merge_tensor(
                theta_0, finetuned, alpha=alpha, weights=self.plan.weights, out=place
            )
        if not fits(merged, dtype):
            _require_finite(self.inputs, name, ends)
            raise _overflow_error(name, dtype)
        if is_variance(name) and bool((merged < 0).any()):  # by extrapolation
            raise CheckpointError(
                f"tensor {name} is a variance and becomes negative when merged; use an alpha in"
                " [0, 1] for its layer"
            )
        if merged is not out:
            np.copyto(out, narrow(merged, dtype))

    def masked_change(self) -> Array:
        """Compute the change of the whole parameter under its masks, 1-D."""
        plan, name, combine = self.plan, self.name, self.plan.combine
        theta_0, *finetuned = read_parameter(self.inputs, name)
        vector_masks: list[Rule] = []
        mask = None
        if is_sparsifiable(self.inputs, name):
            from clipmerge.merging.selection import RandomKey

            key = RandomKey(plan.seed, name)
            filled_in = {"score": plan.scores[name]} if name in plan.scores else {}
            masks = [named.mask for named in (self.layer, combine) if named and named.mask]
            if not filled_in and any(map(needs_score, masks)):
                if np.array_equal(theta_0, finetuned[0]):  # nothing to rank
                    return np.zeros_like(theta_0).ravel()
                raise UsageError(
                    f"layer '{self.inputs.layer_of[name]}' has the mask '{masks[0]}', but the plan"
                    f" holds no scores for {name}; use 'magnitude' there, or plan again"
                )
            if combine is not None:
                bind = partial(bind_mask, combine.mask, combine.density, combine.mask_options)
                for which in range(len(finetuned)):
                    vector_masks.append(bind(**filled_in, key=key.for_checkpoint(which)))
            if self.layer.mask is not None:
                options = self.layer.mask_options | self.layer.parameters.get(name, {})
                mask = bind_mask(self.layer.mask, self.layer.density, options, **filled_in, key=key)
        change = whole_change(
            theta_0,
            finetuned,
            alpha=self.alpha,
            weights=plan.weights,
            vector_masks=vector_masks,
            elect_signs=combine is not None and combine.elect_signs,
            mask=mask,
        )
        return change.ravel()


def _read_run(inputs: Inputs, name: str, start: int = 0, stop: int | None = None) -> list[Array]:
    """Read elements ``start`` to ``stop`` of a parameter in every checkpoint, 1-D: in float64 if
    one checkpoint has it, else in float32.
    """
    locations = inputs.locations[name]
    dtypes = [checkpoint.entries[key].dtype for checkpoint, key in locations]
    wide = np.dtype(np.float64 if "F64" in dtypes else np.float32)
    return [
        widen(checkpoint.array(key, start, stop), dtype, wide)
        for dtype, (checkpoint, key) in zip(dtypes, locations, strict=True)
    ]


def read_parameter(inputs: Inputs, name: str) -> list[Array]:
    """Read a whole parameter in every checkpoint, in its shape, or (1,) for a scalar.

    NaN and Inf raise an error: a mask may hide them, and a decomposition fails with them.
    """
    shape = inputs.zeroshot_entry(name).shape or (1,)
    ends = [values.reshape(shape) for values in _read_run(inputs, name)]
    _require_finite(inputs, name, ends)
    return ends


def _require_finite(inputs: Inputs, name: str, ends: Sequence[Array]) -> None:
    """Raise an error if a parameter has NaN or Inf, and name the checkpoint."""
    for values, checkpoint in zip(ends, inputs.checkpoints, strict=True):
        require_finite(values, name, checkpoint.source)


def _overflow_error(name: str, dtype: str) -> CheckpointError:
    """Make the error for a merged tensor whose values its dtype cannot represent."""
    wider = "" if dtype in ("F32", "F64") else "use `dtype=float32`, or "
    return CheckpointError(
        f"tensor {name} overflows {DTYPES[dtype]} when merged; {wider}use an alpha in [0, 1] and"
        " check the weights"
    )


def coefficients_of_run(coefficient: Array, shape: Shape, start: int, stop: int) -> Array:
    """Select the coefficients of entries ``start`` to ``stop``, in memory order.

    Example:
        >>> coefficients_of_run(np.array([[0.0], [1.0]]), (2, 3), 2, 5)
        array([0., 1., 1.])
    """
    if coefficient.shape == shape:
        return coefficient.ravel()[start:stop]
    width = math.prod(shape[1:])
    first = start // width
    rows = coefficient.ravel()[first : -(-stop // width)]
    begin = start - first * width
    return rows.repeat(width)[begin : begin + stop - start]


def _require_equal_shapes(name: str, locations: Sequence[Location]) -> None:
    """Raise an error if a tensor that is copied differs in shape between checkpoints."""
    ours, *others = (checkpoint.entries[key].shape for checkpoint, key in locations)
    for shape in others:
        if shape != ours:
            raise CheckpointError(
                f"tensor {name} differs in shape: zeroshot {ours}, finetuned {shape}"
            )


def _copy_run(
    name: str,
    locations: Sequence[Location],
    dtype: str,
    start: int,
    out: Array,
    change: Array | None = None,
) -> None:
    """Copy elements of the first checkpoint's tensor, in the output's dtype; in the others,
    integers must be equal and floats finite.
    """
    (checkpoint, key), *others = locations
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
