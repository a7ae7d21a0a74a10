"""Stream the merged tensors under a plan: at most one tensor in memory, mostly one chunk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipmerge.arithmetic import RandomKey, mask_options, merge_tensor
from clipmerge.checkpoint import Checkpoint, Pair, TensorEntry
from clipmerge.checkpoint.finite import is_finite, require_finite
from clipmerge.checkpoint.header import DTYPES
from clipmerge.errors import CheckpointError, PlanError
from clipmerge.families import is_counter, is_statistic
from clipmerge.plan import LayerPlan, Plan
from clipmerge.plugins import load_plugin
from clipmerge.tensors import PlanTensors, coefficients_of_run

#: Elements merged at a time: 2 MB of float32 stay in the cache through the four passes of the arithmetic.
CHUNK = 1 << 19
_SAFETENSORS_NAME = {torch_name: name for name, (torch_name, _) in DTYPES.items()}


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the output: what it is, and its content on demand.

    Attributes:
        key: Key in the output file.
        name: Canonical parameter name.
        dtype: safetensors dtype.
        shape: Shape.
        chunks: Call it for the content: runs of elements in memory order, 1-D.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[Tensor]]


def merged_tensors(pair: Pair, plan: Plan, tensors: PlanTensors | None = None) -> list[MergedTensor]:
    """List the output's tensors, each with its content on demand; nothing is read yet.

    Args:
        pair: The aligned checkpoints.
        plan: What each layer gets; a parameter it does not name is theta_0's bytes.
        tensors: The scores and coefficients that the plan needs.

    Returns:
        One entry a tensor, in the zero-shot file's order.

    Raises:
        CheckpointError: While streaming: a NaN or Inf, or an integer tensor that differs.
    """
    outputs = []
    for name, key in pair.zeroshot_keys.items():
        if plan.missing == "keep-finetuned" and not pair.is_partial and name not in pair.finetuned_keys[0]:
            continue
        entry = pair.zeroshot.entries[key]
        layer = plan.layers.get(pair.layer_of[name])
        dtype = _output_dtype(plan, entry)
        if layer is not None and pair.merges(name):
            chunks = _merging(pair, plan, name, layer, tensors or PlanTensors(), dtype)
        else:
            chunks = _copying(pair, name, dtype)
        outputs.append(MergedTensor(output_key(pair, name, key), name, dtype, entry.shape, chunks))
    return outputs + _finetuned_only(pair, plan)


def output_key(pair: Pair, name: str, key: str) -> str:
    """Spell a name as transformers does; a lone tower saved bare stays bare, a wrapper's prefix always goes.

    Args:
        pair: The checkpoints.
        name: Canonical parameter name.
        key: Key in the file it comes from.
    """
    is_bare = pair.tower != "full" and not pair.is_partial and not key.endswith(name)
    return name.partition(".")[2] if is_bare else name


def _finetuned_only(pair: Pair, plan: Plan) -> list[MergedTensor]:
    if plan.missing != "keep-finetuned":
        return []
    checkpoint = pair.finetuned[0]
    outputs = []
    for name, key in pair.finetuned_keys[0].items():
        if name not in pair.zeroshot_keys:
            entry = checkpoint.entries[key]
            dtype = _output_dtype(plan, entry)
            chunks = partial(_lone_chunks, checkpoint, key, name, dtype)
            outputs.append(MergedTensor(output_key(pair, name, key), name, dtype, entry.shape, chunks))
    return outputs


def _lone_chunks(checkpoint: Checkpoint, key: str, name: str, dtype: str) -> Iterator[Tensor]:
    entry = checkpoint.entries[key]
    for start, stop in _runs(entry.size):
        piece = checkpoint.tensor(key, start, stop)
        if entry.is_float:
            require_finite(piece, name, checkpoint.source)
        copied = piece.to(_torch_dtype(dtype))
        if entry.is_float:
            _require_fits(copied, name, dtype)
        yield copied


def _output_dtype(plan: Plan, entry: TensorEntry) -> str:
    return entry.dtype if plan.dtype == "keep" or not entry.is_float else _SAFETENSORS_NAME[plan.dtype]


def _runs(size: int, length: int = CHUNK) -> Iterator[tuple[int, int]]:
    for start in range(0, size, length):
        yield start, min(start + length, size)


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, DTYPES[name][0])
    return dtype


def _merging(
    pair: Pair, plan: Plan, name: str, layer: LayerPlan, tensors: PlanTensors, dtype: str
) -> Callable[[], Iterator[Tensor]]:
    entry = pair.zeroshot.entries[pair.zeroshot_keys[name]]
    size = entry.size
    learned = tensors.coefficients.get(name) if layer.alpha_range else None
    masked = layer.mask and size > 1 and not is_statistic(name)
    inputs = _mask_inputs(plan, name, layer, tensors.scores) if masked else {}
    if inputs.get("score", inputs) is None:
        return _unscored(pair, name, layer, dtype)

    def chunks() -> Iterator[Tensor]:
        # a mask looks at the whole parameter, everything else goes by chunks
        for start, stop in [(0, None)] if inputs else _runs(size):
            theta_0 = pair.theta_0(name, start, stop)
            finetuned = [pair.theta_1(name, start, stop, which=i) for i in range(len(pair.finetuned))]
            alpha = layer.alpha if learned is None else coefficients_of_run(learned, entry.shape, start, stop)
            if (
                inputs or isinstance(alpha, Tensor) or alpha in (0, 1)
            ):  # NaN and Inf would not show in the result, or stop a decomposition
                _require_finite_inputs(pair, name, theta_0, finetuned)
            merged = merge_tensor(
                theta_0,
                finetuned,
                alpha=alpha,
                weights=plan.weights,
                dtype=_torch_dtype(dtype),
                **inputs,
            )
            if not is_finite(merged):
                _require_finite_inputs(pair, name, theta_0, finetuned)
                _require_fits(merged, name, dtype)
            yield merged.flatten()

    return chunks


def _require_finite_inputs(pair: Pair, name: str, theta_0: Tensor, finetuned: list[Tensor]) -> None:
    require_finite(theta_0, name, pair.zeroshot.source)
    for checkpoint, theta_1 in zip(pair.finetuned, finetuned, strict=True):
        require_finite(theta_1, name, checkpoint.source)


def _mask_inputs(plan: Plan, name: str, layer: LayerPlan, scores: dict[str, Tensor]) -> dict[str, Any]:
    mask = str(layer.mask)
    options = {**layer.mask_options, **layer.parameters.get(name, {})}
    inputs = {"mask": mask, **mask_options(mask, layer.density, options), "key": RandomKey(plan.seed, name)}
    if "score" in inspect.signature(load_plugin("masks", mask)).parameters:
        inputs["score"] = scores.get(name)
    return inputs


def _unscored(pair: Pair, name: str, layer: LayerPlan, dtype: str) -> Callable[[], Iterator[Tensor]]:
    """A parameter that fine-tuning left alone has no score and needs none; any other is an edited plan's mistake."""

    def chunks() -> Iterator[Tensor]:
        if not torch.equal(pair.theta_0(name), pair.theta_1(name)):
            raise PlanError(
                f"layer '{pair.layer_of[name]}' has the mask '{layer.mask}', and the plan holds no scores for {name}; "
                "use 'magnitude' there, or plan again"
            )
        yield from _copying(pair, name, dtype)()

    return chunks


