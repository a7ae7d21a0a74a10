"""Memory that activations take, and the number of images whose activations fit into it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clipmerge.calibration.memory import memory
from clipmerge.models.precision import Precision, passes

if TYPE_CHECKING:
    from clipmerge.calibration.objective import Objective

# Share of the device's memory that activations may take; more images go through the model in pieces.
_SHARE = 0.25


class Activations:
    """What a model's activations take, measured once."""

    def __init__(self, objective: Objective, precision: Precision) -> None:
        """Send an image through, and then two.

        Args:
            objective: Its model gets the images.
            precision: Precision of the forward passes.
        """
        self._room = _SHARE * memory(objective.shares.accelerator.device)
        self._each = _bytes_per_image(objective, precision)

    def images(self, times: int = 1) -> int | None:
        """How many images' activations fit this many times; at least one, and ``None`` if it is unknown."""
        return max(1, int(self._room / (times * self._each))) if self._each else None


def _bytes_per_image(objective: Objective, precision: Precision) -> int:
    """Bytes kept for the backward pass per additional image; weights, which it needs too, are not counted."""
    if not objective.shares.batches:
        return 0
    pixels = objective.shares.batches[0].pixels[:1]
    one, two = (_saved(objective, pixels.expand(count, *pixels.shape[1:]), precision) for count in (1, 2))
    return two - one


def _saved(objective: Objective, pixels: Tensor, precision: Precision) -> int:
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its graph, an operation that saves its own output would never be freed

    with saved_tensors_hooks(keep, lambda tensor: tensor), passes(pixels.device, precision):
        graph = objective.criterion.embed(pixels)  # kept alive until all is counted, or its memory would be reused
    del graph
    return sum(sizes.values())
