"""Compare points with a curve of ID and OOD accuracy: the gain at equal ID accuracy, and its
interval.

The curve connects its points by straight lines, in order of alpha. Its height at an ID accuracy x
is the best mean OOD accuracy on the curve at x: the highest of all segments at x. Above the highest
ID accuracy of its points it is that of the most accurate point, so that a merge more accurate than
every alpha is compared with the most accurate alpha, which understates its gain. Below the lowest
ID accuracy it has no height. A point's gain at equal ID accuracy is its mean OOD accuracy minus
that height: its gain over the best alpha of WiSE-FT with the same ID accuracy, even if OOD labels
chose that alpha. The curve's own points have no gain. Accuracies that differ only by rounding count
as equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clipmerge.stats import MIN_DEFINED, gain_interval, mean_of_sources, paired_accuracy_interval
from clipmerge.types import Json

Floats = NDArray[np.float64]

RESAMPLES = 1000
# Means of several sources that are equal in exact arithmetic differ by about 1e-16; one image
# weighs far more.
_ROUNDING = 1e-12


#: Whether each image was recognised, or its share of recall: shape (points, images).
Correct = NDArray[np.bool_] | NDArray[np.float64]


def curve_height(curve_id: Floats, curve_ood: Floats, at: Floats) -> Floats:
    """Compute the best mean OOD accuracy of a curve (..., alphas) at ID accuracies (..., points);
    NaN below the curve's range.

    Example:
        >>> curve_height(np.array([0.2, 0.6]), np.array([0.5, 0.3]), np.array([0.4, 0.7, 0.1]))
        array([0.4, 0.3, nan])
    """
    xs = np.moveaxis(curve_id, -1, 0)[..., None]
    ys = np.moveaxis(curve_ood, -1, 0)[..., None]
    curve = list(zip(xs, ys, strict=True))
    shape = np.broadcast_shapes(xs.shape[1:], at.shape)
    best = np.full(shape, np.nan)
    for x, y in curve:
        # at a point of the curve its own accuracy, not an interpolated one
        tied = np.abs(at - x) <= _ROUNDING
        here = np.where(tied, y, np.nan)
        best = np.fmax(best, here)
    for (x_0, y_0), (x_1, y_1) in pairwise(curve):
        low = np.minimum(x_0, x_1) + _ROUNDING
        high = np.maximum(x_0, x_1) - _ROUNDING
        inside = (low < at) & (at < high)
        length = np.where(inside, x_1 - x_0, 1.0)
        share = (at - x_0) / length
        height = y_0 + share * (y_1 - y_0)
        here = np.where(inside, height, np.nan)
        best = np.fmax(best, here)
    top = xs.max(axis=0)
    at_top = xs >= top - _ROUNDING
    most_accurate = np.where(at_top, ys, -np.inf).max(axis=0)
    beyond = at > top + _ROUNDING
    return np.where(beyond, most_accurate, best)


def resampled_accuracy(
    correct: Sequence[Correct], seed: int, resamples: int = RESAMPLES
) -> list[Floats]:
    """Compute accuracies on images drawn with replacement: per source from (points, images) to
    (resamples, points).
    """
    accuracies = []
    for index, right in enumerate(correct):
        rng = np.random.default_rng([seed, index])
        points, images = right.shape
        columns = right.T.astype(np.float64)
        accuracy = np.empty((resamples, points))
        for draw in range(resamples):
            drawn = rng.integers(images, size=images)
            times = np.bincount(drawn, minlength=images)
            accuracy[draw] = times @ columns
        accuracies.append(accuracy / images)
    return accuracies


def compare_with_curve(
    id_correct: Sequence[Correct],
    ood_correct: Sequence[Correct],
    curve: Sequence[int],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Json]:
    """Compare every point with the curve, whose points have the indices ``curve`` in order of
    alpha.

    Each gets its mean accuracies and its gain, with their intervals, and a note that says why the
    gain or its interval is missing, or that no alpha is as accurate, under the names of the sweep's
    record.
    """
    sources = [*id_correct, *ood_correct]
    ids = len(id_correct)
    measured = [right.mean(axis=1) for right in sources]
    near, far = _mean_id_and_ood_accuracy(measured, ids)
    gains = _gains_over_curve(near, far, curve)
    drawn = resampled_accuracy(sources, seed, resamples)
    near_drawn, far_drawn = _mean_id_and_ood_accuracy(drawn, ids)
    gains_drawn = _gains_over_curve(near_drawn, far_drawn, curve)
    fewest = min(right.shape[1] for right in sources)
    least = _least_half(ood_correct)
    top = near[list(curve)].max()
    comparisons = []
    for point, gain in enumerate(gains.tolist()):
        at_point = [right[point] for right in sources]
        comparison: Json = {
            "id": float(near[point]),
            "id_interval": list(mean_of_sources(at_point[:ids])),
            "ood": float(far[point]),
            "ood_interval": list(mean_of_sources(at_point[ids:])),
            "gain": None,
            "gain_interval": None,
            "gain_note": "a point of the curve",
        }
        if point not in curve:
            here = gains_drawn[:, point]
            beyond = bool(near[point] > top + _ROUNDING)
            comparison["gain_note"] = _gain_note(gain, here, beyond=beyond)
            if not math.isnan(gain):
                interval = gain_interval(gain, here, fewest, least)
                comparison["gain"] = gain
                comparison["gain_interval"] = interval and list(interval)
        comparisons.append(comparison)
    return comparisons


def _mean_id_and_ood_accuracy(accuracies: Sequence[Floats], ids: int) -> tuple[Floats, Floats]:
    """Mean accuracies over the ID sources, which come first, and over the OOD sources."""
    near: Floats = np.mean(accuracies[:ids], axis=0)
    far: Floats = np.mean(accuracies[ids:], axis=0)
    return near, far


def _least_half(ood_correct: Sequence[Correct]) -> float:
    """Half the interval between points that recognise the same images, for which all resamples
    agree.
    """
    images = min(right.shape[1] for right in ood_correct)
    _, half = paired_accuracy_interval(np.zeros(images))
    return half / math.sqrt(len(ood_correct))


def _gains_over_curve(near: Floats, far: Floats, curve: Sequence[int]) -> Floats:
    """OOD accuracy above the curve's height, by point."""
    on_curve = list(curve)
    xs = near[..., on_curve]
    ys = far[..., on_curve]
    return far - curve_height(xs, ys, near)


def _gain_note(gain: float, drawn: Floats, *, beyond: bool) -> str:
    """Say why a point has no gain or no interval, or with which point it is compared."""
    if math.isnan(gain):
        return "less accurate on ID images than any alpha, so it has no gain"
    defined = ~np.isnan(drawn)
    share = float(defined.mean())
    if share < MIN_DEFINED:
        return f"the curve has its ID accuracy in {share:.0%} of the resamples only: no interval"
    if beyond:
        return "more accurate than any alpha, so compared with the most accurate one"
    return ""
