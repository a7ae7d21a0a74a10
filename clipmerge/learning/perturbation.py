"""Perturbations of one layer: their ball, the first-order maximiser in it, and APGD inside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

_MOMENTUM = 0.75
_SUCCESS_SHARE = 0.75


class LayerBall:
    """The perturbations delta = c * u of one layer with ||u||_p <= radius.

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
        self._origin = [parameter.detach().clone() for parameter in parameters]
        self._scale = [o.abs() if adaptive else torch.ones_like(o) for o in self._origin]

    @torch.no_grad()
    def place(self, point: list[Tensor]) -> None:
        """Move the layer to theta + c * u."""
        for parameter, origin, scale, u in zip(
            self.parameters, self._origin, self._scale, point, strict=True
        ):
            parameter.data.copy_(origin).addcmul_(scale, u)

    @torch.no_grad()
    def restore(self) -> None:
        """Move the layer back to theta."""
        for parameter, origin in zip(self.parameters, self._origin, strict=True):
            parameter.data.copy_(origin)

    def _ascent(self, gradient: list[Tensor]) -> list[Tensor]:
        """The unit direction in u along which a gradient rises fastest."""
        scaled = [g * scale for g, scale in zip(gradient, self._scale, strict=True)]
        if self.norm == "linf":
            return [value.sign() for value in scaled]
        length = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(value) for value in scaled])
        )
        return [value / length.clamp_min(1e-30) for value in scaled]

    def maximiser(self, gradient: list[Tensor]) -> list[Tensor]:
        """The u in the ball that maximises the loss to first order."""
        return [self.radius * direction for direction in self._ascent(gradient)]

    def _project(self, point: list[Tensor]) -> list[Tensor]:
        if self.norm == "linf":
            return [u.clamp(-self.radius, self.radius) for u in point]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(u) for u in point]))
        factor = (self.radius / length.clamp_min(1e-30)).clamp_max(1.0)
        return [u * factor for u in point]

    def apgd(
        self, loss: Callable[[], Tensor], gradient: list[Tensor], base: float, steps: int
    ) -> float:
        """The largest loss that auto-PGD finds in the ball from its centre, given the gradient and
        the loss there.

        Source:
            Croce and Hein 2020, arXiv:2003.01690, algorithm 1.
        """
        point = previous = [torch.zeros_like(origin) for origin in self._origin]
        best, best_loss, best_gradient = point, base, gradient
        step, losses = 2 * self.radius, [base]
        checkpoints = _checkpoints(steps)
        last, last_step, last_best = 0, step, base
        for iteration in range(1, steps + 1):
            direction = self._ascent(gradient)
            ahead = self._project([u + step * d for u, d in zip(point, direction, strict=True)])
            if iteration > 1:
                triples = zip(point, ahead, previous, strict=True)
                ahead = self._project(
                    [u + _MOMENTUM * (a - u) + (1 - _MOMENTUM) * (u - p) for u, a, p in triples]
                )
            previous, point = point, ahead
            self.place(point)
            with torch.set_grad_enabled(iteration < steps):
                value = loss()
            losses.append(float(value.detach()))
            if iteration < steps:  # the last point needs no gradient
                gradient = list(torch.autograd.grad(value, self.parameters, materialize_grads=True))
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


def _stalled(losses: list[float]) -> bool:
    rises = sum(after > before for before, after in pairwise(losses))
    return rises < _SUCCESS_SHARE * (len(losses) - 1)


def _checkpoints(steps: int) -> set[int]:
    """Iterations after which the step size is reconsidered."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 6)) for share in shares[1:]}
