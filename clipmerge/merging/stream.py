"""Stream the merged tensors under a plan: at most one tensor in memory, mostly one chunk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs, TensorEntry
from clipmerge.errors import CheckpointError
from clipmerge.families import is_counter, is_variance
from clipmerge.files.safetensors import DTYPES, STORED, Array
from clipmerge.layers import HEAD
from clipmerge.merging import numpy_chunks as plain_chunks
from clipmerge.merging.numpy_chunks import Room
from clipmerge.parallel import side_by_side
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.plan import Plan
from clipmerge.planning.tensors import PlanTensors

if TYPE_CHECKING:
    from torch import Tensor

_SAFETENSORS_NAME = {torch_name: name for name, (torch_name, _) in DTYPES.items()}


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the output: what it is, and its content on demand.

    Attributes:
        key: Key in the output file.
        name: Canonical parameter name.
        dtype: safetensors dtype.
        shape: Shape.
        chunks: Call it for the content: runs of elements in memory order, 1-D, as they are stored (bfloat16 as
            its bits). Give it ``numpy.empty``, or another function that takes a number of elements and a dtype and
            lends a place for some of them; what comes may be there or elsewhere.
        is_whole: Whether all of it is computed before the first run, as a mask or a combination needs.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[Room], Iterator[Array]]
    is_whole: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the content."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]

    def tensor(self, content: Iterable[Array] | None = None) -> Tensor:
        """The whole content as a tensor of its own.

        Args:
            content: Its runs, where `contents_of` has them already.
        """
        import torch

        runs = self.chunks(np.empty) if content is None else content
        stored = np.concatenate([np.empty(0, STORED[self.dtype]), *runs])
        return torch.from_numpy(stored).view(getattr(torch, DTYPES[self.dtype][0])).view(self.shape)


def contents_of(tensors: Sequence[MergedTensor], room: Room) -> Generator[Iterable[Array]]:
    """Give each tensor's content in turn; what is computed whole is begun on other cores ahead of its turn.

    Args:
        tensors: Which, in the order wanted.
        room: What their `chunks` take.

    Yields:
        A tensor's runs of elements, to be used up before the next.
    """
    jobs = [(tensor.nbytes, partial(_begun, tensor)) for tensor in tensors if tensor.is_whole]
    if not jobs:  # nothing here needs torch
        yield from (tensor.chunks(room) for tensor in tensors)
        return
    with closing(side_by_side(jobs)) as begun:
        for tensor in tensors:
            yield next(begun) if tensor.is_whole else tensor.chunks(room)


def _begun(tensor: MergedTensor) -> Iterable[Array]:
    """A tensor's content, computed up to its first run, which is most of the work."""
    chunks = tensor.chunks(np.empty)
    return itertools.chain(list(itertools.islice(chunks, 1)), chunks)


def merged_tensors(inputs: Inputs, plan: Plan, tensors: PlanTensors | None = None) -> list[MergedTensor]:
    """List the output's tensors, each with its content on demand; nothing is read yet.

    Args:
        inputs: The aligned checkpoints.
        plan: What each layer gets; a parameter it does not name is theta_0's bytes.
        tensors: The scores and coefficients that the plan needs.

    Returns:
        One entry a tensor, in the zero-shot file's order.

    Raises:
        CheckpointError: If integer tensors differ in shape. While streaming: a NaN or Inf, or an integer that differs.
    """
    outputs = []
    for name, key in inputs.zeroshot_keys.items():
        if _is_left_out(inputs, plan, name):
            continue
        entry = inputs.zeroshot.entries[key]
        layer = plan.layers.get(inputs.layer_of[name])
        dtype, is_whole = _output_dtype(plan, entry), False
        if layer is not None and inputs.merges(name):
            is_whole = plan.combine is not None or (
                layer.mask is not None and plain_chunks.may_be_thinned(inputs, name)
            )
            chunks = _merging(inputs, plan, name, layer, tensors or PlanTensors(), dtype, by_torch=is_whole)
        elif is_counter(name) and layer is not None and layer.alpha == 1 and name in inputs.finetuned_keys[0]:
            chunks = _alone(inputs.finetuned[0], inputs.finetuned_keys[0][name], name, dtype)
        else:
            chunks = _copying(inputs, name, dtype)
        outputs.append(MergedTensor(inputs.output_keys[name], name, dtype, entry.shape, chunks, is_whole))
    return outputs + _finetuned_only(inputs, plan)


