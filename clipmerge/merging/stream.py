"""Compute the tensors of a merge in runs of elements, so that memory holds one tensor at most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clipmerge.checkpoint import Inputs
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.families import is_counter, is_statistic, is_variance
from clipmerge.files.safetensors import DTYPES, SAFETENSORS_NAME, Array, require_finite
from clipmerge.files.writer import OutputTensor
from clipmerge.merging import Rule, add_change, bind_mask, merge_tensor, merged_change
from clipmerge.merging.floats import fits, narrow, widen
from clipmerge.planning.plan import Combination, LayerPlan, Plan
from clipmerge.plugins import needs_score
from clipmerge.types import Json, Shape

# The settings of a layer that the plan does not name.
_ZEROSHOT = LayerPlan(alpha=0.0)


def merged_tensors(inputs: Inputs, plan: Plan) -> list[OutputTensor]:
    """List the output's tensors, each with the function that computes it; nothing is read yet."""
    outputs = []
    for name, key in inputs.output_keys.items():
        checkpoint, first_key = inputs.locations[name][0]
        entry = checkpoint.entries[first_key]
        keeps_dtype = plan.dtype == "keep" or not entry.is_float
        dtype = entry.dtype if keeps_dtype else SAFETENSORS_NAME[plan.dtype]
        layer = plan.layers.get(inputs.layer_of[name], _ZEROSHOT)
        merge = _Merge(inputs, plan, name, layer, dtype, entry.shape)
        is_merged = inputs.merges(name)
        fill = merge.fill_run if is_merged else merge.copy_run
        is_masked = plan.combine is not None or (layer.mask is not None and merge.is_maskable)
        change = merge.masked_change if is_merged and is_masked else None
        outputs.append(OutputTensor(key, name, dtype, entry.shape, fill, change))
    return outputs


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
    def is_maskable(self) -> bool:
        """Whether masks apply: not to a scalar, and not to statistics of batch norms."""
        return math.prod(self.shape) > 1 and not is_statistic(self.name)

    @property
    def alpha(self) -> float | Array:
        """The layer's alpha, or learned coefficients of this parameter."""
        learned = self.plan.coefficients.get(self.name)
        if learned is None or not self.layer.is_learned:
            return self.layer.alpha
        return float(learned.item()) if learned.size == 1 else learned

    def fill_run(self, start: int, out: Array, change: Array | None) -> None:
        """Write merged elements into ``out``, from the parameter's element ``start`` on."""
        stop = start + len(out)
        theta_0, *finetuned = _read_run(self.inputs, self.name, start, stop)
        if change is not None:
            merged = add_change(theta_0, change[start:stop])
        else:
            alpha = self.alpha
            if isinstance(alpha, np.ndarray):
                alpha = coefficients_of_run(alpha, self.shape, start, stop)
            merged = merge_tensor(theta_0, finetuned, alpha=alpha, weights=self.plan.weights)
        if is_variance(self.name) and bool((merged < 0).any()):  # by extrapolation
            raise CheckpointError(
                f"tensor {self.name} is a variance and becomes negative when merged; use an alpha"
                " in [0, 1] for its layer"
            )
        self._store(merged, out)

    def copy_run(self, start: int, out: Array, change: Array | None) -> None:
        """Copy elements of an unmerged tensor from the first checkpoint that has it.

        The other checkpoints must have the same values, except for counters of batches, which do
        not affect the model.
        """
        values, *others = _read_run(self.inputs, self.name, start, start + len(out))
        may_differ = is_counter(self.name)
        locations = self.inputs.locations[self.name][1:]
        for other, (checkpoint, _) in zip(others, locations, strict=True):
            if not (may_differ or np.array_equal(values, other)):
                raise CheckpointError(
                    f"{checkpoint.source}: integer tensor {self.name} differs from the zero-shot"
                    " one, but integers cannot be averaged; use the base that was fine-tuned"
                )
        if may_differ and others and self.layer.alpha == 1 and not self.layer.is_learned:
            values = others[0]
        self._store(values, out)

    def _store(self, values: Array, out: Array) -> None:
        """Write values into ``out``, rounded to the output's dtype."""
        if not fits(values, self.dtype):
            wider = "" if self.dtype in ("F32", "F64") else "use `dtype=float32`, or "
            raise CheckpointError(
                f"tensor {self.name} overflows {DTYPES[self.dtype]} when merged; {wider}use an"
                " alpha in [0, 1] and check the weights"
            )
        np.copyto(out, narrow(values, self.dtype))

    def masked_change(self) -> Array:
        """Compute the change of the whole parameter under its masks, 1-D."""
        plan, layer, combine = self.plan, self.layer, self.plan.combine
        theta_0, *finetuned = read_parameter(self.inputs, self.name)
        vector_masks: list[Rule] = []
        mask = None
        is_changed = not all(np.array_equal(theta_0, theta_i) for theta_i in finetuned)
        if self.is_maskable and is_changed:
            if combine is not None:
                for which in range(len(finetuned)):
                    key = f"{plan.seed}#{which}:{self.name}"
                    vector_masks.append(self._bind(combine, combine.mask_options, key))
            if layer.mask is not None:
                options = layer.mask_options | layer.parameters.get(self.name, {})
                mask = self._bind(layer, options, f"{plan.seed}:{self.name}")
        change = merged_change(
            theta_0,
            finetuned,
            alpha=self.alpha,
            weights=plan.weights,
            vector_masks=vector_masks,
            elect_signs=combine is not None and combine.elect_signs,
            mask=mask,
        )
        return change.ravel()

    def _bind(self, settings: LayerPlan | Combination, options: Json, key: str) -> Rule:
        """Bind a mask of the plan to this parameter; equal keys give equal random masks."""
        assert settings.mask is not None
        score = self.plan.scores.get(self.name)
        if score is None and needs_score(settings.mask):
            raise UsageError(
                f"layer '{self.inputs.layer_of[self.name]}' has the mask '{settings.mask}', but the"
                f" plan holds no scores for {self.name}; use 'magnitude' there, or plan again"
            )
        return bind_mask(settings.mask, settings.density, options, key=key, score=score)


