"""Trace of every layer's block of the loss Hessian, by Hutchinson's estimator."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipmerge.learning.objective import HESSIAN, Batch, Objective
from clipmerge.measures._statistics import (
    by_layer,
    generator_for,
    random_signs,
    sizes_of,
    statistic,
)
from clipmerge.models.classifier import Comparison
from clipmerge.planning.measurements import Measurements
from clipmerge.plugins import Alpha, Count
from clipmerge.types import Tensors


def hessian_trace(
    objective: Objective, *, probes: Count = 8, adaptive: bool = False, at: Alpha = 0.5
) -> Measurements:
    """Estimate tr(C_l H_ll C_l) for every layer l at once, C = diag |theta| when adaptive, else the
    identity.

    With v Rademacher on all parameters, (C v)_l . (H C v)_l is an unbiased estimate for every
    layer, so one Hessian-vector product per batch and probe serves all layers. Cross-layer terms
    add variance, so it needs more probes than one layer alone.

    Args:
        objective: Calibration loss; left at theta(at).
        probes: Number of random vectors; each costs about two gradient passes.
        adaptive: Weight by |theta|; rho^2 / 2 times the result is the average-case adaptive
            sharpness to second order.
        at: alpha of the point on the path where the trace is measured.

    Returns:
        Statistics ``hessian_trace`` and ``hessian_trace_mean`` (per parameter entry).

    Source:
        Hutchinson 1990; Yao et al. 2020, arXiv:1912.07145 (one trace per layer).
    """
    objective.announce(hessian=probes)
    objective.path.set_alpha(at)
    batches = objective.batches
    layers = objective.path.layers
    traces_by_batch = {batch.number: [0.0] * len(layers) for batch in batches}
    for probe in range(probes):
        vectors = _draw_signs(objective, probe)
        for batch in batches:
            products = partial(_products_of_pieces, objective, vectors, adaptive, batch)
            values = objective.micro_batcher.run(len(batch), products)
            for column, value in enumerate(values):
                traces_by_batch[batch.number][column] += value / probes
            objective.count_work(HESSIAN * len(batch))
    traces = by_layer(objective, traces_by_batch)
    sizes = sizes_of(objective)
    trace = statistic(
        objective,
        "hessian_trace",
        traces,
        signed=True,
        title="Hessian trace",
        about="trace of this layer's block of the Hessian of the loss.",
    )
    mean = statistic(
        objective,
        "hessian_trace_mean",
        {layer: [value / sizes[layer] for value in values] for layer, values in traces.items()},
        signed=True,
        title="mean Hessian diagonal",
        about="the trace divided by the number of the layer's entries.",
    )
    return Measurements(
        measure="hessian-trace", statistics=(trace, mean), batch_sizes=objective.batch_sizes
    )


def _draw_signs(objective: Objective, probe: int) -> Tensors:
    generator = generator_for(objective, probe)
    path = objective.path
    vectors: Tensors = {}
    for name in path.names:
        signs = random_signs(path.parameters[name].shape, generator)
        vectors[name] = signs.to(path.device)
    return vectors


def _products_of_pieces(
    objective: Objective, vectors: Tensors, adaptive: bool, batch: Batch, at_once: int
) -> list[float]:
    """`_quadratic_forms` of a batch, as means over pieces of it."""
    pieces = [batch] if objective.classifier.compares_images else batch.pieces(at_once)
    prompts, columns = objective.draw(batch)
    weighted = []
    for piece, own in zip(pieces, torch.split(columns, len(pieces[0])), strict=True):
        share = len(piece) / len(batch)
        forms = _quadratic_forms(objective, vectors, adaptive, piece, (prompts, own))
        weighted.append([share * value for value in forms])
    return [sum(column) for column in zip(*weighted, strict=True)]


def _quadratic_forms(
    objective: Objective, vectors: Tensors, adaptive: bool, batch: Batch, comparison: Comparison
) -> list[float]:
    """(C v)_l . (H C v)_l of one batch for every layer."""
    parameters = [objective.path.parameters[name] for name in vectors]
    scaled = [
        v * p.detach().abs() if adaptive else v
        for v, p in zip(vectors.values(), parameters, strict=True)
    ]
    # the fused attention kernels have no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        loss = objective.loss(batch, comparison)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        pairs = zip(gradients, scaled, strict=True)
        inner = torch.stack([(g * v).sum() for g, v in pairs if g.requires_grad]).sum()
        products = torch.autograd.grad(inner, parameters, materialize_grads=True)
    dots = {
        name: torch.dot(v.flatten(), h.flatten())
        for name, v, h in zip(vectors, scaled, products, strict=True)
    }
    return [
        float(torch.stack([dots[name] for name in names]).sum())
        for names in objective.path.layers.values()
    ]
