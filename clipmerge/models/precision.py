"""Forward passes in bfloat16, if the processor or GPU supports it in hardware."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from clipmerge.models.attention import ProductAttention

Precision = Literal["auto", "float32", "bfloat16"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32."""
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":  # pragma: no cover - needs a GPU
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(supports()) for supports in asked if supports is not None)


@contextmanager
def passes(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute the forward passes inside in this precision; weights and their gradients stay in float32.

    Args:
        device: Device of the passes.
        precision: ``auto`` uses bfloat16 if `multiplies_bfloat16` is true for the device, else float32.
    """
    enabled = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
    if not enabled:
        yield
        return
    # no cache: the weights move in place, so weights that were cast before are out of date
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), ProductAttention():
        yield
