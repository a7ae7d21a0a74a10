"""The forward pass from images and class prompts to logits; a family names the module with its own forward pass."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.models.loading import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

# Index of a tower's block, and the hidden states that enter it.
Prefix = tuple[int, Tensor]
Tower = Literal["vision", "text"]


class ImageTextModel(Protocol):
    """A two-tower model in eval mode whose weights are set from outside.

    Attributes:
        module: The model, float32.
        parameters: Parameters by canonical name, including the statistics of batch norms.
    """

    module: torch.nn.Module
    parameters: dict[str, torch.nn.Parameter]

    def load(self, read: Callable[[str], Tensor], source: str) -> None:
        """Load every weight; see `clipmerge.models.loading.fill`."""
        fill(self.parameters, read, source)

    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess RGB images like the checkpoint: one tensor, with images along its first dimension."""

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        """Tokenise prompts: ``input_ids`` and other inputs of the text tower, prompts along the first dimension."""

    def image_features(self, pixels: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Embed images: (batch, width), unit length. With a prefix the blocks below it do not run."""

    def text_features(self, tokens: dict[str, Tensor], prefix: Prefix | None = None) -> Tensor:
        """Embed prompts: (prompts, width), unit length. With a prefix the blocks below it do not run."""

    def hidden_states(self, tower: Tower, inputs: Tensor | dict[str, Tensor]) -> tuple[Tensor, ...] | None:
        """Run a tower and return the input of each block and the output of the last; ``None`` if it takes no prefix."""

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Score unit features (batch, width) against unit features (classes, width): (batch, classes)."""


def model_for(family: Family, config: dict[str, Any], folder: Path) -> ImageTextModel:
    """Build a family's model without weights, to be loaded with `load`."""
    if not family.model:
        raise CheckpointError(
            f"{family.name} models can be merged but not measured or evaluated here; use a data-free recipe: "
            "wise-ft, lines or monosoup"
        )
    model: ImageTextModel = import_module(f"{__name__}.{family.model}").build(family, config, folder)
    return model


__all__ = ["ImageTextModel", "Prefix", "Tower", "model_for"]
