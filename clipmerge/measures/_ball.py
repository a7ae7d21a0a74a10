"""Perturbations of one layer: their ball, the first-order maximiser in it, and APGD inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Parameter

_MOMENTUM = 0.75
_SUCCESS_SHARE = 0.75


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
        self._origin = flat(parameters).detach().clone()
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
        return self.radius * self._ascent(gradient)

    def _ascent(self, gradient: Tensor) -> Tensor:
        """The unit direction in u along which a gradient rises fastest."""
        scaled = gradient * self._scale
        if self.norm == "linf":
            return scaled.sign()
        length: Tensor = vector_norm(scaled)
        return scaled / length.clamp_min(1e-30)

    def _project(self, point: Tensor) -> Tensor:
        if self.norm == "linf":
            return point.clamp(-self.radius, self.radius)
        length: Tensor = vector_norm(point)
        return point * (self.radius / length.clamp_min(1e-30)).clamp_max(1.0)

    def apgd(self, loss: Callable[[], Tensor], gradient: Tensor, base: float, steps: int) -> float:
        """The largest loss that auto-PGD finds in the ball from its centre, given the gradient and
        the loss there.

        Source:
            Croce and Hein 2020, arXiv:2003.01690, algorithm 1.
        """
        point = previous = torch.zeros_like(self._origin)
        best, best_loss, best_gradient = point, base, gradient
        step = 2 * self.radius
        losses = [base]
        checkpoints = _checkpoints(steps)
        last, last_step, last_best = 0, step, base
        for iteration in range(1, steps + 1):
            ahead = self._project(point + step * self._ascent(gradient))
            if iteration > 1:
                turn = _MOMENTUM * (ahead - point) + (1 - _MOMENTUM) * (point - previous)
                ahead = self._project(point + turn)
            previous, point = point, ahead
            self.place(point)
            with torch.set_grad_enabled(iteration < steps):
                value = loss()
            losses.append(float(value.detach()))
            if iteration < steps:  # the last point needs no gradient
                gradient = flat(torch.autograd.grad(value, self.parameters, materialize_grads=True))
            if losses[-1] > best_loss:
                best, best_loss, best_gradient = point, losses[-1], gradient
            if iteration in checkpoints:
                stalled = _stalled(losses[last:]) or (last_step == step and last_best == best_loss)
                last, last_step, last_best = iteration, step, best_loss
                if stalled:
                    step /= 2
                    point = previous = best
                    gradient = best_gradient
        return best_loss


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector of the entries of several tensors."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _stalled(losses: list[float]) -> bool:
    rises = sum(after > before for before, after in pairwise(losses))
    return rises < _SUCCESS_SHARE * (len(losses) - 1)


def _checkpoints(steps: int) -> set[int]:
    """Iterations after which the step size is reconsidered."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 6)) for share in shares[1:]}
