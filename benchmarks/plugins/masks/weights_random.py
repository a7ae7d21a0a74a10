"""Zero random merged weights of the layer (not of its change), as reviews describe the paper's
sparsity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.merging.selection import RandomKey, keep_random
from clipmerge.plugins import Density


def weights_random(
    change: Tensor, *, theta_0: Tensor, key: RandomKey, density: Density = 1.0
) -> Tensor:
    """Keep each merged weight with probability ``density``; the others become exactly zero.

    Args:
        change: alpha * task_vector, any shape.
        theta_0: Zero-shot parameter, same shape.
        key: Seed and parameter name.
        density: Probability that a weight is kept.

    Returns:
        The change, and ``-theta_0`` where the weight is zeroed.

    Source:
        Our reading of the sparsity in Abdollahpoorrostam 2024, arXiv:2410.16476, whose definition
        is not public.
    """
    return torch.where(keep_random(change.shape, density, key), change, -theta_0)
