"""The layout of images, batch norms whose statistics are parameters, and faster operations in
16 bits.

On a CPU, attention is computed from two products of matrices instead of the fused kernel, and
convolutions of single channels in float32: their backward pass in bfloat16 takes six times as long.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import (
    batch_norm,
    conv2d,
    layer_norm,
    scaled_dot_product_attention,
    silu,
)
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# torch 2.13 computes strided 1x1 convolutions of fewer input channels wrongly with channels last.
_FEW_CHANNELS = 16
# Maximum number of attention scores per head that are held for all images at once: those of 1024
# tokens.
_MAX_SCORES = 1 << 20
# QuickGELU is x * sigmoid(1.702 x).
_STEEPNESS = 1.702


def image_layout(model: torch.nn.Module) -> torch.memory_format:
    """The order of an image's entries: channels last where there are many convolutions, which are
    faster with it.
    """
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    if len(convolutions) < 2:  # a transformer has one, for patches
        return torch.contiguous_format
    if any(map(_corrupts_memory, convolutions)):
        return torch.contiguous_format
    return torch.channels_last


def _corrupts_memory(convolution: torch.nn.Conv2d) -> bool:
    """Whether torch's backward pass writes outside its memory with channels last, which ends the
    process (docs/contributing/upstream.md); MobileCLIP's S models have such a layer.
    """
    is_pointwise = tuple(convolution.kernel_size) == (1, 1)
    return is_pointwise and max(convolution.stride) > 1 and convolution.in_channels < _FEW_CHANNELS


def faster_kernels(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU, replace slow operations in this context; elsewhere every call would only take
    longer.
    """
    return FasterKernels() if device.type == "cpu" else nullcontext()


class FasterKernels(TorchFunctionMode):
    """Replaces slow operations in bfloat16; other inputs go to PyTorch's."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        named = kwargs or {}
        if func is scaled_dot_product_attention and _is_faster(*args[:2], **named):
            return _attention(*args, **named)
        # one input channel per filter, of several
        if func is conv2d and args[1].shape[1] == 1 < args[0].shape[-3]:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **named).to(args[0].dtype)
        return func(*args, **named)


def _is_faster(
    query: Tensor, key: Tensor, *, dropout_p: float = 0.0, enable_gqa: bool = False, **_: Any
) -> bool:
    fits = query.shape[-2] * key.shape[-2] <= _MAX_SCORES
    return fits and query.dtype == torch.bfloat16 and not (dropout_p or enable_gqa)


def _attention(
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


class FrozenBatchNorm(torch.nn.Module):
    """A batch norm in eval mode that is also differentiable in its running statistics."""

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = torch.nn.Parameter(norm.weight.detach().clone())
        self.bias = torch.nn.Parameter(norm.bias.detach().clone())
        self.running_mean = torch.nn.Parameter(cast(Tensor, norm.running_mean).detach().clone())
        self.running_var = torch.nn.Parameter(cast(Tensor, norm.running_var).detach().clone())
        # timm's batch norms include the activation
        self.act: torch.nn.Module = getattr(norm, "act", torch.nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width), and activate if the batch norm did."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        # one fused operation, forward and backward, that multiplies by `scale` and adds `shift`
        still = torch.zeros_like(scale), torch.ones_like(scale)
        normalised: Tensor = self.act(
            batch_norm(inputs, *still, scale, shift, training=False, eps=0.0)
        )
        return normalised


def freeze_batch_norms(module: torch.nn.Module) -> None:
    """Replace every batch norm that has running statistics inside a module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d) and child.track_running_stats:
                setattr(parent, name, FrozenBatchNorm(child))


def keep_16_bits(module: torch.nn.Module) -> None:
    """Under autocast on a card, let every layer norm and QuickGELU inside a module compute in 16
    bits with fewer kernels, in place.

    Autocast's own layer norms return float32, so that blocks add up float32 and cast it for every
    product; OpenCLIP's towers add up 16 bits. QuickGELU is silu(s x) / s, whose factors the maps
    around it take over.
    """
    for parent in module.modules():
        if type(parent).__name__ == "LayerNorm":  # others permute, or normalise otherwise
            _replace(parent, _layer_norm_in_16_bits)
        children = list(parent.children())
        kinds = [type(child).__name__ for child in children]
        activation = [kind in ("QuickGELU", "QuickGELUActivation") for kind in kinds]
        maps = [child for child in children if isinstance(child, torch.nn.Linear)]
        if any(activation) and len(maps) == 2:
            _replace(maps[0], _linear_into_silu)
            _replace(children[activation.index(True)], lambda _, inputs: silu(inputs))
            _replace(maps[1], _linear_after_silu)


def _replace(module: torch.nn.Module, quick: Callable[[Any, Tensor], Tensor]) -> None:
    """Let a module compute otherwise under autocast on a card."""
    # a module that refers to itself would keep its weights until garbage collection
    module.forward = partial(_run, quick, weakref.ref(module))


def _run(
    quick: Callable[[Any, Tensor], Tensor], reference: weakref.ref[torch.nn.Module], inputs: Tensor
) -> Tensor:
    module: Any = reference()
    return quick(module, inputs) if _is_in_16_bits(inputs) else type(module).forward(module, inputs)


def _is_in_16_bits(inputs: Tensor) -> bool:
    kind = inputs.device.type
    return kind != "cpu" and torch.is_autocast_enabled(kind)


def _layer_norm_in_16_bits(norm: torch.nn.LayerNorm, inputs: Tensor) -> Tensor:
    kind = inputs.device.type
    inputs, weight, bias = (
        None if tensor is None else tensor.to(torch.get_autocast_dtype(kind))
        for tensor in (inputs, norm.weight, norm.bias)
    )
    with torch.autocast(kind, enabled=False):  # the kernel adds up in float32
        return layer_norm(inputs, norm.normalized_shape, weight, bias, norm.eps)


def _linear_into_silu(linear: torch.nn.Linear, inputs: Tensor) -> Tensor:
    bias = None if linear.bias is None else _STEEPNESS * linear.bias
    return torch.nn.functional.linear(inputs, _STEEPNESS * linear.weight, bias)


def _linear_after_silu(linear: torch.nn.Linear, inputs: Tensor) -> Tensor:
    return torch.nn.functional.linear(inputs, linear.weight / _STEEPNESS, linear.bias)


def run_with_recomputation(device: torch.device, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function with activation checkpointing; in 16 bits only inside
    `clipmerge.models.precision.passes`.
    """
    again = partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), faster_kernels(device))
    )
    return again(function, *args)
