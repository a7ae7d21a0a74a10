"""Stream the tensors of a merge under a plan, with at most one tensor in memory, and usually one
chunk.

Each tensor has one source, chosen by its dtypes and the plan: copied or merged, by numpy if that is
sufficient. Torch is imported only for a chunk that needs it, because the import alone takes longer
than many merges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from clipmerge.checkpoint import Checkpoint, Inputs, Location, TensorEntry
from clipmerge.errors import CheckpointError
from clipmerge.families import is_counter, is_variance
from clipmerge.files.safetensors import SAFETENSORS_NAME, Array
from clipmerge.files.writer import BufferProvider, OutputTensor
from clipmerge.layers import HEAD
from clipmerge.merging import formula
from clipmerge.merging.formula import is_sparsifiable
from clipmerge.planning.plan import LayerPlan, Plan


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
        is_whole = False
        if layer is not None and inputs.merges(name):
            masked = layer.mask is not None and is_sparsifiable(inputs, name)
            is_whole = masked or plan.combine is not None
            chunks = partial(_merge, inputs, plan, name, layer, dtype, is_whole)
        else:
            chunks = _unmerged_content(inputs, name, layer, dtype)
        key = inputs.output_keys[name]
        outputs.append(OutputTensor(key, name, dtype, entry.shape, chunks, is_whole))
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


def _copy(
    name: str, holder: Location, others: Sequence[Location], dtype: str, reserve: BufferProvider
) -> Iterator[Array]:
    """Copy a tensor of one checkpoint, and check the others': with numpy if it has the dtypes, else
    with torch.
    """
    own_dtype, *dtypes = (checkpoint.entries[key].dtype for checkpoint, key in (holder, *others))
    if own_dtype == dtype and formula.can_copy([own_dtype, *dtypes]):
        return formula.copy_chunks(name, holder, others, reserve)
    from clipmerge.merging import torch_chunks

    return torch_chunks.copy_chunks(name, holder, others, dtype)


def _merge(
    inputs: Inputs,
    plan: Plan,
    name: str,
    layer: LayerPlan,
    dtype: str,
    is_whole: bool,
    reserve: BufferProvider,
) -> Iterator[Array]:
    """Merge a parameter: with numpy if only the formula is needed and the dtype does not change,
    else with torch.
    """
    dtypes = {dtype, *(entry.dtype for entry in inputs.entries(name))}
    is_plain = len(dtypes) == 1 and dtypes <= formula.COMPUTED and not is_variance(name)
    if is_plain and not is_whole and not layer.is_learned:
        return formula.merge_chunks(inputs, name, layer.alpha, plan.weights, reserve)
    from clipmerge.merging import torch_chunks

    return torch_chunks.merge_chunks(inputs, plan, name, layer, dtype)


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
