"""Straggler layers: outliers of a statistic that remain outliers when batches are resampled.

Each layer has a robust z-score: the statistic is regressed on the layers' size, kind, tower and
depth, and a layer's residual is divided by a robust standard deviation of all residuals.

A layer is a *straggler* under two conditions. Its z-score is above ``threshold``. It is also more
than ``mirror`` times as far above zero as the lowest z-score is below zero: ordinary scatter is on
both sides. Both conditions must hold on all batches together, and in at least a share of
``stability`` of the bootstrap resamples of the calibration batches.

Inspired by Abdollahpoorrostam 2024 (arXiv:2410.16476), whose own definition is not public.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmerge.errors import UsageError, counted, list_choices, shorten
from clipmerge.layers import block_of, may_precede_blocks
from clipmerge.planning.measurements import Measurements
from clipmerge.types import Names

Array = NDArray[np.float64]

# With fewer layers than this, a robust standard deviation is meaningless.
_FEWEST_LAYERS = 8
# 0.6745 is the third quartile of the standard normal: MAD / 0.6745 estimates its standard
# deviation.
_MAD_TO_Z = 0.6745
_HUBER = 1.345
# Minimum number of layers per covariate. With fewer, the covariates would explain outliers away.
_LAYERS_A_COLUMN = 3
# Lower bound of an unsigned statistic, as a share of its median. Its logarithm is taken, and it may
# be zero in a resample.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Stragglers:
    """The stragglers in network order, the scores of every layer, and a sentence for the report."""

    names: Names
    # {"z": robust z-score, "stability": share of resamples in which the layer is a straggler}
    scores: dict[str, dict[str, float]]
    found: str


def find_stragglers(
    measurements: Measurements,
    sizes: dict[str, int],
    *,
    statistic: str = "barrier",
    threshold: float = 3.5,
    mirror: float = 2.5,
    stability: float = 0.9,
    bootstraps: int = 200,
    seed: int = 0,
) -> Stragglers:
    """Find the straggler layers, as the module defines them.

    Source:
        Modified z-score: Iglewicz and Hoaglin 1993; the covariates are removed by Huber regression.
    """
    known = {one.name: one for one in measurements.statistics if one.batches}
    if statistic not in known:
        raise UsageError(
            f"statistic '{statistic}' is not measured by"
            f" {measurements.measure}{list_choices('statistics', statistic, sorted(known))}"
        )
    measured = known[statistic]
    # the logarithm needs positive values; a layer with zero has no effect, so it is no straggler
    layers = [
        layer
        for layer, mean in measured.values.items()
        if "." in layer and (measured.signed or mean > 0)
    ]
    if len(layers) < _FEWEST_LAYERS:
        found = f"no layer is called a straggler: {len(layers)} layers are too few to tell outliers"
        return Stragglers((), {}, found)
    values = np.array([measured.batches[layer] for layer in layers])
    design = _design_matrix(layers, sizes)

    def z_scores(weights: Array) -> Array:
        """Compute the layers' z-scores from batches with these weights."""
        means = values @ (weights / weights.sum())
        return _robust_z_scores(means, design, signed=measured.signed)

    def limit_of(z: Array) -> float:
        """Compute the z-score that a straggler exceeds. The lowest one shows how widely ordinary
        layers scatter.
        """
        lowest = float(z.min())
        return max(threshold, -mirror * lowest)

    batch_sizes = np.array(measurements.batch_sizes, dtype=float)
    count = len(batch_sizes)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=bootstraps)
    resampled = [z_scores(drawn * batch_sizes) for drawn in draws]
    share = np.mean([z > limit_of(z) for z in resampled], axis=0)
    z = z_scores(batch_sizes)
    limit = limit_of(z)
    scores = {}
    for at, layer in enumerate(layers):
        scores[layer] = {"z": float(z[at]), "stability": float(share[at])}
    is_straggler = (z > limit) & (share >= stability)
    names = tuple(layers[at] for at in np.flatnonzero(is_straggler))
    if names:
        counted_names = counted(len(names), "straggler layer", "straggler layers")
        found = f"{counted_names} found by {statistic}: {shorten(names)}"
    else:
        top = int(z.argmax())
        found = (
            f"no straggler layers found: {layers[top]} stands out most in {statistic}, with z"
            f" {z[top]:.1f} in {share[top]:.0%} of the resamples; a straggler exceeds {limit:.1f}"
            f" in {stability:.0%}"
        )
    return Stragglers(names, scores, found)


def _design_matrix(layers: list[str], sizes: dict[str, int]) -> Array:
    """Make the covariates that explain the statistic of ordinary layers, one row per layer: size,
    depth, kind and tower.
    """
    deepest: dict[str, int] = {}
    blocks = [block for layer in layers if (block := block_of(layer))]
    for tower, number, _ in blocks:
        deepest[tower] = max(deepest.get(tower, 0), number)
    rows = []
    for layer in layers:
        tower, _, _ = layer.partition(".")
        half = "edge"
        depth = float(not may_precede_blocks(layer))
        place = block_of(layer)
        if place:
            _, number, half = place
            depth = number / max(deepest[tower], 1)
        size = np.log(sizes[layer])
        rows.append([1.0, size, depth, half == "mlp", half == "edge", tower == "text"])
    design = np.array(rows, dtype=float)
    spread = np.ptp(design, axis=0)
    useful = [0, *np.flatnonzero(spread)]  # the first column is constant
    most = max(1, len(layers) // _LAYERS_A_COLUMN)
    return design[:, useful[:most]]


def _robust_z_scores(values: Array, design: Array, *, signed: bool) -> Array:
    """Compute the robust z-score of each layer's residual; zero if residuals have no spread."""
    y = values
    if not signed:
        floor = _FLOOR * np.median(values)
        positive = np.maximum(values, floor)
        y = np.log(positive)
    residual = _huber_residuals(y, design)
    centred = residual - np.median(residual)
    mad = np.median(np.abs(centred))
    largest = np.abs(y).max()
    if not mad > 1e-9 * largest:
        return np.zeros_like(y)
    # the fit has removed a part of the residuals' spread
    count, columns = design.shape
    shrunk = np.sqrt(1 - columns / count)
    return np.asarray(_MAD_TO_Z * shrunk * centred / mad)


def _huber_residuals(y: Array, design: Array) -> Array:
    """Compute the residuals of a regression with iterated Huber weights, robust to outliers."""
    weights = np.ones_like(y)
    residual = y
    for _ in range(30):
        root = np.sqrt(weights)
        scaled = design * root[:, None]
        coefficients, *_ = np.linalg.lstsq(scaled, y * root, rcond=None)
        residual = y - design @ coefficients
        scale = np.median(np.abs(residual)) / _MAD_TO_Z
        if scale == 0:
            break
        before = weights
        size = np.maximum(np.abs(residual), 1e-300)
        weights = np.minimum(1.0, _HUBER * scale / size)
        moved = np.abs(weights - before)
        if moved.max() < 1e-6:
            break
    return residual
