"""Each layer's exact share of the loss barrier and of the loss drop along the straight path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from clipmerge.learning.objective import Objective
from clipmerge.planning.measurements import Check, LossPath, Measurements
from clipmerge.plugins import Count, Positive
from clipmerge.types import Json, Names, Tensors

# Largest number of nodes on each half of the path. If it is not enough, the error is numerical, and
# a note says so.
_MAX_NODES = 24
# Relative precision of a float32 loss: sums cannot be checked more closely.
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


def path_barrier(
    objective: Objective, *, nodes: Count = 3, tolerance: Positive = 0.01
) -> Measurements:
    """Divide the loss barrier and the loss drop of the path among the layers, from backward passes.

    Let s_l(alpha) = task_vector_l . grad_l L(theta(alpha)) be layer l's part of the slope of the
    loss. Then G_l is the integral of s_l over [0, 1], and sum_l G_l = L(1) - L(0), negative if
    fine-tuning lowers the loss. B_l is half of the integral over [0, 1/2] minus half of the
    integral over [1/2, 1], and sum_l B_l = L(1/2) - (L(0) + L(1)) / 2.

    Each half is integrated by Gauss-Radau quadrature with a node at the end of the path, so that
    the backward passes give the losses there, too. Both sums are checked against L(0), L(1/2) and
    L(1). If they are wrong by more than ``tolerance`` and more than float32 rounding, the number of
    nodes is doubled.

    Args:
        objective: Calibration loss. Its weights are left at theta_1.
        nodes: Quadrature points on each half of the path; each costs one gradient pass.
        tolerance: Accepted relative error of the sums.

    Returns:
        Statistics ``barrier`` (B_l) and ``loss_drop`` (G_l) in nats, the loss along the path, the
        checks, and the mean gradient along the path if the objective wants it.

    Raises:
        ClipmergeError: If a loss is not finite.

    Source:
        Ours: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) per layer, on the
        path of Wortsman et al. 2022, arXiv:2109.01903.
    """
    objective.announce(forward=1, gradient=2 * nodes)
    objective.path.set_alpha(0.5)
    middle, _ = objective.loss_and_accuracy(drawn=True)
    notes: Names = ()
    while True:
        shares, losses, mean_gradients = _integrate_slopes(objective, nodes)
        losses[0.5] = middle
        measured = {
            "barrier": middle - (losses[0.0] + losses[1.0]) / 2,
            "loss_drop": losses[1.0] - losses[0.0],
        }
        readings = [
            objective.statistic(name, shares[name], **reading)
            for name, reading in _READINGS.items()
        ]
        checks = {
            each.name: Check(sum_of_layers=sum(each.values.values()), measured=measured[each.name])
            for each in readings
        }
        rounding = _ROUNDING * max(losses[0.0], middle, losses[1.0])
        worst = 0.0
        for check in checks.values():
            if abs(check.sum_of_layers - check.measured) > rounding:
                worst = max(worst, check.relative_error)
        if worst <= tolerance or 2 * nodes > _MAX_NODES:
            break
        nodes *= 2
        objective.announce(gradient=2 * nodes)
        notes = (
            f"the loss bends along the path: {nodes} points on each half were needed for shares"
            " that add up",
        )
    if worst > tolerance:
        notes = (
            f"the layers' shares are off the measured total by {worst:.1%} even with {nodes} nodes"
            " on each half",
        )
    alphas, values = zip(*sorted(losses.items()), strict=True)
    return Measurements(
        measure="path-barrier",
        statistics=tuple(readings),
        batch_sizes=objective.batch_sizes,
        path=LossPath(alphas=alphas, losses=values),
        checks=checks,
        notes=notes,
        gradients=mean_gradients,
    )


def _integrate_slopes(
    objective: Objective, nodes: int
) -> tuple[dict[str, dict[int, list[float]]], dict[float, float], Tensors]:
    """Integrate the slopes along the path.

    Returns each statistic by batch and layer, the loss at each node, and the mean gradient by
    parameter, if the objective wants it.
    """
    path, layers = objective.path, len(objective.path.layers)
    shares = {
        name: {batch.number: np.zeros(layers) for batch in objective.batches} for name in _READINGS
    }
    changes = {name: path.delta(name).flatten() for name in path.names}
    sums: Tensors = {}
    if objective.wants_gradients:
        # in float64, so that masks rank the same entries for any number of processes
        wide = torch.float32 if path.device.type == "mps" else torch.float64
        sums = {name: torch.zeros_like(path.parameters[name], dtype=wide) for name in path.names}
    losses = {}
    for alpha, weight, sign in _nodes_on_both_halves(nodes):
        path.set_alpha(alpha)
        values = {}
        for batch, values[batch.number] in objective.gradients():
            slopes = weight * _slopes(objective, changes)
            shares["loss_drop"][batch.number] += slopes
            shares["barrier"][batch.number] += sign * slopes
            part = weight * len(batch) / sum(objective.batch_sizes)
            for name, total in sums.items():
                total.add_(path.gradient(name), alpha=part)
        losses[alpha] = objective.mean(objective.gather_by_batch(values))
    integrals = {
        name: {number: row.tolist() for number, row in rows.items()}
        for name, rows in shares.items()
    }
    means = {name: value.float() for name, value in objective.sum_over_processes(sums).items()}
    return integrals, losses, means


def _nodes_on_both_halves(nodes: int) -> Iterator[tuple[float, float, float]]:
    """Yield each node's alpha, its weight in the integral over the path, and its factor in the
    barrier. The last node is alpha 1, where `path_barrier` leaves the weights.
    """
    points = list(zip(*_radau_nodes_and_weights(nodes), strict=True))
    for point, weight in points:
        yield point / 2, weight / 2, 0.5
    for point, weight in reversed(points):
        yield 1 - point / 2, weight / 2, -0.5


def _slopes(objective: Objective, changes: Tensors) -> np.ndarray:
    """Compute the slope of the loss along each layer's task vector, (layers,), in nats."""
    path = objective.path
    slopes = [
        torch.stack([torch.dot(path.gradient(n).flatten(), changes[n]) for n in names]).sum()
        for names in path.layers.values()
    ]
    return torch.stack(slopes).cpu().double().numpy()  # Apple's devices lack float64


def _radau_nodes_and_weights(nodes: int) -> tuple[list[float], list[float]]:
    """Compute the points and weights of Gauss-Radau quadrature on [0, 1], with a point at 0. It is
    exact for polynomials up to degree 2 * nodes - 2.
    """
    legendre = np.polynomial.legendre
    *_, last, whole = np.eye(nodes + 1)  # coefficients of P_(n-1) and P_n
    roots = legendre.legroots(last + whole).real
    points = np.sort(roots)[1:]  # the first one is -1
    weights = (1 - points) / (nodes * legendre.legval(points, last)) ** 2
    inner = (points + 1) / 2
    return [0.0, *inner.tolist()], [1 / nodes**2, *(weights / 2).tolist()]
