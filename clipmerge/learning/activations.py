"""Memory that activations take, and the number of images whose activations fit into it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clipmerge.learning.objective import Objective
from clipmerge.learning.weights import LARGE
from clipmerge.models.memory import usable_memory
from clipmerge.models.precision import Precision, passes

# Share of a machine's memory that activations may take; more images go through the model in pieces.
_SHARE = 0.25
# On a card, the same of what nothing has taken; buffers of kernels need the rest.
_SHARE_OF_FREE = 0.8
# While a card makes pictures, it holds so many times their size.
_PICTURES = 5
# While it moves weights, it holds so many buffers of them, one more if their ends have 16 bits.
_BUFFERS = 2
# Share of a card's free memory that prompts may take; more go through the text tower in pieces.
_SHARE_OF_PROMPTS = 0.2


class Activations:
    """Activation memory per image and per prompt, measured once.

    Attributes:
        image: Bytes kept for the backward pass for each image; 0 if no image is at hand.
        prompts: The same for all prompts together with an image's; 0 on a CPU, and if they go
            through afterwards.
        prompts_at_once: Prompts that should go through the text tower at once: see
            `ZeroShotLoss.limit_prompts`.
        gradients: Bytes of the vision tower's gradients, which a card holds until the last piece of
            a step.
        casts: Bytes of what a card keeps for the backward pass whatever the number of images and
            prompts: weights in 16 bits.
    """

    def __init__(self, objective: Objective, precision: Precision, prompts: int = 0) -> None:
        """Send one image through, and then two, and prompts likewise.

        Args:
            objective: Calibration loss.
            precision: Precision of the passes.
            prompts: Number of prompts whose activations are held together with those of images.
        """
        device = objective.data.context.device
        path = objective.weights
        self._objective = objective
        self.image = self.prompts = self.gradients = self.casts = 0
        module = objective.criterion.model.module
        self._parameter_pointers = {
            parameter.untyped_storage().data_ptr() for parameter in module.parameters()
        }
        self.prompts_at_once = objective.criterion.prompts.at_once
        if objective.data.batches:
            pixels = objective.data.batches[0].pixels[:1]
            # repeated, as a view of the batch would count all of its images
            self.image, self.casts = self._bytes_per_input(
                lambda count: objective.criterion.embed(
                    pixels.repeat(count, *[1] * (pixels.ndim - 1))
                ),
                precision,
                device,
            )
        self._room = _SHARE * usable_memory(device)
        if device.type == "cpu":
            return
        free = usable_memory(device)
        if path.text_changes:
            all_prompts = objective.criterion.prompts
            per_prompt, casts = self._bytes_per_input(
                lambda count: all_prompts.features(
                    positions=torch.zeros(count, dtype=torch.int64, device=device)
                ),
                precision,
                device,
            )
            self.prompts_at_once = max(
                1, min(all_prompts.at_once, int(_SHARE_OF_PROMPTS * free / per_prompt))
            )
            # more are embedded again in the backward pass, when activations of images are gone
            if prompts <= self.prompts_at_once:
                self.prompts = per_prompt * prompts
                self.casts += casts
        names_of_image_tower = (
            name
            for layer, names in path.layers.items()
            if not layer.startswith("text.")
            for name in names
        )
        self.gradients = sum(path.parameters[name].nbytes for name in names_of_image_tower)
        self._room = _SHARE_OF_FREE * free - self.gradients - self.prompts - self.casts

    def _bytes_per_input(
        self, run: Callable[[int], Tensor], precision: Precision, device: torch.device
    ) -> tuple[int, int]:
        """Bytes kept for the backward pass of each input, and for any number of them beside the
        weights themselves.
        """
        one, two = (
            sum(
                size
                for pointer, size in _saved_tensor_sizes(run, count, precision, device).items()
                if pointer not in self._parameter_pointers
            )
            for count in (1, 2)
        )
        return two - one, max(0, 2 * one - two)

    def images(self) -> int | None:
        """How many images' activations fit; at least one, and ``None`` if it is unknown."""
        return max(1, int(self._room / self.image)) if self.image else None

    def forecast(self, state: Mapping[str, Tensor], pictures: int, at_once: int) -> str:
        """Say how much of a card's memory learning takes.

        Args:
            state: What learning holds.
            pictures: Pictures of a step.
            at_once: Those of them whose activations are held at once.
        """
        objective = self._objective
        path = self._objective.weights
        module = objective.criterion.model.module
        device = objective.data.context.device
        weights = sum(path.parameters[name].numel() for name in path.task_vector)
        learned = path.endpoint_nbytes + sum(
            tensor.nbytes for tensor in state.values() if tensor.device == device
        )
        model = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        sources = [objective.data, *([objective.unlabelled] if objective.unlabelled else [])]
        images = [batch.pixels for source in sources for batch in source.batches]
        pixels = pictures * images[0][0].nbytes
        step = at_once * self.image + self.prompts + self.casts + pixels
        if at_once < pictures:
            step += self.gradients + at_once * images[0][0].nbytes
        # beside what a card computes at once, when activations are gone
        least = max((_BUFFERS + path.has_short_ends) * 4 * min(weights, LARGE), _PICTURES * pixels)
        total = model + learned + sum(batch.nbytes for batch in images) + max(step, least)
        return (
            f"about {total / 1e6:,.1f} MB of the device's memory, {4 + learned / weights:.0f} bytes"
            f" for each of {weights / 1e6:,.1f} million weights that move"
        )


def _saved_tensor_sizes(
    run: Callable[[int], Tensor], count: int, precision: Precision, device: torch.device
) -> dict[int, int]:
    """Bytes of the tensors saved for the backward pass, by the address of their storage."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        # with its graph, an operation that saves its own output would never be freed
        return tensor.detach()

    with saved_tensors_hooks(keep, lambda tensor: tensor), passes(device, precision):
        graph = run(count)  # kept alive until all is counted, or its memory would be reused
    del graph
    return sizes