def _read_run(inputs: Inputs, name: str, start: int = 0, stop: int | None = None) -> list[Array]:
    """Read elements ``start`` to ``stop`` of a tensor from every checkpoint that has it, 1-D.

    All are converted to one dtype, the widest; 16-bit floats are converted to float32 first. NaN
    and Inf raise an error.
    """
    values = []
    for checkpoint, key in inputs.locations[name]:
        stored = checkpoint.array(key, start, stop)
        values.append(widen(stored, checkpoint.entries[key].dtype))
        require_finite(values[-1], name, checkpoint.source)
    wide = np.result_type(*values)
    return [one.astype(wide, copy=False) for one in values]


def read_parameter(inputs: Inputs, name: str) -> list[Array]:
    """Read a whole parameter from every checkpoint, in its shape, or (1,) for a scalar.

    NaN and Inf raise an error.
    """
    shape = inputs.zeroshot_entry(name).shape or (1,)
    return [values.reshape(shape) for values in _read_run(inputs, name)]


def coefficients_of_run(coefficient: Array, shape: Shape, start: int, stop: int) -> Array:
    """Select the coefficients of entries ``start`` to ``stop``, in memory order.

    Example:
        >>> coefficients_of_run(np.array([[0.0], [1.0]]), (2, 3), 2, 5)
        array([0., 1., 1.])
    """
    width = math.prod(shape[1:])
    first = start // width
    rows = np.broadcast_to(coefficient, shape)[first : -(-stop // width)]
    begin = start - first * width
    return rows.reshape(-1)[begin : begin + stop - start]
