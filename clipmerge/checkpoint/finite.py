"""NaN and Inf in weights: found, and refused by name."""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.errors import CheckpointError


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf; an empty tensor is finite.

    Args:
        tensor: Any shape, any float dtype.
    """
    # NaN and Inf survive a sum, the cheapest pass there is; finite entries whose sum overflows are looked at one by one
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def require_finite(tensor: Tensor, name: str, source: str) -> None:
    """Refuse a parameter that holds NaN or Inf.

    Args:
        tensor: The parameter or a run of it.
        name: Its name, for the message.
        source: Where it came from.

    Raises:
        CheckpointError: If an entry is not finite.
    """
    if not is_finite(tensor):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
        raise CheckpointError(f"{source}: tensor {name} holds {kind}; the checkpoint is broken, merge an earlier one")
