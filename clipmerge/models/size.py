"""The size of a model, watched while a library builds it from a configuration that came with the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import MOST_SPARE_NUMBERS, MOST_TENSORS, MOST_TIMES_THE_WEIGHTS

if TYPE_CHECKING:
    from clipmerge.files.safetensors import TensorEntry


@contextmanager
def no_larger_than(source: str, weights: Iterable[TensorEntry]) -> Iterator[None]:
    """Refuse to build a model in this block that is far larger than its weights.

    A configuration of a few bytes can ask for a billion layers, which a library makes one by one.

    Args:
        source: Source of the weights, for the message.
        weights: The weights.

    Raises:
        CheckpointError: If the model has more tensors than any CLIP, or far more numbers than the weights.
    """
    most = MOST_TIMES_THE_WEIGHTS * sum(entry.size for entry in weights) + MOST_SPARE_NUMBERS
    tensors, numbers = 0, 0

    def count(_module: Any, _name: str, tensor: Any) -> None:
        nonlocal tensors, numbers
        tensors += 1
        numbers += tensor.numel() if tensor is not None else 0
        if tensors > MOST_TENSORS or numbers > most:
            raise CheckpointError(
                f"{source}: its configuration does not match the weights: it describes a far larger model; correct it"
            )

    handles = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
