"""Keep the N largest of every M entries of the change."""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.plugins import Count


def n_m(change: Tensor, *, n: Count = 2, m: Count = 4) -> Tensor:
    """Keep the ``n`` largest by magnitude of each run of ``m`` entries along the last dimension.

    The merged weights stay dense, so inference is not faster; the kept change is spread evenly.

    Args:
        change: alpha * task_vector, any shape; a last run shorter than ``m`` keeps its ``n``
            largest too.
        n: Entries kept of each run.
        m: Length of a run.

    Returns:
        The change with the other entries zero, same shape.

    Example:
        >>> n_m(torch.tensor([1.0, -3.0, 2.0, 0.5]), n=1, m=2)
        tensor([ 0., -3.,  2.,  0.])
    """
    width = change.shape[-1]
    padded = torch.nn.functional.pad(change.abs(), (0, -width % m), value=-1.0)
    runs = padded.reshape(*padded.shape[:-1], -1, m)
    # A stable sort ranks equal entries by index, in every build.
    ranks = runs.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    keep = (ranks < n).flatten(-2)[..., :width]
    return change.mul(keep)