def copied_tensors(checkpoint: Checkpoint) -> list[MergedTensor]:
    """List the tensors of one checkpoint as they are, each with its content on demand.

    Args:
        checkpoint: Opened.

    Returns:
        One entry a tensor; while streaming, NaN and Inf are refused by name.
    """
    return [
        MergedTensor(key, key, entry.dtype, entry.shape, _alone(checkpoint, key, key, entry.dtype))
        for key, entry in checkpoint.entries.items()
    ]


def _is_left_out(inputs: Inputs, plan: Plan, name: str) -> bool:
    """Whether the output lacks a zero-shot parameter, because it has the fine-tuned checkpoint's form."""
    if name in inputs.finetuned_keys[0]:
        return False
    if inputs.keeps_head:
        return not inputs.expects(name)
    return plan.missing == "keep-finetuned" and not inputs.is_partial


def _finetuned_only(inputs: Inputs, plan: Plan) -> list[MergedTensor]:
    checkpoint = inputs.finetuned[0]
    outputs = []
    for name, key in inputs.finetuned_keys[0].items():
        is_kept = plan.missing == "keep-finetuned" or (inputs.keeps_head and inputs.layer_of.get(name) == HEAD)
        if is_kept and name not in inputs.zeroshot_keys:
            entry = checkpoint.entries[key]
            dtype = _output_dtype(plan, entry)
            chunks = _alone(checkpoint, key, name, dtype)
            outputs.append(MergedTensor(inputs.output_keys[name], name, dtype, entry.shape, chunks))
    return outputs


def _alone(checkpoint: Checkpoint, key: str, name: str, dtype: str) -> Callable[[Room], Iterator[Array]]:
    if checkpoint.entries[key].dtype == dtype and plain_chunks.copies([dtype]):
        return partial(plain_chunks.copying_alone, checkpoint, key, name)
    return partial(_copying_alone_by_torch, checkpoint, key, name, dtype)


def _merging(
    inputs: Inputs, plan: Plan, name: str, layer: LayerPlan, tensors: PlanTensors, dtype: str, *, by_torch: bool
) -> Callable[[Room], Iterator[Array]]:
    dtypes = {dtype, *(entry.dtype for entry in inputs.entries(name))}
    special = layer.alpha_range or is_variance(name)
    if by_torch or special or len(dtypes) > 1 or not dtypes <= plain_chunks.COMPUTED:
        return partial(_merging_by_torch, inputs, plan, name, layer, tensors, dtype)
    return partial(plain_chunks.merging, inputs, name, layer.alpha, plan.weights)


def _copying(inputs: Inputs, name: str, dtype: str) -> Callable[[Room], Iterator[Array]]:
    entry, *others = inputs.entries(name)
    if is_counter(name):
        others = []
    for other in others:  # only `position_ids` may differ up to here: they are not among what pairing compares
        if other.shape != entry.shape:
            raise CheckpointError(f"tensor {name} differs in shape: zeroshot {entry.shape}, finetuned {other.shape}")
    if entry.dtype == dtype and plain_chunks.copies([dtype, *(other.dtype for other in others)]):
        return partial(plain_chunks.copying, inputs, name)
    return partial(_copying_by_torch, inputs, name, dtype)


# torch is imported when a chunk is wanted that needs it, and not before: that alone takes longer than many a merge


def _merging_by_torch(
    inputs: Inputs, plan: Plan, name: str, layer: LayerPlan, tensors: PlanTensors, dtype: str, _room: Room
) -> Iterator[Array]:
    from clipmerge.merging.torch_chunks import merging

    return merging(inputs, plan, name, layer, tensors, dtype)


def _copying_by_torch(inputs: Inputs, name: str, dtype: str, _room: Room) -> Iterator[Array]:
    from clipmerge.merging.torch_chunks import copying

    return copying(inputs, name, dtype)


def _copying_alone_by_torch(checkpoint: Checkpoint, key: str, name: str, dtype: str, _room: Room) -> Iterator[Array]:
    from clipmerge.merging.torch_chunks import copying_alone

    return copying_alone(checkpoint, key, name, dtype)


def _output_dtype(plan: Plan, entry: TensorEntry) -> str:
    return entry.dtype if plan.dtype == "keep" or not entry.is_float else _SAFETENSORS_NAME[plan.dtype]
