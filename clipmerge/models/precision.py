"""Forward passes in 16 bits, if the processor or GPU multiplies them in hardware: bfloat16, or
float16 on older cards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clipmerge.models.kernels import faster_kernels

Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Names in autograd of the views that a linear map takes of its weight, and of a weight's cast under
# autocast.
_VIEWS, _CAST = ("TBackward0", "TransposeBackward0"), "ToCopyBackward0"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    if device.type != "cpu":  # CUDA's, ROCm's and Intel's say so; Apple's does not
        supports = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
        # with emulation, older cards would say that they support it, by way of float32
        return bool(supports is not None and supports(including_emulation=False))
    asked = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(bool(supports()) for supports in asked if supports is not None)


def dtype_of(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype in which matrices are multiplied; ``auto`` takes the fastest one of the device."""
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if multiplies_bfloat16(device):
        return torch.bfloat16
    # T4, V100 and AMD's older cards; what CPUs, Apple's and Intel's gain by it is not known
    return torch.float16 if device.type == "cuda" else torch.float32


@contextmanager
def own_settings() -> Iterator[None]:
    """In this context, gradients are on and numbers float32, whatever the caller has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def passes(device: torch.device, precision: Precision) -> Iterator[None]:
    """In this context, compute forward passes in this precision; weights and their gradients stay
    in float32.
    """
    dtype = dtype_of(device, precision)
    if dtype == torch.float32:
        yield
        return
    # casts are held in an enclosing autocast until weights move, unless a backward pass takes the
    # weights' memory
    with (
        torch.autocast(device.type, dtype, cache_enabled=not torch.is_grad_enabled()),
        faster_kernels(device),
    ):
        yield


@contextmanager
def casts_repeated(device: torch.device) -> Iterator[None]:
    """On a CPU, let the backward pass of this context cast weights to 16 bits again, so that no
    cast is held until then.

    The weights must not change between the forward pass and their gradients. The results are the
    same. A card has the room, and its CPU no time for a call per tensor.
    """
    if device.type != "cpu":
        yield
        return
    with saved_tensors_hooks(_without_cast, _repeat_cast):
        yield


def _without_cast(
    tensor: Tensor,
) -> Tensor | tuple[Tensor, torch.dtype, Sequence[int], Sequence[int]]:
    """For a cast of a weight, the weight and how to repeat the cast; for any other tensor, it
    without its graph.
    """
    node = tensor.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    if node is None or node.name() != _CAST:
        return tensor.detach()
    weight = getattr(node.next_functions[0][0], "variable", None)
    if weight is None or weight.numel() != tensor.numel() or not weight.is_contiguous():
        return tensor.detach()
    return weight, tensor.dtype, tensor.shape, tensor.stride()


def _repeat_cast(
    saved: Tensor | tuple[Tensor, torch.dtype, Sequence[int], Sequence[int]],
) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    weight, dtype, shape, stride = saved
    return weight.detach().to(dtype).as_strided(shape, stride)
