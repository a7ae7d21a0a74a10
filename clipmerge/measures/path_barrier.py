"""Each layer's exact share of the loss barrier and of the loss drop along the straight path."""

from __future__ import annotations

import numpy as np

from clipmerge.errors import MeasureError
from clipmerge.finding import Finding
from clipmerge.learning.objective import FORWARD, Objective
from clipmerge.learning.slopes import Slopes
from clipmerge.measures._statistics import statistic, with_few_prompts
from clipmerge.planning.measurements import Check, LossPath, Measurements
from clipmerge.plugins import Count, Positive
from clipmerge.types import Json

# A path along which the loss bends sharply needs more nodes; beyond this number the problem is
# numerical, and is reported.
_MAX_NODES = 24
# Relative precision of a float32 loss: totals as small as this cannot be checked.
_ROUNDING = 3e-6
_READINGS: dict[str, Json] = {
    "barrier": {
        "signed": True,
        "unit": "nats",
        "title": "barrier share",
        "about": (
            "the layer's part of the barrier, the loss at the midpoint minus the endpoints'"
            " average. Positive: the layer raises the loss at the midpoint above that average."
        ),
    },
    "loss_drop": {
        "signed": True,
        "unit": "nats",
        "title": "loss-drop share",
        "about": (
            "the layer's part of the change in loss from zero-shot to fine-tuned. "
            "Negative: the layer lowers the loss."
        ),
    },
}


@with_few_prompts
def path_barrier(
    objective: Objective,
    *,
    nodes: Count = 3,
    tolerance: Positive = 0.01,
    exact: bool = False,
    gradients: bool | None = None,
) -> Measurements:
    """Attribute the path's barrier and loss drop to layers, from backward passes.

    With s_l(alpha) = task_vector_l . grad_l L(theta(alpha)), the slope of the loss that layer l
    contributes: G_l = integral of s_l over [0, 1], and sum_l G_l = L(1) - L(0), negative when
    fine-tuning lowers the loss; B_l = half of (integral over [0, 1/2] - integral over [1/2, 1]),
    and sum_l B_l = L(1/2) - (L(0) + L(1)) / 2. Gauss-Radau quadrature on each half, with a node at
    either end of the path, so that the backward passes also give the losses there. Both sums are
    checked against L(0), L(1/2) and L(1); if they are wrong by more than ``tolerance`` and by more
    than float32 rounding, the number of nodes is doubled.

    Args:
        objective: Calibration loss; left at theta_1.
        nodes: Quadrature points on each half of the path; each costs one gradient pass.
        tolerance: Accepted relative error of the sums.
        exact: Whether the text layers' values of each batch come from all prompts, whatever they
            cost; see `clipmerge.learning.slopes`. All other values, and all means over batches,
            always do.
        gradients: Whether to keep the mean gradient along the path, for masks that rank entries by
            it; ``None`` if the recipe's method asks for one.

    Returns:
        Statistics ``barrier`` (B_l) and ``loss_drop`` (G_l) in nats, the loss along the path, the
        checks, and the mean gradient along the path if it is wanted.

    Raises:
        MeasureError: If a loss is not finite.

    Source:
        Ours: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) per layer, on the
        path of Wortsman et al. 2022, arXiv:2109.01903.
    """
    wanted = objective.wants_gradients if gradients is None else gradients
    slopes = Slopes(objective, exact=exact, gradients=wanted)
    middle_work = FORWARD * sum(len(batch) for batch in objective.data.batches)
    objective.work.announce(middle_work + 2 * nodes * slopes.work)
    objective.weights.set_alpha(0.5)
    middle = _require_finite(objective.data.mean(objective.data.by_batch(objective.losses())), 0.5)
    notes: tuple[Finding, ...] = ()
    while True:
        shares, losses = _integrate_slopes(objective, slopes, nodes)
        losses[0.5] = middle
        measured = {
            "barrier": middle - (losses[0.0] + losses[1.0]) / 2,
            "loss_drop": losses[1.0] - losses[0.0],
        }
        sums = {
            name: sum(map(objective.data.mean, layers.values())) for name, layers in shares.items()
        }
        checks = {name: Check(sum_of_layers=sums[name], measured=measured[name]) for name in sums}
        rounding = _ROUNDING * max(losses[0.0], middle, losses[1.0])
        wrong = [
            check
            for check in checks.values()
            if abs(check.sum_of_layers - check.measured) > rounding
        ]
        worst = max((check.relative_error for check in wrong), default=0.0)
        if worst <= tolerance or 2 * nodes > _MAX_NODES:
            break
        nodes *= 2
        slopes = Slopes(objective, exact=exact, gradients=wanted)
        objective.work.announce(2 * nodes * slopes.work)
        notes = (Finding.of("bent-path", nodes=nodes),)
    if worst > tolerance:
        notes = (Finding.of("incomplete-shares", error=worst, nodes=nodes),)
    count = objective.criterion.prompts.count
    if 0 < slopes.drawn < count:
        notes += (Finding.of("estimated-text-layers", drawn=slopes.drawn, prompts=count),)
    path = sorted(losses.items())
    return Measurements(
        measure="path-barrier",
        statistics=tuple(
            statistic(objective, name, shares[name], **_READINGS[name]) for name in _READINGS
        ),
        batch_sizes=objective.data.batch_sizes,
        path=LossPath(alphas=tuple(a for a, _ in path), losses=tuple(loss for _, loss in path)),
        checks=checks,
        notes=notes,
        gradients={name: value.float() for name, value in slopes.gradients.items()},
    )


def _require_finite(loss: float, alpha: float) -> float:
    if not np.isfinite(loss):
        raise MeasureError(
            f"the calibration loss at alpha {alpha:g} is {loss}; check that the checkpoints work"
        )
    return loss


def _integrate_slopes(
    objective: Objective, slopes: Slopes, nodes: int
) -> tuple[dict[str, dict[str, list[float]]], dict[float, float]]:
    """Integrate the slopes."""
    points, weights = _radau(nodes)
    shares = {
        name: np.zeros((len(objective.data.batch_sizes), len(objective.weights.layers)))
        for name in _READINGS
    }
    losses = {}
    # from both ends of the path towards its middle; theta_1 last, because the objective is left
    # there
    halves = [(point / 2, weight / 2, 0.5) for point, weight in zip(points, weights, strict=True)]
    halves += [
        (1 - point / 2, weight / 2, -0.5)
        for point, weight in zip(points[::-1], weights[::-1], strict=True)
    ]
    for alpha, share, sign in halves:
        point, loss = slopes.at(alpha, share)
        losses[alpha] = _require_finite(loss, alpha)
        shares["loss_drop"] += share * point
        shares["barrier"] += share * point * sign
    integrals = {
        name: {
            layer: values[:, column].tolist()
            for column, layer in enumerate(objective.weights.layers)
        }
        for name, values in shares.items()
    }
    return integrals, losses


def _radau(nodes: int) -> tuple[list[float], list[float]]:
    """Points and weights over [0, 1] with a node at 0: exact for polynomials of degree 2 nodes -
    2.
    """
    legendre = np.polynomial.legendre
    last = np.eye(nodes + 1)[nodes - 1]  # coefficients of P_(n-1)
    points = np.sort(legendre.legroots(last + np.eye(nodes + 1)[nodes]).real)[1:]
    weights = (1 - points) / (nodes * legendre.legval(points, last)) ** 2
    return [0.0, *((points + 1) / 2).tolist()], [1 / nodes**2, *(weights / 2).tolist()]
