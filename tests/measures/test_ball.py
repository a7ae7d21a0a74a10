"""Perturbations of a layer on a quadratic loss, whose worst point can be computed."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.measures._ball import LayerBall, concatenate_flat

SIZE, SPLIT = 6, 4
Norm = Literal["l2", "linf"]


class Quadratic:
    """L(x) = x^T H x / 2 with H >= 0, x in two parameters of 4 and 2 entries, the last one zero."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(SIZE, SIZE))
        self.hessian = root @ root.T
        self.origin = rng.normal(size=SIZE)
        self.origin[-1] = 0.0
        entries = torch.tensor(self.origin, dtype=torch.float64)
        self.parameters = [
            Parameter(entries[:SPLIT].clone().view(2, 2)),
            Parameter(entries[SPLIT:].clone()),
        ]
        self._hessian = torch.tensor(self.hessian)

    def loss(self) -> Tensor:
        x = torch.cat([parameter.flatten() for parameter in self.parameters])
        return x @ self._hessian @ x / 2

    def gradient(self) -> Tensor:
        return concatenate_flat(torch.autograd.grad(self.loss(), self.parameters))

    def scale(self, adaptive: bool) -> np.ndarray:
        return np.abs(self.origin) if adaptive else np.ones(SIZE)


def ball_on(quadratic: Quadratic, norm: Norm, radius: float, *, adaptive: bool = True) -> LayerBall:
    return LayerBall(quadratic.parameters, norm=norm, radius=radius, adaptive=adaptive)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_no_direction_of_the_ball_has_a_larger_slope_than_the_maximiser(
    norm: Norm, adaptive: bool
) -> None:
    quadratic = Quadratic(2)
    scale = quadratic.scale(adaptive)
    slope = scale * (quadratic.hessian @ quadratic.origin)
    ball = ball_on(quadratic, norm, 0.7, adaptive=adaptive)
    found = ball.maximiser(quadratic.gradient()).numpy()
    order = 2 if norm == "l2" else np.inf
    # an entry that the adaptive ball holds at zero may have any u
    assert np.linalg.norm(found[scale > 0], order) == pytest.approx(0.7, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        other = rng.normal(size=SIZE)
        other *= 0.7 / np.linalg.norm(other, order)
        assert other @ slope <= found @ slope * (1 + 1e-9)


def test_a_layer_without_gradient_stays_where_it_is() -> None:
    parameters = [Parameter(torch.ones(3))]
    for norm in ("l2", "linf"):
        ball = LayerBall(parameters, norm=norm, radius=1.0, adaptive=True)  # type: ignore[arg-type]
        assert torch.equal(ball.maximiser(torch.zeros(3)), torch.zeros(3))
