"""95% intervals of an accuracy, and of the difference of two models on the same images.

Both keep their promise on few images: neither shrinks to a point where every image came out the same, as a bootstrap
over images does.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from clipmerge.planning.bought import LEVEL

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's score interval of a share of images.

    It also holds, wider than need be, for the mean of a number in [0, 1] per image, whose variance is at most that of
    a yes or no with the same mean.

    Args:
        share: In [0, 1].
        images: How many images it was measured on, at least 1.

    Returns:
        Both ends, in [0, 1], the share between them.

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


def paired(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of the mean difference of two models on the same images.

    Two images are added to those measured, one on which only the first model is right and one on which only the
    second is; the normal interval over them is Bonett and Price's. It has nearly its level from ten images on, also
    where the models never differ, and approaches the bootstrap over images where there are many.

    Args:
        differences: One per image, in [-1, 1]: by how much the first model is better on it. Shape (images,).

    Returns:
        Both ends, in [-1, 1].

    Source:
        Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37.

    Example:
        >>> [round(end, 3) for end in paired(np.zeros(50))]
        [-0.053, 0.053]
    """
    images = len(differences) + 2
    mean = float(differences.sum()) / images
    square = (float((differences**2).sum()) + 2) / images
    half = _Z * math.sqrt((square - mean**2) / images)
    return max(-1.0, mean - half), min(1.0, mean + half)
