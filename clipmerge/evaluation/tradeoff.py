"""The gain of a merge: how far it lies above the curve of plain interpolation.

The curve joins the accuracies of the alphas by straight lines, in order of alpha: on the target
from left to right, elsewhere (under a shift, or on another task) from bottom to top. Its *height*
at an accuracy on the target is the best accuracy elsewhere that it reaches with this accuracy on
the target or a higher one. A merge that is more accurate on the target than the whole curve is
compared with the most accurate alpha. The *gain* of a merge is its accuracy elsewhere minus that
height, so a merge with a gain is better than every alpha at least as accurate on the target, even
one that was chosen by labels from elsewhere. Accuracies that differ only by rounding count as
equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.planning.record import Estimate, Question
from clipmerge.stats import gain_interval, paired_accuracy_interval

Floats = NDArray[np.float64]

RESAMPLES = 1000
# Means of several sources that are equal in exact arithmetic differ by about 1e-16; one image
# weighs far more.
_ROUNDING = 1e-12
# Distance of the alphas with which a merge is compared.
_STEP = 0.05


#: Whether each image was recognised, or its share of recall: shape (points, images).
Correct = NDArray[np.bool_] | NDArray[np.float64]


def question_of(
    source: LabelledImages | CaptionedImages,
    targets: Sequence[LabelledImages | CaptionedImages],
) -> Question:
    """Tell a natural shift of the target from another task: its classes are all among the target's,
    or both have captions.
    """
    names, *of_targets = (_class_names(images) for images in (source, *targets))
    return "shift" if names <= set().union(*of_targets) else "task"


def _class_names(images: LabelledImages | CaptionedImages) -> set[str]:
    if isinstance(images, CaptionedImages):
        return {"any caption"}
    return {" ".join(name.replace("_", " ").casefold().split()) for name in images.class_names}


def curve_height(curve_target: Floats, curve_other: Floats, at: Floats) -> Floats:
    """Compute the height of a curve (..., alphas) at accuracies on the target (..., points).

    Example:
        >>> target, other = np.array([0.2, 0.6, 0.8]), np.array([0.7, 0.8, 0.5])
        >>> curve_height(target, other, np.array([0.1, 0.7, 0.9]))
        array([0.8 , 0.65, 0.5 ])
    """
    height: Floats = _line_heights(curve_target, curve_other, at).max(axis=-1)
    return height


def _line_heights(curve_target: Floats, curve_other: Floats, at: Floats) -> Floats:
    """The height of each line of the curve, (..., points, alphas - 1); -inf where a line does not
    reach the accuracy on the target.
    """
    x, y = curve_target[..., None, :], curve_other[..., None, :]
    wanted = np.minimum(at, x.max(axis=-1))[..., None] - _ROUNDING
    ends = np.where(x >= wanted, y, -np.inf)
    x_0, x_1 = x[..., :-1], x[..., 1:]
    passes = (x_0 < wanted) != (x_1 < wanted)
    share = (wanted - x_0) / np.where(passes, x_1 - x_0, 1.0)
    between = y[..., :-1] + share * np.diff(y)
    inside = np.where(passes, between, -np.inf)
    return np.maximum(inside, np.maximum(ends[..., :-1], ends[..., 1:]))


def alphas_to_add(alphas: Sequence[float], target: Floats, other: Floats) -> list[float]:
    """Find alphas that the curve lacks where the gain depends on them.

    They are the multiples of 0.05 on the lines that give the height, and on the lines next to
    these; so the gain of a merge hardly depends on the alphas that were asked for.

    Args:
        alphas: Alphas of the curve, ascending.
        target: Accuracy on the target of the curve's points, and then of the points to compare.
        other: Accuracy of the same points elsewhere.
    """
    count = len(alphas)
    heights = _line_heights(target[:count], other[:count], target[count:])
    gives = (heights >= heights.max(axis=-1, keepdims=True) - _ROUNDING).any(axis=0)
    added = []
    for line, (start, end) in enumerate(pairwise(alphas)):
        if gives[max(0, line - 1) : line + 2].any():
            first, last = (round(alpha / _STEP, 6) for alpha in (start, end))
            steps = range(math.floor(first) + 1, math.ceil(last))
            added += [round(step * _STEP, 6) for step in steps]
    return added


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


def mean_accuracy(correct: Sequence[Correct]) -> Floats:
    """Mean accuracy of each point over sources, (points,); small sources count like large ones."""
    accuracy: Floats = np.mean([right.mean(axis=1) for right in correct], axis=0)
    return accuracy


def gains_over_curve(
    target: Sequence[Correct],
    others: Sequence[Correct],
    alphas: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Compute the gain of each point that is not on the curve, with its interval.

    Args:
        target: Sources of the target, each (points, images); the curve's points come first, in
            order of alpha.
        others: Sources of shifts or of other tasks, of which the mean is taken, likewise.
        alphas: Number of points of the curve.
        seed: Seed of the resamples.
        resamples: Number of times that the images are drawn again.
    """

    def gains(near: Floats, far: Floats) -> Floats:
        height = curve_height(near[..., :alphas], far[..., :alphas], near[..., alphas:])
        return far[..., alphas:] - height

    drawn = resampled_accuracy([*target, *others], seed, resamples)
    near = np.mean(drawn[: len(target)], axis=0)
    far = np.mean(drawn[len(target) :], axis=0)
    measured = gains(mean_accuracy(target), mean_accuracy(others))
    fewest = min(right.shape[1] for right in (*target, *others))
    least = _least_half(others)
    return [
        Estimate(value=value, interval=gain_interval(value, of_draws, fewest, least))
        for value, of_draws in zip(measured.tolist(), gains(near, far).T, strict=True)
    ]


def _least_half(others: Sequence[Correct]) -> float:
    """Half the interval between points that recognise the same images, for which all resamples
    agree.
    """
    images = min(right.shape[1] for right in others)
    _, half = paired_accuracy_interval(np.zeros(images))
    return half / math.sqrt(len(others))
