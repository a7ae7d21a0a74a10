"""Load weights into a model that was built without weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipmerge.errors import CheckpointError


def fill(parameters: dict[str, torch.nn.Parameter], read: Callable[[str], Tensor], source: str) -> None:
    """Load every parameter.

    Args:
        parameters: Parameters by canonical name.
        read: Returns the tensor of a canonical name.
        source: Source of the tensors, for errors.

    Raises:
        CheckpointError: If a parameter is missing, or has another shape.
    """
    for name, parameter in parameters.items():
        try:
            value = read(name)
        except KeyError:
            raise CheckpointError(
                f"{source}: has no {name}, which a model needs to embed images and prompts; give a full CLIP checkpoint"
            ) from None
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: config.json does not match the weights: {name} is {tuple(value.shape)}, but the config "
                f"says {tuple(parameter.shape)}"
            )
        parameter.data.copy_(value)
