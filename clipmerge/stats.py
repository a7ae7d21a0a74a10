"""95% intervals of an accuracy, of the difference of two models on the same images, and of a mean
over sources.

`tests/test_stats.py` simulates how often each contains the true value.
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

    Floats = NDArray[np.float64]

#: Share of the intervals that contain the true value.
LEVEL = 0.95
Interval = tuple[float, float]
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
# Weight, in images, of the prior assumption that all views of an image agree.
_PRIOR_IMAGES = 2.0


def wilson(share: float, images: float) -> Interval:
    """Compute Wilson's score interval of a share of images: both ends, in [0, 1].

    Source:
        Wilson 1927, Journal of the American Statistical Association 22.

    Example:
        >>> [round(end, 3) for end in wilson(1.0, 15)]
        [0.796, 1.0]
    """
    weight = _Z**2 / images
    spread = share * (1 - share) * weight
    half = math.sqrt(spread + weight**2 / 4)
    centre = share + weight / 2
    low = (centre - half) / (1 + weight)
    high = (centre + half) / (1 + weight)
    # without rounding, both would be in [0, 1] and around the share
    low = min(share, low)
    high = max(share, high)
    return max(0.0, low), min(1.0, high)


def class_weights(labels: Sequence[int]) -> Floats:
    """Weight images, with mean 1, so that their mean is the mean over classes.

    Example:
        >>> class_weights([0, 0, 0, 1]).round(3)
        array([0.667, 0.667, 0.667, 2.   ])
    """
    import numpy as np

    counts = Counter(labels)
    mean = len(labels) / len(counts)
    return np.array([mean / counts[label] for label in labels])


def mean_share(by_image: Floats) -> Interval:
    """Compute the interval of a mean of shares, one per image (images,), such as the share of its
    views that are recognised.

    It is Wilson's interval for the number of images that would give the measured variance if each
    image were either recognised or not.
    """
    images = len(by_image)
    share = float(by_image.mean())
    binary = share * (1 - share)
    if binary == 0:
        return wilson(share, images)
    distances = by_image - share
    spread = float((distances**2).sum())
    spread += _PRIOR_IMAGES * binary
    variance = spread / (images - 1 + _PRIOR_IMAGES)
    effect = min(1.0, variance / binary)
    return wilson(share, images / effect)


def mean_of_sources(correct: Sequence[Floats]) -> Interval:
    """Compute the interval of the mean accuracy over sources. Each source has one number per image
    (images,): 1 if it was recognised, else 0, or the share of its views.

    Its half widths are the roots of the summed squares of those of the sources' own intervals,
    divided by the number of sources.

    Source:
        Zou and Donner 2008, Statistics in Medicine 27.
    """
    shares = [float(right.mean()) for right in correct]
    intervals = list(map(mean_share, correct))
    mean = sum(shares) / len(shares)
    below = (share - low for share, (low, _) in zip(shares, intervals, strict=True))
    above = (high - share for share, (_, high) in zip(shares, intervals, strict=True))
    return mean - math.hypot(*below) / len(shares), mean + math.hypot(*above) / len(shares)


def paired_accuracy_interval(differences: Floats, views: int = 1) -> Interval:
    """Compute the interval, in [-1, 1], of the mean difference of two models on the same images.

    Agresti and Min add half an image to each of the four outcomes (both models recognise it, only
    the first, only the second, neither) and use the normal interval. It has a width even if the
    models never differ, and for many images it approaches the bootstrap. ``differences`` is the
    first model minus the second on each image, (images,), in [-1, 1]. If a difference is a mean
    over several ``views``, the added images differ less.

    Source:
        Agresti and Min 2005, Statistics in Medicine 24.

    Example:
        >>> import numpy as np
        >>> [round(end, 3) for end in paired_accuracy_interval(np.zeros(50))]
        [-0.038, 0.038]
    """
    mean, error = paired_mean_and_error(differences, 1 / views)
    half = _Z * error
    return max(-1.0, mean - half), min(1.0, mean + half)


def paired_mean_and_error(differences: Floats | Tensor, added: float = 1.0) -> tuple[float, float]:
    """Compute the mean difference of two models on the same images, (images,), and its standard
    error, with Agresti and Min's added images. ``added`` is the sum of their squared differences.

    Example:
        >>> import numpy as np
        >>> [round(number, 3) for number in paired_mean_and_error(np.zeros(18))]
        [0.0, 0.05]
    """
    images = len(differences) + 2
    mean = float(differences.sum()) / images
    squares = float((differences**2).sum()) + added
    variance = max(0.0, squares / images - mean**2)
    return mean, math.sqrt(variance / images)


def gain_interval(gain: float, drawn: Floats, images: int, least: float = 0.0) -> Interval:
    """Compute the interval of a gain, in [-1, 1], from resampled gains.

    On the images that chose it, the best point of a curve looks better than it is. Each resample
    chooses again, which doubles this bias. Therefore the interval covers both the percentiles and
    the normal interval around the measured gain. Both are widened for few images, and the normal
    one extends at least ``least`` to either side. ``images`` is the number of images of the
    smallest source.

    Source:
        Hesterberg 2015, The American Statistician 69, for the widened percentiles.
    """
    import numpy as np
    from scipy.special import stdtrit

    images = max(2, images)
    quantile = float(stdtrit(images - 1, (1 + LEVEL) / 2))
    quantile *= math.sqrt(images / (images - 1))
    tail = NormalDist().cdf(-quantile)
    low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    half = quantile * float(np.std(drawn))
    half = max(least, half)
    return max(-1.0, min(low, gain - half)), min(1.0, max(high, gain + half))
