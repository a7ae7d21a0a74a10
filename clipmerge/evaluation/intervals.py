"""95% intervals of an accuracy, and of the difference of two models on the same images.

Both hold their level on few images: unlike a bootstrap over images, neither shrinks to a point when every image gives
the same result.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from clipmerge.planning.merge_effect import LEVEL

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's score interval of a share of images.

    It is also valid, if wider than necessary, for the mean of one number in [0, 1] per image, whose variance is at most
    that of a binary outcome with the same mean.

    Args:
        share: Share of the images, in [0, 1].
        images: Number of images it was measured on, at least 1.

    Returns:
        Both ends, in [0, 1], around the share.

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

    Bonett and Price add two images to those measured, one that only the first model recognises and one that only the
    second does, and take the normal interval. It nearly holds its level from ten images on, even if the models never
    differ, and approaches the bootstrap over images when there are many.

    Args:
        differences: First model minus second on each image, in [-1, 1]. Shape (images,).

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