def _copying(pair: Pair, name: str, dtype: str) -> Callable[[], Iterator[Tensor]]:
    entry = pair.zeroshot.entries[pair.zeroshot_keys[name]]

    def chunks() -> Iterator[Tensor]:
        for start, stop in _runs(entry.size):
            theta_0 = pair.theta_0(name, start, stop)
            if entry.is_float:
                require_finite(theta_0, name, pair.zeroshot.source)
            for which, keys in enumerate(pair.finetuned_keys):
                if name in keys and not is_counter(name):
                    _check_same_shape(pair, name, which)
                    theta_1 = pair.theta_1(name, start, stop, which=which)
                    _check_other(theta_0, theta_1, name, pair.finetuned[which].source)
            copied = theta_0.to(_torch_dtype(dtype))
            if entry.is_float:
                _require_fits(copied, name, dtype)
            yield copied

    return chunks


def _check_same_shape(pair: Pair, name: str, which: int) -> None:
    """Only `position_ids` may differ up to here: they are not among what pairing compares."""
    ours = pair.zeroshot.entries[pair.zeroshot_keys[name]].shape
    theirs = pair.finetuned[which].entries[pair.finetuned_keys[which][name]].shape
    if ours != theirs:
        raise CheckpointError(f"tensor {name} differs in shape: zeroshot {ours}, finetuned {theirs}")


def _check_other(theta_0: Tensor, theta_1: Tensor, name: str, source: str) -> None:
    if theta_0.is_floating_point() and theta_1.is_floating_point():
        require_finite(theta_1, name, source)
    elif not torch.equal(theta_0.double(), theta_1.double()):
        raise CheckpointError(
            f"{source}: integer tensor {name} differs from the zero-shot one, and integers cannot be averaged; "
            "use the base that was fine-tuned"
        )


def _require_fits(merged: Tensor, name: str, dtype: str) -> None:
    if not is_finite(merged):
        raise CheckpointError(
            f"tensor {name} overflows {DTYPES[dtype][0]} when merged; use --dtype float32, or an alpha in [0, 1]"
        )
