"""Forward passes in 16 bits, if the processor or GPU multiplies them in hardware: bfloat16, or
float16 on older cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


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


def passes(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """In this context, compute forward passes in this precision; weights and their gradients stay
    in float32.
    """
    dtype = dtype_of(device, precision)
    # casts are not kept: weights move between passes
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
