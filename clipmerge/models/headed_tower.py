"""A vision tower of OpenAI's CLIP with a classification head in place of the text tower, as model
soups are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmerge.checkpoint.inputs import HEAD_BIAS, HEAD_WEIGHT
from clipmerge.errors import CheckpointError, DataError
from clipmerge.families import Family
from clipmerge.models.loading import blaming_processor, load_parameters
from clipmerge.models.open_clip import build_module, import_open_clip, transform_for
from clipmerge.types import Json, Shape

# a text tower that is built but not used
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


class HeadedTower:
    """An image classifier, float32, in eval mode; ``shape`` is that of the head's weight, (classes,
    features).
    """

    def __init__(self, family: Family, config: Json, folder: Path, shape: Shape) -> None:
        settings = deepcopy(config.get("model_cfg", config)) | {"text_cfg": _NO_TEXT}
        model = build_module(import_open_clip(), settings)
        if len(shape) != 2 or shape[1] != settings["embed_dim"]:
            raise CheckpointError(
                f"{folder}: the head has shape {shape}, the tower {settings['embed_dim']} features"
            )
        self.classes = shape[0]  # rows of the head
        self._head = nn.Linear(shape[1], shape[0])
        self.module = nn.ModuleDict({"visual": model.visual, "head": self._head}).eval()
        self._folder = folder
        self._transform = transform_for(config, folder, model.visual.image_size)
        named = {f"visual.{name}": parameter for name, parameter in model.visual.named_parameters()}
        self.parameters = {
            name: named[key] for name, key in family.by_canonical_name(named).items()
        }
        self.parameters |= {HEAD_WEIGHT: self._head.weight, HEAD_BIAS: self._head.bias}

    def load(self, read: Callable[[str], Tensor], source: str) -> None:
        """Load every weight."""
        load_parameters(self.parameters, read, source)

    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess as open_clip does: RGB images -> (batch, 3, height, width), float32."""
        with blaming_processor(self._folder, "images"):
            return torch.stack([self._transform(image) for image in images])

    def logits(self, pixels: Tensor) -> Tensor:
        """Score pixels by the head on features of unit length: (batch, classes of the head)."""
        scores: Tensor = self._head(normalize(self.module["visual"](pixels), dim=-1))
        return scores

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
