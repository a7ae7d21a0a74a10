"""Accuracy of the averages tried by a greedy soup, from forward passes alone."""

from __future__ import annotations

from clipmerge.learning.objective import Objective
from clipmerge.measures.path_accuracy import try_mixture
from clipmerge.planning.measurements import Measurements

SEVERAL = True


def soup_accuracy(objective: Objective) -> Measurements:
    """Evaluate each fine-tuned checkpoint alone, and then the averages that a greedy soup tries.

    The checkpoints join the average one by one, the most accurate first. A checkpoint stays in the
    average if the accuracy does not fall. Costs 2 K - 1 forward passes for K checkpoints.

    Args:
        objective: Calibration loss. Its weights are left at the last average tried.

    Returns:
        All mixtures tried: first each checkpoint, in the given order, then the averages.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        The greedy recipe of model soups, Wortsman et al. 2022, arXiv:2203.05482.
    """
    count = len(objective.path.inputs.finetuned)
    objective.announce(forward=2 * count - 1)
    tried = [try_mixture(objective, _average_weights([which], count)) for which in range(count)]
    order = sorted(range(count), key=lambda which: -tried[which].accuracy)
    soup = [order[0]]
    best = tried[order[0]].accuracy
    for which in order[1:]:
        tried.append(try_mixture(objective, _average_weights([*soup, which], count)))
        if tried[-1].accuracy >= best:
            soup.append(which)
            best = tried[-1].accuracy
    return Measurements(
        measure="soup-accuracy", batch_sizes=objective.batch_sizes, mixtures=tuple(tried)
    )


def _average_weights(chosen: list[int], count: int) -> tuple[float, ...]:
    """Give the chosen ones of ``count`` checkpoints equal weights with sum 1, and the others 0."""
    weights = [0.0] * count
    for which in chosen:
        weights[which] = 1 / len(chosen)
    return tuple(weights)
