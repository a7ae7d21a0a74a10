"""Batch norms whose statistics are parameters, so that measures treat them like all other weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import batch_norm


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
        normalised: Tensor = self.act(batch_norm(inputs, *still, scale, shift, training=False, eps=0.0))
        return normalised


def freeze_batch_norms(module: torch.nn.Module) -> None:
    """Replace every batch norm that has running statistics inside a module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d) and child.track_running_stats:
                setattr(parent, name, FrozenBatchNorm(child))
