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

import numpy as np
from numpy.typing import NDArray

from clipmerge.stats import (
    MIN_DEFINED,
    gain_interval,
    mean_of_sources,
    paired_accuracy_interval,
)
from clipmerge.types import Json

Floats = NDArray[np.float64]

RESAMPLES = 1000
# Means of several sources that are equal in exact arithmetic differ by about 1e-16; one image
# weighs far more.
_ROUNDING = 1e-12


#: Whether each image was recognised, or its share of recall: shape (points, images).
Correct = NDArray[np.bool_] | NDArray[np.float64]


def curve_height(curve_id: Floats, curve_ood: Floats, at: Floats) -> Floats:
    """Best mean OOD accuracy of a curve (..., alphas) at given ID accuracies (..., points); NaN
    below its range.

    Example:
        >>> curve_height(np.array([0.2, 0.6]), np.array([0.5, 0.3]), np.array([0.4, 0.7, 0.1]))
        array([0.4, 0.3, nan])
    """
    best = np.full(at.shape, -np.inf)
    for index in range(curve_id.shape[-1]):
        # at a point of the curve its own accuracy, not an interpolated one
        tied = np.abs(at - curve_id[..., index, None]) <= _ROUNDING
        best = np.where(tied, np.maximum(best, curve_ood[..., index, None]), best)
    for start in range(curve_id.shape[-1] - 1):
        x_0, x_1 = curve_id[..., start, None], curve_id[..., start + 1, None]
        y_0, y_1 = curve_ood[..., start, None], curve_ood[..., start + 1, None]
        between = (np.minimum(x_0, x_1) + _ROUNDING < at) & (at < np.maximum(x_0, x_1) - _ROUNDING)
        share = (at - x_0) / np.where(between, x_1 - x_0, 1.0)
        best = np.where(between, np.maximum(best, (1 - share) * y_0 + share * y_1), best)
    top = curve_id.max(axis=-1, keepdims=True)
    most_accurate = np.where(curve_id >= top - _ROUNDING, curve_ood, -np.inf).max(
        axis=-1, keepdims=True
    )
    best = np.where(at > top + _ROUNDING, most_accurate, best)
    return np.where(np.isinf(best), np.nan, best)


def resampled_accuracy(
    correct: Sequence[Correct], seed: int, resamples: int = RESAMPLES
) -> list[Floats]:
    """Accuracies over images drawn with replacement: (resamples, points) per source, each from
    (points, images).
    """
    accuracies = []
    for index, right in enumerate(correct):
        rng = np.random.default_rng([seed, index])
        images = right.shape[1]
        columns = right.T.astype(np.float64)
        accuracy = np.empty((resamples, right.shape[0]))
        for draw in range(resamples):
            times = np.bincount(rng.integers(images, size=images), minlength=images)
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
    on_curve = list(curve)
    id_accuracy, ood_accuracy = (
        np.mean([right.mean(axis=1)[None] for right in sources], axis=0)
        for sources in (id_correct, ood_correct)
    )
    drawn = resampled_accuracy([*id_correct, *ood_correct], seed, resamples)
    id_drawn, ood_drawn = (
        np.mean(drawn[: len(id_correct)], axis=0),
        np.mean(drawn[len(id_correct) :], axis=0),
    )
    gain = ood_accuracy - curve_height(
        id_accuracy[:, on_curve], ood_accuracy[:, on_curve], id_accuracy
    )
    gain_drawn = ood_drawn - curve_height(id_drawn[:, on_curve], ood_drawn[:, on_curve], id_drawn)
    beyond = id_accuracy[0] > id_accuracy[0, on_curve].max() + _ROUNDING
    fewest = min(right.shape[1] for right in (*id_correct, *ood_correct))
    # half the interval between points that recognise the same images, among which resamples know no
    # difference
    same = np.zeros(min(right.shape[1] for right in ood_correct))
    least = paired_accuracy_interval(same)[1] / math.sqrt(len(ood_correct))
    comparisons = []
    for point in range(id_accuracy.shape[1]):
        value = float(gain[0, point])
        reached = not np.isnan(value) and point not in on_curve
        note = (
            "a point of the curve"
            if point in on_curve
            else _gain_note(value, gain_drawn[:, point], beyond=bool(beyond[point]))
        )
        spread = gain_interval(value, gain_drawn[:, point], fewest, least) if reached else None
        comparisons.append(
            {
                "id": float(id_accuracy[0, point]),
                "id_interval": list(mean_of_sources([right[point] for right in id_correct])),
                "ood": float(ood_accuracy[0, point]),
                "ood_interval": list(mean_of_sources([right[point] for right in ood_correct])),
                "gain": value if reached else None,
                "gain_interval": spread and list(spread),
                "gain_note": note,
            }
        )
    return comparisons


def _gain_note(gain: float, drawn: Floats, *, beyond: bool) -> str:
    """Why a point off the curve has no gain or no interval, or what its gain is compared with."""
    if np.isnan(gain):
        return "less accurate on ID images than any alpha, so it has no gain"
    share = float((~np.isnan(drawn)).mean())
    if share < MIN_DEFINED:
        return f"the curve has its ID accuracy in {share:.0%} of the resamples only: no interval"
    return "more accurate than any alpha, so compared with the most accurate one" if beyond else ""
