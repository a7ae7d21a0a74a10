"""Batch norms whose statistics are parameters, and the layout of images that convolutions want."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

# torch 2.13 computes strided 1x1 convolutions of fewer input channels wrongly with channels last.
_FEW_CHANNELS = 16


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


class FrozenBatchNorm(torch.nn.Module):
    """A batch norm in eval mode that is also differentiable in its running statistics."""

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = torch.nn.Parameter(norm.weight.detach().clone())
        self.bias = torch.nn.Parameter(norm.bias.detach().clone())
        self.running_mean = torch.nn.Parameter(cast("Tensor", norm.running_mean).detach().clone())
        self.running_var = torch.nn.Parameter(cast("Tensor", norm.running_var).detach().clone())
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
