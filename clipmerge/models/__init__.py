"""The forward pass from images and class prompts to logits; a family names the module with its own
forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from clipmerge.families import Family
from clipmerge.models.batch_norm import freeze_batch_norms, image_layout
from clipmerge.models.loading import load_parameters
from clipmerge.types import Json, Tensors

Tower = Literal["vision", "text"]


class ImageTextModel(ABC):
    """A two-tower model in eval mode whose weights are set from outside; each library has its own
    subclass.

    Attributes:
        module: The model, float32.
        parameters: Parameters by canonical name, including the statistics of batch norms.
        folder: Folder of the processor and the tokenizer.
        towers: Modules of the two towers.
        layout: Order of an image's entries.
    """

    def __init__(
        self, family: Family, folder: Path, module: Any, towers: dict[Tower, torch.nn.Module]
    ) -> None:
        freeze_batch_norms(module)
        self.module, self.folder, self.towers = module, folder, towers
        self.layout = image_layout(module)
        named: dict[str, torch.nn.Parameter] = dict(module.named_parameters())
        self.parameters = {
            name: named[key] for name, key in family.by_canonical_name(named).items()
        }

    def load(self, read: Callable[[str], Tensor], source: str) -> None:
        """Load every weight; see `clipmerge.models.loading.load_parameters`."""
        load_parameters(self.parameters, read, source)

    @abstractmethod
    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess images like the checkpoint: one tensor, with images along its first
        dimension.
        """

    @abstractmethod
    def tokens(self, prompts: list[str]) -> Tensors:
        """Tokenise prompts: ``input_ids`` and other inputs of the text tower, prompts along the
        first dimension.
        """

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images: (batch, width), unit length."""

    @abstractmethod
    def text_features(self, tokens: Tensors) -> Tensor:
        """Embed prompts: (prompts, width), unit length."""

    def classifier(self, source: str, classes: int, rows: Sequence[Sequence[int]]) -> Any:
        """The `clipmerge.models.classifier.Classifier` of a head for the classes of a source;
        ``None`` for a model of prompts.
        """
        return None

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Score unit features (batch, width) against unit features (classes, width): (batch,
        classes).
        """
        if hasattr(self.module, "temperature"):  # ALIGN divides by it
            return torch.div(images @ classes.T, self.module.temperature)
        logits: Tensor = self.module.logit_scale.exp() * images @ classes.T
        bias = getattr(self.module, "logit_bias", None)
        return logits if bias is None else logits + bias


def model_for(family: Family, config: Json, folder: Path) -> ImageTextModel:
    """Build a family's model without weights, to be loaded with `load`."""
    model: ImageTextModel = import_module(f"{__name__}.{family.model}").build(
        family, config, folder
    )
    return model


__all__ = ["ImageTextModel", "Tower", "model_for"]
