"""Weights into a model that was built without any."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipmerge.errors import CheckpointError


def fill(parameters: dict[str, torch.nn.Parameter], read: Callable[[str], Tensor]) -> None:
    """Fill in every parameter.

    Args:
        parameters: Parameters by canonical name.
        read: Gives a tensor for a canonical name.

    Raises:
        CheckpointError: If a parameter is not there, or has another shape.
    """
    for name, parameter in parameters.items():
        try:
            value = read(name)
        except KeyError:
            raise CheckpointError(
                f"the zero-shot checkpoint has no {name}; measuring needs a full CLIP as ZEROSHOT"
            ) from None
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"config.json does not fit the weights: {name} is {tuple(value.shape)}, the config says "
                f"{tuple(parameter.shape)}"
            )
        parameter.data.copy_(value)
