"""The gain of a merge: how far it lies above the curve of plain interpolation.

Imagine a plot with accuracy on the target from left to right, and accuracy elsewhere (under a
shift, or on another task) from bottom to top. Each alpha of plain interpolation is a point, and the
curve joins these points by straight lines, in order of alpha.

The *height* of the curve at an accuracy on the target is the best accuracy elsewhere that the curve
reaches with this accuracy on the target or a higher one. If no point of the curve is as accurate on
the target, the height is that of its most accurate point.

The *gain* of a merge is its accuracy elsewhere minus the height at its accuracy on the target. So a
merge with a positive gain is better elsewhere than every alpha that is at least as accurate on the
target, even than one that labels from elsewhere chose. Accuracies that differ only by rounding
count as equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.planning.record import Estimate, Question
from clipmerge.stats import gain_interval, mean_of_sources, paired_accuracy_interval

Floats = NDArray[np.float64]

RESAMPLES = 1000
# Means that are equal in exact arithmetic may differ by 1e-16. One image changes a mean far more.
_ROUNDING = 1e-12


#: Whether each image was recognised, or its share of recall: shape (points, images).
Correct = NDArray[np.bool_] | NDArray[np.float64]


def question_of(
    source: LabelledImages | CaptionedImages,
    targets: Sequence[LabelledImages | CaptionedImages],
) -> Question:
    """Return ``shift`` if a source's classes are all among the target's, or if both have captions;
    else ``task``.
    """
    names, *of_targets = (_class_names(images) for images in (source, *targets))
    return "shift" if names <= set().union(*of_targets) else "task"


def _class_names(images: LabelledImages | CaptionedImages) -> set[str]:
    if isinstance(images, CaptionedImages):
        return {"any caption"}
    return {" ".join(name.replace("_", " ").casefold().split()) for name in images.class_names}


def add_tenths(alphas: Sequence[float]) -> list[float]:
    """Add the tenths that lie between the first and the last alpha, so that gains hardly depend on
    the user's alphas.

    Example:
        >>> add_tenths([0.75, 1])
        [0.75, 0.8, 0.9, 1]
    """
    tenths = (step / 10 for step in range(11))
    return sorted({*alphas, *(tenth for tenth in tenths if alphas[0] < tenth < alphas[-1])})


def curve_height(curve_target: Floats, curve_other: Floats, at: Floats) -> Floats:
    """Compute the height, as the module defines it, of curves, (..., alphas), at accuracies on the
    target, (..., points).

    Example:
        >>> target, other = np.array([0.2, 0.6, 0.8]), np.array([0.7, 0.8, 0.5])
        >>> curve_height(target, other, np.array([0.1, 0.7, 0.9]))
        array([0.8 , 0.65, 0.5 ])
    """
    x, y = curve_target[..., None, :], curve_other[..., None, :]
    wanted = np.minimum(at, x.max(axis=-1))[..., None] - _ROUNDING
    at_points = np.where(x >= wanted, y, -np.inf)
    # where the line between two points passes this accuracy
    x_0, x_1 = x[..., :-1], x[..., 1:]
    passes = (x_0 < wanted) != (x_1 < wanted)
    share = (wanted - x_0) / np.where(passes, x_1 - x_0, 1.0)
    on_lines = np.where(passes, y[..., :-1] + share * np.diff(y), -np.inf)
    height: Floats = np.maximum(at_points.max(axis=-1), on_lines.max(axis=-1))
    return height


def resampled_accuracy(
    correct: Sequence[Correct], seed: int, resamples: int = RESAMPLES
) -> list[Floats]:
    """Compute accuracies on images drawn with replacement: (resamples, points) per source."""
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


def mean_accuracy(correct: Sequence[Correct]) -> Floats:
    """Average the accuracy of each point over sources, (points,). All sources have equal weight."""
    accuracy: Floats = np.mean([right.mean(axis=1) for right in correct], axis=0)
    return accuracy


def mean_estimate(correct: Sequence[NDArray[Any]]) -> Estimate:
    """Average the accuracy of one point over sources, with its interval. Each source has one number
    per image, (images,).
    """
    rows = [right.astype(np.float64) for right in correct]
    value = float(np.mean([right.mean() for right in rows]))
    return Estimate(value=value, interval=mean_of_sources(rows))


def gains_over_curve(
    target: Sequence[Correct],
    others: Sequence[Correct],
    alphas: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Compute the gain, with its interval, of each point that is not on the curve.

    Args:
        target: Whether each point recognises each image, for each source of the target: (points,
            images). The points of the curve come first, in order of alpha.
        others: The same for each source of shifts, or for each source of other tasks.
        alphas: Number of points of the curve.
        seed: Seed of the resamples.
        resamples: Number of resamples of the images.
    """

    def gains(near: Floats, far: Floats) -> Floats:
        height = curve_height(near[..., :alphas], far[..., :alphas], near[..., alphas:])
        return far[..., alphas:] - height

    drawn = resampled_accuracy([*target, *others], seed, resamples)
    near = np.mean(drawn[: len(target)], axis=0)
    far = np.mean(drawn[len(target) :], axis=0)
    measured = gains(mean_accuracy(target), mean_accuracy(others))
    fewest = min(right.shape[1] for right in (*target, *others))
    # two models with equal answers gain nothing in any resample, but they differ on other images
    _, half = paired_accuracy_interval(np.zeros(min(right.shape[1] for right in others)))
    least = half / math.sqrt(len(others))
    return [
        Estimate(value=value, interval=gain_interval(value, of_draws, fewest, least))
        for value, of_draws in zip(measured.tolist(), gains(near, far).T, strict=True)
    ]
