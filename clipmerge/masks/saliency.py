"""Keep the entries of the change that the calibration loss depends on most."""

from __future__ import annotations

from clipmerge.files.safetensors import Array
from clipmerge.merging.selection import keep_largest, zero_others
from clipmerge.plugins import Density


def saliency(change: Array, score: Array, *, density: Density = 1.0) -> Array:
    """Keep the ``density`` share of the change with the largest |task vector| * |gradient|.

    The gradient is the mean along the path from zero-shot to fine-tuned. So task vector times
    gradient is each entry's own share of the loss drop (integrated gradients), and entries are
    ranked by the absolute value of this share.

    Args:
        change: alpha * task_vector, any shape.
        score: Mean gradient along the path, same shape.
        density: Share of the entries kept.

    Returns:
        The change with the other entries zero, same shape.

    Source:
        The criterion is SNIP's, Lee et al. 2019, arXiv:1810.02340; the path integral is
        Sundararajan et al. 2017, arXiv:1703.01365.

    Example:
        >>> import numpy as np
        >>> saliency(np.array([1.0, 3.0]), score=np.array([9.0, -1.0]), density=0.5)
        array([1., 0.])
    """
    return zero_others(change, keep_largest(change * score, density))
