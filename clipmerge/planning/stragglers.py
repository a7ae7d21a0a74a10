"""Straggler layers: robust outliers of a layer statistic that stay outliers over calibration
batches.

The definition: a layer is a *straggler* if its statistic, after regression on its size, kind, tower
and depth, is more than ``threshold`` robust standard deviations above the other layers', and more
than ``mirror`` times as far above them as any layer is below (because if layers scatter widely by
nature, they do so on both sides). Both must hold on all batches and in at least a ``stability``
share of bootstrap resamples of the calibration batches. Inspired by Abdollahpoorrostam 2024
(arXiv:2410.16476), whose own definition is not public.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmerge.errors import RecipeError, did_you_mean, shorten
from clipmerge.layers import block_of, may_precede_blocks
from clipmerge.planning.measurements import Measurements
from clipmerge.types import Names

Array = NDArray[np.float64]

# A robust scale of fewer layers than this is meaningless.
_FEWEST_LAYERS = 8
# 0.6745 is the third quartile of the standard normal: MAD / 0.6745 estimates its standard
# deviation.
_MAD_TO_Z = 0.6745
_HUBER = 1.345
# Minimum number of layers per covariate; with fewer, the covariates explain an outlier away.
_LAYERS_A_COLUMN = 3
# A positive statistic is raised to this share of the median, because it may be zero in a resample.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Stragglers:
    """The stragglers, in network order, every layer's scores, and what was found in a sentence."""

    names: Names
    # {"z": robust z-score, "stability": share of bootstraps that flag it}
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
    """Find the layers whose statistic stands out.

    Source:
        Modified z-score: Iglewicz and Hoaglin 1993; the covariates are removed by Huber regression.
    """
    known = {
        candidate.name: candidate for candidate in measurements.statistics if candidate.batches
    }
    if statistic not in known:
        raise RecipeError(
            f"statistic '{statistic}' is not measured by {measurements.measure} "
            f"({', '.join(sorted(known)) or 'none'}).{did_you_mean(statistic, known)}"
        )
    signed = known[statistic].signed
    means = {layer: value for layer, value in known[statistic].values.items() if "." in layer}
    # a layer that does not change the loss at all has no logarithm and is not a straggler
    layers = [layer for layer, mean in means.items() if signed or mean > 0]
    if len(layers) < _FEWEST_LAYERS:
        found = (
            f"no layer is called a straggler: {len(layers)} layers to compare, too few to tell"
            " outliers"
        )
        return Stragglers((), {}, found)
    values = np.array([known[statistic].batches[layer] for layer in layers])
    weights = np.array(measurements.batch_sizes, dtype=float)
    design = _design_matrix(layers, sizes)
    z = _scores(values @ (weights / weights.sum()), design, signed=signed)
    rng = np.random.default_rng(seed)
    draws = (
        rng.multinomial(len(weights), np.full(len(weights), 1 / len(weights)), size=bootstraps)
        * weights
    )
    flagged = np.array(
        [
            _exceeds_limit(
                _scores(values @ (w / w.sum()), design, signed=signed), threshold, mirror
            )
            for w in draws
        ]
    )
    share = flagged.mean(axis=0)
    scores = {
        layer: {"z": float(z[i]), "stability": float(share[i])} for i, layer in enumerate(layers)
    }
    stands_out = _exceeds_limit(z, threshold, mirror)
    names = tuple(
        layer for i, layer in enumerate(layers) if stands_out[i] and share[i] >= stability
    )
    limit = _score_cutoff(z, threshold, mirror)
    if names:
        layer_or_layers = "straggler layer" if len(names) == 1 else "straggler layers"
        found = f"{len(names)} {layer_or_layers} found by {statistic}: {shorten(names)}"
        return Stragglers(names, scores, found)
    top = max(scores, key=lambda layer: scores[layer]["z"])
    z_of_top, share_of_top = scores[top]["z"], scores[top]["stability"]
    if z_of_top > limit:
        why = (
            f"{top} stands out in {statistic} (z {z_of_top:.1f}), but only in {share_of_top:.0%} of"
            f" the resamples, below {stability:.0%}"
        )
    else:
        origin = (
            "the threshold"
            if limit == threshold
            else f"{mirror:g} times as far as the lowest layer (z {z.min():.1f})"
        )
        why = (
            f"{top} stands out most in {statistic}, with z {z_of_top:.1f}, and a straggler exceeds"
            f" {limit:.1f}, {origin}"
        )
    return Stragglers(names, scores, f"no straggler layers found: {why}")


def _score_cutoff(z: Array, threshold: float, mirror: float) -> float:
    """Score that a straggler must exceed: the lower side shows how widely ordinary layers
    scatter.
    """
    return float(max(threshold, -mirror * z.min()))


def _exceeds_limit(z: Array, threshold: float, mirror: float) -> NDArray[np.bool_]:
    return np.asarray(z > _score_cutoff(z, threshold, mirror))


def _design_matrix(layers: list[str], sizes: dict[str, int]) -> Array:
    """Covariates that explain a statistic in ordinary layers: size, depth, kind, tower; one row per
    layer.
    """
    blocks = {layer: block_of(layer) for layer in layers}
    deepest: dict[str, int] = {}
    for tower, number, _ in filter(None, blocks.values()):
        deepest[tower] = max(deepest.get(tower, 0), number)
    rows = []
    for layer in layers:
        tower = layer.partition(".")[0]
        block = blocks[layer]
        depth = block[1] / max(deepest[tower], 1) if block else float(not may_precede_blocks(layer))
        half = block[2] if block else "edge"
        rows.append(
            [1.0, np.log(sizes[layer]), depth, half == "mlp", half == "edge", tower == "text"]
        )
    design = np.array(rows, dtype=float)
    useful = [0, *(column for column in range(1, design.shape[1]) if np.ptp(design[:, column]) > 0)]
    return design[:, useful[: max(1, len(layers) // _LAYERS_A_COLUMN)]]


def _scores(values: Array, design: Array, *, signed: bool) -> Array:
    """Robust z-score of each layer's residual; all zero if the residuals have no spread."""
    y = values if signed else np.log(np.maximum(values, _FLOOR * np.median(values)))
    residual = _huber_residuals(y, design)
    centred = residual - np.median(residual)
    mad = np.median(np.abs(centred))
    if not mad > 1e-9 * np.abs(y).max():
        return np.zeros_like(y)
    # a fit removes a part of the spread
    shrunk = np.sqrt(1 - design.shape[1] / len(y))
    return np.asarray(_MAD_TO_Z * shrunk * centred / mad)


def _huber_residuals(y: Array, design: Array) -> Array:
    """Residuals of a regression that is robust to single outliers: iterated Huber weights."""
    weights = np.ones_like(y)
    residual = y
    for _ in range(30):
        root = np.sqrt(weights)
        coefficients = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        residual = y - design @ coefficients
        scale = np.median(np.abs(residual)) / _MAD_TO_Z
        if scale == 0:
            break
        before = weights
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(residual), 1e-300))
        if np.abs(weights - before).max() < 1e-6:
            break
    return residual
