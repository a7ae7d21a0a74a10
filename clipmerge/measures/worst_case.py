"""Adaptive sharpness of every layer: the largest rise of the loss inside a ball, layer by layer."""

from __future__ import annotations

from typing import Literal

import torch

from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.measures._ball import LayerBall, concatenate_flat
from clipmerge.measures._statistics import by_layer, statistic
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Alpha, Positive

Norm = Literal["l2", "linf"]


def worst_case(
    objective: Objective,
    *,
    norm: Norm = "l2",
    rho: Positive = 0.5,
    adaptive: bool = True,
    scaled: bool = False,
    at: Alpha = 0.5,
) -> Measurements:
    """Maximise L(theta + delta_l) - L(theta) over ||delta_l / c||_p <= rho, for one layer l at a
    time.

    Computes the exact loss at the first-order maximiser. Each batch is maximised separately, and
    the mean over images is reported.

    Args:
        objective: Calibration loss; left at theta(at).
        norm: p of the ball.
        rho: Radius; the literature uses 0.5 to 4 for adaptive l2, 5e-4 to 4e-3 for adaptive linf.
        adaptive: Scale the ball elementwise by c = |theta|.
        scaled: Use rho * sqrt(n_l) for a layer of n_l entries, so that large layers have a larger
            ball.
        at: alpha of the point on the path where sharpness is measured.

    Returns:
        Statistic ``worst_case`` in nats.

    Source:
        Foret et al. 2021, arXiv:2010.01412; Kwon et al. 2021, arXiv:2102.11600; as a
        sharpness: Andriushchenko et al. 2023, arXiv:2302.07011.
    """
    path = objective.path
    objective.announce(gradient=1, forward=len(path.layers))
    path.set_alpha(at)
    rises_by_batch: dict[int, list[float]] = {}
    for batch, base in objective.gradients():
        rises = rises_by_batch[batch.number] = []
        for layer, names in path.layers.items():
            parameters = [path.parameters[name] for name in names]
            gradient = concatenate_flat(path.gradient(name) for name in names)
            radius = rho * len(gradient) ** 0.5 if scaled else rho
            ball = LayerBall(parameters, norm=norm, radius=radius, adaptive=adaptive)
            loss = objective.layer_loss(batch, layer)
            ball.place(ball.maximiser(gradient))
            with torch.no_grad():
                rises.append(float(loss()) - base)
            ball.restore()
        objective.count_work(FORWARD * len(path.layers) * len(batch))
    sharpness = statistic(
        objective,
        "worst_case",
        by_layer(objective, rises_by_batch),
        unit="nats",
        title="worst-case sharpness",
        about="largest rise of the loss found in a ball around this layer's weights.",
    )
    return Measurements(
        measure="worst-case", statistics=(sharpness,), batch_sizes=objective.batch_sizes
    )
