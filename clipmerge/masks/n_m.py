"""Keep the N largest of every M entries of the change."""

from __future__ import annotations

import numpy as np

from clipmerge.files.safetensors import Array
from clipmerge.plugins import Count


def n_m(change: Array, *, n: Count = 2, m: Count = 4) -> Array:
    """Keep the ``n`` largest by magnitude of each run of ``m`` entries along the last dimension.

    The kept entries are spread evenly. The merged weights stay dense, so inference is not faster.

    Args:
        change: alpha * task_vector, any shape; a last run shorter than ``m`` keeps its ``n``
            largest too.
        n: Entries kept of each run.
        m: Length of a run.

    Returns:
        The change with the other entries zero, same shape.

    Example:
        >>> n_m(np.array([1.0, -3.0, 2.0, 0.5]), n=1, m=2)
        array([ 0., -3.,  2.,  0.])
    """
    width = change.shape[-1]
    rows = np.abs(change).reshape(-1, width)
    padded = np.pad(rows, [(0, 0), (0, -width % m)], constant_values=-1.0)
    runs = padded.reshape(-1, m)
    # a stable sort ranks equal entries by index
    order = np.argsort(-runs, axis=1, kind="stable")
    is_kept = np.argsort(order, axis=1) < n
    keep = is_kept.reshape(padded.shape)[:, :width]
    return change * keep.reshape(change.shape)
