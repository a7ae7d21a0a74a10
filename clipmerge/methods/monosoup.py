"""Weight principal and remaining singular directions of each matrix's change by their energy."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.methods import Decision, Task
from clipmerge.methods._matrices import Split, split_matrices
from clipmerge.plugins import Alpha, Share


def monosoup(
    task: Task,
    *,
    alpha: Alpha = 1.0,
    rank: Literal["effective", "energy"] = "effective",
    energy: Share = 0.8,
) -> Decision:
    """Weight the strong directions of each matrix's task vector by ``high``, the weak ones by
    ``low``.

    Let s be the singular values, of which the first k are strong. Let P be the share of the strong
    ones in sum s^2, and r = (s_{k+1} / s_1)^2. Then low = r + (1 - r) sqrt(1 - P), and high = 1 -
    low. A vector has one direction, so P = 1 and r = 0, and it is taken from the fine-tuned model.
    Data-free.

    Args:
        task: The checkpoints, and the measurements if the recipe has a measure.
        alpha: Share of the way from zero-shot to MonoSoup's model; 1 is that model.
        rank: Choice of k: ``effective`` is ceil(exp(entropy of s / sum s)), ``energy`` the fewest
            directions that hold an ``energy`` share of sum s^2.
        energy: Share for ``rank: energy``.

    Returns:
        One split per matrix, as options of the ``spectral`` mask.

    Source:
        MonoSoup, arXiv:2602.09689.
    """
    return split_matrices(task, lambda s, shape: _split_at_rank(s, rank, energy), alpha=alpha)


def _split_at_rank(s: Array, rank: str, energy: float) -> Split:
    """Choose the number of strong directions, and the factors of strong and weak ones."""
    squares = s**2
    total = float(squares.sum())
    if total == 0:
        return {"rank": 1, "high": 1.0, "low": 1.0}
    if rank == "effective":
        p = s[s > 0] / s.sum()
        k = math.ceil(math.exp(float(-(p * np.log(p)).sum())) - 1e-9)
    else:
        k = int((squares.cumsum() / total < energy - 1e-12).sum()) + 1
    k = min(k, len(s))
    share = min(1.0, float(squares[:k].sum()) / total)
    ratio = float((s[k] / s[0]) ** 2) if k < len(s) else 0.0
    low = ratio + (1 - ratio) * math.sqrt(1 - share)
    return {"rank": k, "high": 1 - low, "low": low}
