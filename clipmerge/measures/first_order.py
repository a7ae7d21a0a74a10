"""Adaptive sharpness of every layer to first order, from one gradient pass."""

from __future__ import annotations

from typing import Literal

import torch
from torch.linalg import vector_norm

from clipmerge.learning.objective import Objective
from clipmerge.measures._statistics import by_layer, sizes_of, statistic
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Alpha, Positive


def first_order(
    objective: Objective,
    *,
    norm: Literal["l2", "linf"] = "l2",
    rho: Positive = 0.5,
    adaptive: bool = True,
    at: Alpha = 0.5,
) -> Measurements:
    """Largest first-order rise of the loss when one layer moves by rho.

    For l2 the rise is rho * ||c * g||_2, for linf rho * ||c * g||_1, with g the layer's gradient
    per batch and c = |theta| (adaptive) or 1. One pass serves every layer.

    Args:
        objective: Calibration loss; left at theta(at).
        norm: Norm of the perturbation delta / c.
        rho: Radius; the literature uses 0.5 to 4 for adaptive l2, 5e-4 to 4e-3 for adaptive linf.
        adaptive: Scale the perturbation elementwise by |theta|.
        at: alpha of the point on the path where sharpness is measured.

    Returns:
        Statistics ``first_order`` (constant rho) and ``first_order_scaled`` (rho * sqrt(n_l) for a
        layer of n_l entries), in nats.

    Source:
        Foret et al. 2021, arXiv:2010.01412; adaptive: Kwon et al. 2021, arXiv:2102.11600;
        m-sharpness and radii: Andriushchenko et al. 2023, arXiv:2302.07011.
    """
    objective.announce(gradient=1)
    objective.path.set_alpha(at)
    rises_by_batch: dict[int, list[float]] = {}
    order = 2 if norm == "l2" else 1
    for batch, _ in objective.gradients():
        norms = []
        for names in objective.path.layers.values():
            parts = [_weighted_gradient(objective, name, adaptive) for name in names]
            norms.append(
                vector_norm(torch.stack([vector_norm(part, order) for part in parts]), order)
            )
        rises_by_batch[batch.number] = (rho * torch.stack(norms)).tolist()
    rises = by_layer(objective, rises_by_batch)
    roots = {layer: size**0.5 for layer, size in sizes_of(objective).items()}
    constant = statistic(
        objective,
        "first_order",
        rises,
        unit="nats",
        title="first-order sharpness",
        about="largest first-order rise of the loss when this layer alone moves by the radius rho.",
    )
    scaled = statistic(
        objective,
        "first_order_scaled",
        {layer: [value * roots[layer] for value in values] for layer, values in rises.items()},
        unit="nats",
        title="scaled first-order sharpness",
        about="the same with a radius of rho times the square root of the layer's size.",
    )
    return Measurements(
        measure="first-order", statistics=(constant, scaled), batch_sizes=objective.batch_sizes
    )


def _weighted_gradient(objective: Objective, name: str, adaptive: bool) -> torch.Tensor:
    gradient = objective.path.gradient(name)
    return gradient * objective.path.parameters[name].detach().abs() if adaptive else gradient
