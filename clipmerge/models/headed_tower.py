"""An image tower with a classification head in place of a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmerge.checkpoint.inputs import HEAD_BIAS, HEAD_WEIGHT
from clipmerge.errors import CheckpointError, DataError
from clipmerge.families import Family
from clipmerge.models import ImageTextModel
from clipmerge.models.loading import blaming_processor
from clipmerge.models.open_clip import build_module, import_open_clip, transform_for
from clipmerge.types import Json, Shape, Tensors

# a text tower that is built but not used
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


class HeadedTower(ImageTextModel):
    """A tower of open_clip whose features of unit length a linear head scores, as WiSE-FT and model
    soups save them.

    Attributes:
        classes: Number of the head's rows.
    """

    def __init__(self, family: Family, config: Json, folder: Path, shape: Shape) -> None:
        """Build it without weights; ``shape`` is that of the head's weight, (classes, features)."""
        settings = deepcopy(config.get("model_cfg", config)) | {"text_cfg": _NO_TEXT}
        model = build_module(import_open_clip(), settings)
        if len(shape) != 2 or shape[1] != settings["embed_dim"]:
            raise CheckpointError(
                f"{folder}: the head has shape {shape}, the tower {settings['embed_dim']} features"
            )
        self.classes = shape[0]
        self._head = nn.Linear(shape[1], shape[0])
        module = nn.ModuleDict({"visual": model.visual}).eval()
        super().__init__(family, folder, module, {"vision": model.visual})
        module["head"] = self._head
        self.parameters |= {HEAD_WEIGHT: self._head.weight, HEAD_BIAS: self._head.bias}
        self._transform = transform_for(config, folder, model.visual.image_size)

    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess as open_clip does: RGB images -> (batch, 3, height, width), float32."""
        with blaming_processor(self.folder, "images"):
            return torch.stack([self._transform(image) for image in images])

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images: (batch, width), unit length."""
        pixels = pixels.contiguous(memory_format=self.layout)
        return normalize(self.towers["vision"](pixels), dim=-1)

    def tokens(self, prompts: list[str]) -> Tensors:
        """There is no text tower."""
        raise CheckpointError(f"{self.folder}: a tower with a head reads no prompts")

    def text_features(self, tokens: Tensors) -> Tensor:
        """There is no text tower."""
        raise CheckpointError(f"{self.folder}: a tower with a head reads no prompts")

    def head_rows(self) -> Tensor:
        """The head's weights and its biases: (rows, features + 1)."""
        return torch.cat([self._head.weight, self._head.bias[:, None]], dim=1)

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Score features, (batch, features), by rows of `head_rows`: (batch, rows)."""
        return images @ classes[:, :-1].T + classes[:, -1]

    def rows_for(self, source: str, classes: int, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Row indices of the head for each class; without ``rows`` the classes must be those of the
        head.
        """
        chosen = list(rows) or [(row,) for row in range(self.classes)]
        if len(chosen) != classes or max(max(indices) for indices in chosen) >= self.classes:
            raise DataError(
                f"{source}: has {classes} classes, and the model's head {self.classes}; their"
                " correspondence is known for ImageNet and its shifts, given by their short names"
            )
        return [torch.tensor(indices) for indices in chosen]


def group_logits(logits: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Give each class of a source the largest logit of its rows: (batch, rows of the head) ->
    (batch, classes).
    """
    if all(len(indices) == 1 for indices in rows):
        return logits[:, torch.cat(list(rows)).to(logits.device)]
    return torch.stack(
        [logits[:, indices.to(logits.device)].amax(dim=1) for indices in rows], dim=1
    )
