"""Attention in bfloat16 on a CPU, from two products of matrices: faster there than PyTorch's fused one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

# Maximum number of attention scores per head that are held for all images at once: those of 1024 tokens.
_MOST = 1 << 20


class ProductAttention(TorchFunctionMode):
    """Replaces fused attention in its context, for bfloat16 on a CPU; other inputs go to PyTorch's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Compute one torch function, or pass it on."""
        named = kwargs or {}
        if func is scaled_dot_product_attention and _is_faster(*args[:2], **named):
            return _attended(*args, **named)
        return func(*args, **named)


def _is_faster(query: Tensor, key: Tensor, *, dropout_p: float = 0.0, enable_gqa: bool = False, **_: Any) -> bool:
    fits = query.shape[-2] * key.shape[-2] <= _MOST
    return fits and query.device.type == "cpu" and query.dtype == torch.bfloat16 and not (dropout_p or enable_gqa)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Compute the same as `scaled_dot_product_attention`, from the same arguments."""
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value
