"""Perturbations of one layer: their ball, and the first-order maximiser in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Parameter


class LayerBall:
    """The perturbations delta = c * u of one layer with ||u||_p <= radius, u being one vector of
    all its entries.

    Working in u makes the adaptive ball an ordinary one, even for weights that are zero.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        *,
        norm: Literal["l2", "linf"],
        radius: float,
        adaptive: bool,
    ) -> None:
        """Store the layer's weights theta."""
        self.parameters = parameters
        self.norm = norm
        self.radius = radius
        self._origin = concatenate_flat(parameters).detach().clone()
        self._scale = self._origin.abs() if adaptive else torch.ones_like(self._origin)

    @torch.no_grad()
    def place(self, point: Tensor) -> None:
        """Move the layer to theta + c * u; zeros restore it."""
        moved = torch.addcmul(self._origin, self._scale, point)
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, values in zip(self.parameters, torch.split(moved, sizes), strict=True):
            parameter.data.copy_(values.view_as(parameter))

    def restore(self) -> None:
        """Move the layer back to theta."""
        self.place(torch.zeros_like(self._origin))

    def maximiser(self, gradient: Tensor) -> Tensor:
        """The u in the ball that maximises the loss to first order, given its gradient."""
        scaled = gradient * self._scale
        if self.norm == "linf":
            return self.radius * scaled.sign()
        length: Tensor = vector_norm(scaled)
        return self.radius * scaled / length.clamp_min(1e-30)


def concatenate_flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector of the entries of several tensors."""
    return torch.cat([tensor.flatten() for tensor in tensors])
