"""95% intervals of an accuracy, of the difference of two models on the same images, and of a mean
over sources.

`tests/test_stats.py` simulates how often each contains the true value, on 20 to 1,000
images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the plan needs `LEVEL` alone, before numpy is loaded
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

#: Share of the intervals that contain the true value.
LEVEL = 0.95
#: Share of the resamples that must have a value for an interval: one over fewer would be biased by
#: the choice of resamples.
MIN_DEFINED = 0.9
Interval = tuple[float, float]
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
# Weight, in images, of the assumption that several views of one image tell no more than one.
_PRIOR_IMAGES = 2.0


def wilson(share: float, images: float) -> Interval:
    """Wilson's score interval of a share of images: both ends, in [0, 1], around the share.

    Source:
        Wilson 1927, Journal of the American Statistical Association 22.

    Example:
        >>> [round(end, 3) for end in wilson(1.0, 15)]
        [0.796, 1.0]
    """
    weight = _Z**2 / images
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def are_uneven(labels: Sequence[int]) -> bool:
    """Whether one class has more than twice the images of another."""
    counts = Counter(labels).values()
    return max(counts, default=0) > 2 * min(counts, default=0)


def class_weights(labels: Sequence[int]) -> NDArray[np.float64]:
    """Weights of images, of mean 1, by which a mean over images is the mean over classes.

    Example:
        >>> class_weights([0, 0, 0, 1]).round(3)
        array([0.667, 0.667, 0.667, 2.   ])
    """
    import numpy as np

    counts = Counter(labels)
    return np.array([len(labels) / (len(counts) * counts[label]) for label in labels])


def mean_share(by_image: NDArray[np.float64]) -> Interval:
    """Interval of the mean of one share per image (images,), such as the share of its views that
    are recognised.

    It is Wilson's for as many images as would give the measured variance if each were recognised or
    not.
    """
    share = float(by_image.mean())
    binary = share * (1 - share)
    if binary == 0:
        return wilson(share, len(by_image))
    spread = float(((by_image - share) ** 2).sum()) + _PRIOR_IMAGES * binary
    effect = spread / ((len(by_image) - 1 + _PRIOR_IMAGES) * binary)
    return wilson(share, len(by_image) / min(1.0, effect))


def mean_of_sources(correct: Sequence[NDArray[np.bool_] | NDArray[np.float64]]) -> Interval:
    """Interval of the mean accuracy over sources, each given by whether its images (images,) were
    recognised.

    The distances to the ends of the sources' own intervals are squared and added up.

    Source:
        Zou and Donner 2008, Statistics in Medicine 27.
    """
    shares = [float(right.mean()) for right in correct]
    ends = [wilson(share, len(right)) for share, right in zip(shares, correct, strict=True)]
    mean = sum(shares) / len(shares)
    count = len(shares)
    below, above = (
        math.sqrt(sum((share - end[side]) ** 2 for share, end in zip(shares, ends, strict=True)))
        / count
        for side in (0, 1)
    )
    return mean - below, mean + above


def paired_accuracy_interval(differences: NDArray[np.float64], views: int = 1) -> Interval:
    """Interval, in [-1, 1], of the mean difference of two models on the same images.

    Agresti and Min add half an image to each of the four outcomes of a pair (both models recognise
    it, only the first, only the second, neither) and take the normal interval. It does not shrink
    to a point if the models never differ, and approaches the bootstrap over images when there are
    many. ``differences`` is the first model minus the second on each image (images,), in [-1, 1];
    where each is the mean over several ``views``, that of the added images is smaller too.

    Source:
        Agresti and Min 2005, Statistics in Medicine 24.

    Example:
        >>> import numpy as np
        >>> [round(end, 3) for end in paired_accuracy_interval(np.zeros(50))]
        [-0.038, 0.038]
    """
    return normal_interval(*paired_mean_and_error(differences, 1 / views))


def normal_interval(mean: float, error: float) -> Interval:
    """Interval, in [-1, 1], of a difference with this standard error."""
    return max(-1.0, mean - _Z * error), min(1.0, mean + _Z * error)


def paired_mean_and_error(
    differences: NDArray[np.float64] | Tensor, added: float = 1.0
) -> tuple[float, float]:
    """Mean difference of two models on the same images (images,), and its standard error, with the
    images that Agresti and Min add; ``added`` is the sum of those images' squared differences.

    Example:
        >>> import numpy as np
        >>> [round(number, 3) for number in paired_mean_and_error(np.zeros(18))]
        [0.0, 0.05]
    """
    images = len(differences) + 2
    mean = float(differences.sum()) / images
    square = (float((differences**2).sum()) + added) / images
    return mean, math.sqrt(max(0.0, square - mean**2) / images)


def gain_interval(
    gain: float, drawn: NDArray[np.float64], images: int, least: float = 0.0
) -> Interval | None:
    """Interval of a gain from resampled gains; ``None`` if fewer than nine in ten are numbers.

    The best point of a curve that was measured on few images is better than it should be, in a
    resample twice so. The interval therefore reaches as far as the percentiles and as the normal
    interval around the measured gain, both widened for few images, and by ``least`` on either side.
    ``images`` is the number of images of the smallest source.

    Source:
        Hesterberg 2015, The American Statistician 69, for the widened percentiles.
    """
    import numpy as np
    from scipy.special import stdtrit

    images = max(2, images)
    widening = math.sqrt(images / (images - 1))
    quantile = float(stdtrit(images - 1, (1 + LEVEL) / 2))
    ends = percentile_interval(drawn, 2 * NormalDist().cdf(widening * quantile) - 1)
    if ends is None:
        return None
    half = max(least, quantile * widening * float(np.nanstd(drawn)))
    return min(ends[0], gain - half), max(ends[1], gain + half)


def percentile_interval(values: NDArray[np.float64], level: float = LEVEL) -> Interval | None:
    """Percentile interval of resampled values; ``None`` if fewer than nine in ten are numbers."""
    import numpy as np

    defined = values[~np.isnan(values)]
    if len(defined) < MIN_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
