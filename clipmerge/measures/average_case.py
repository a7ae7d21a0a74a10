"""Average-case adaptive sharpness of every layer: the mean rise of the loss under Gaussian noise on
its weights.
"""

from __future__ import annotations

import torch

from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.measures._ball import LayerBall, concatenate_flat
from clipmerge.measures._statistics import by_layer, generator_for, statistic
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Alpha, Count, Positive


def average_case(
    objective: Objective,
    *,
    rho: Positive = 0.05,
    draws: Count = 4,
    adaptive: bool = True,
    at: Alpha = 0.5,
) -> Measurements:
    """Average L(theta + delta_l) - L(theta) over delta_l ~ N(0, rho^2 diag(c^2)), one layer at a
    time.

    Args:
        objective: Calibration loss; left at theta(at).
        rho: Standard deviation, relative to |theta| when adaptive.
        draws: Number of draws per layer, the same draws for every batch; each costs one forward
            pass per layer.
        adaptive: c = |theta| rather than 1.
        at: alpha of the point on the path where sharpness is measured.

    Returns:
        Statistic ``average_case`` in nats.

    Source:
        Andriushchenko et al. 2023, arXiv:2302.07011, section 2.
    """
    path = objective.path
    layers = path.layers
    objective.announce(forward=1 + draws * len(layers))
    path.set_alpha(at)
    rises: dict[int, list[float]] = {}
    for batch in objective.batches:
        rises[batch.number] = []
        with torch.no_grad():
            base = float(objective.loss(batch))
        objective.count_work(FORWARD * len(batch))
        for column, (layer, names) in enumerate(layers.items()):
            parameters = [path.parameters[name] for name in names]
            ball = LayerBall(parameters, norm="l2", radius=rho, adaptive=adaptive)
            loss = objective.layer_loss(batch, layer)
            total = 0.0
            for draw in range(column * draws, (column + 1) * draws):
                ball.place(rho * concatenate_flat(_draw_noise(objective, parameters, draw)))
                with torch.no_grad():
                    total += float(loss()) - base
                objective.count_work(FORWARD * len(batch))
            ball.restore()
            rises[batch.number].append(total / draws)
    sharpness = statistic(
        objective,
        "average_case",
        by_layer(objective, rises),
        signed=True,
        unit="nats",
        title="average-case sharpness",
        about="mean rise of the loss under Gaussian noise on this layer alone.",
    )
    return Measurements(
        measure="average-case", statistics=(sharpness,), batch_sizes=objective.batch_sizes
    )


def _draw_noise(
    objective: Objective, parameters: list[torch.nn.Parameter], draw: int
) -> list[torch.Tensor]:
    generator = generator_for(objective, draw)
    return [
        torch.randn(parameter.shape, generator=generator).to(objective.path.device)
        for parameter in parameters
    ]
