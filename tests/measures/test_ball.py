"""Perturbations of a layer on a quadratic loss, whose worst point can be computed."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.measures._ball import LayerBall, flat

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
        return flat(torch.autograd.grad(self.loss(), self.parameters))

    def rise(self, u: np.ndarray, scale: np.ndarray) -> float:
        moved = self.origin + scale * u
        return float(moved @ self.hessian @ moved - self.origin @ self.hessian @ self.origin) / 2

    def scale(self, adaptive: bool) -> np.ndarray:
        return np.abs(self.origin) if adaptive else np.ones(SIZE)

    def worst_on_sphere(self, radius: float, *, adaptive: bool) -> float:
        """Solve max g.u + u.A.u/2, ||u|| <= r: (k I - A) u = g with k above A's eigenvalues and
        ||u|| = r."""
        scale = self.scale(adaptive)
        values, vectors = np.linalg.eigh(scale[:, None] * self.hessian * scale)
        g = vectors.T @ (scale * (self.hessian @ self.origin))
        low, high = values[-1], values[-1] + np.linalg.norm(g) / radius
        for _ in range(200):
            middle = (low + high) / 2
            if np.linalg.norm(g / (middle - values)) > radius:
                low = middle
            else:
                high = middle
        return self.rise(vectors @ (g / (high - values)), scale)


def ball_on(quadratic: Quadratic, norm: Norm, radius: float, *, adaptive: bool = True) -> LayerBall:
    return LayerBall(quadratic.parameters, norm=norm, radius=radius, adaptive=adaptive)


def apgd(quadratic: Quadratic, ball: LayerBall, steps: int = 20) -> float:
    base = quadratic.loss().item()
    best = ball.apgd(quadratic.loss, quadratic.gradient(), base, steps)
    ball.restore()
    return best - base


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("radius", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_apgd_finds_the_worst_point_of_the_l2_ball(
    adaptive: bool, radius: float, seed: int
) -> None:
    quadratic = Quadratic(seed)
    found = apgd(quadratic, ball_on(quadratic, "l2", radius, adaptive=adaptive))
    assert found == pytest.approx(quadratic.worst_on_sphere(radius, adaptive=adaptive), rel=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_apgd_closes_in_on_a_peak_inside_the_ball(norm: Norm) -> None:
    """Its first steps, of twice the radius, jump over the peak: only smaller ones reach it."""
    parameter = Parameter(torch.zeros(3, dtype=torch.float64))
    peak = torch.tensor([0.31, -0.12, 0.23], dtype=torch.float64)
    losses: list[float] = []

    def loss() -> Tensor:
        value = 5 - ((parameter - peak) ** 2).sum()
        losses.append(value.item())
        return value

    base = loss()
    gradient = flat(torch.autograd.grad(base, [parameter]))
    ball = LayerBall([parameter], norm=norm, radius=1.0, adaptive=False)
    best = ball.apgd(loss, gradient, base.item(), steps=100)
    assert best == max(losses)
    assert losses[-1] < best
    assert best > 5 - 1e-4


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", np.inf)])
def test_apgd_never_leaves_the_ball(norm: Norm, order: float) -> None:
    quadratic = Quadratic(1)
    origin, scale = torch.tensor(quadratic.origin), torch.tensor(quadratic.scale(True))
    lengths: list[float] = []

    def loss() -> Tensor:
        moved = torch.cat([parameter.detach().flatten() for parameter in quadratic.parameters])
        assert moved[-1] == 0  # a zero has no room in an adaptive ball
        lengths.append(float(torch.linalg.vector_norm(((moved - origin) / scale)[:-1], order)))
        return quadratic.loss()

    ball_on(quadratic, norm, 0.5).apgd(
        loss, quadratic.gradient(), quadratic.loss().item(), steps=20
    )
    assert max(lengths) == pytest.approx(0.5, rel=1e-9)


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
