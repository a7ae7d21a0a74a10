"""Interpolation instability of every layer: the barrier when this layer alone moves from zero-shot
to fine-tuned.
"""

from __future__ import annotations

from collections.abc import Collection

from clipmerge.measures import Measurements, Objective, by_layer, statistic, with_few_prompts
from clipmerge.plugins import Count


@with_few_prompts
def layer_instability(objective: Objective, *, points: Count = 3) -> Measurements:
    """Compute max over alpha of L_l(alpha) - (L_l(0) + L_l(1)) / 2, where layer l alone moves from
    fine-tuned.

    Costs 1 + L * (``points`` + 1) forward passes for L layers.

    Args:
        objective: Calibration loss; left at theta_1.
        points: Evenly spaced values of alpha between 0 and 1.

    Returns:
        Statistic ``instability`` in nats, the mean over images of each batch's own maximum.

    Source:
        Our reading of Abdollahpoorrostam 2024, arXiv:2410.16476, whose definition is not public;
        layer-wise barriers: Adilova et al. 2023, arXiv:2307.06966.
    """
    objective.announce(forward=1 + (points + 1) * len(objective.weights.layers))
    objective.weights.set_alpha(1.0)
    finetuned = objective.losses()
    found = [
        instabilities(objective, [layer], points, finetuned) for layer in objective.weights.layers
    ]
    values = {number: [each[number] for each in found] for number in finetuned}
    instability = statistic(
        objective,
        "instability",
        by_layer(objective, values),
        signed=True,
        unit="nats",
        title="instability",
        about=(
            "largest rise of the loss above the mean of its ends when this layer alone goes to"
            " fine-tuned."
        ),
    )
    return Measurements(
        measure="layer-instability",
        statistics=(instability,),
        batch_sizes=objective.data.batch_sizes,
    )


def instabilities(
    objective: Objective, layers: Collection[str], points: int, finetuned: dict[int, float]
) -> dict[int, float]:
    """Compute max over alpha of L(alpha) - (L(0) + L(1)) / 2, where some layers alone go from
    zero-shot to fine-tuned.

    The other layers are fine-tuned. It costs ``points`` + 1 forward passes.
    """
    tried = []
    for step in range(points + 1):
        objective.weights.set_alpha(step / (points + 1), layers)
        tried.append(objective.losses())
    objective.weights.set_alpha(1.0, layers)
    return {
        number: max(losses[number] for losses in tried[1:]) - (tried[0][number] + loss) / 2
        for number, loss in finetuned.items()
    }
