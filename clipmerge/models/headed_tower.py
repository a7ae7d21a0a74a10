"""Image towers with a classification head, of OpenCLIP (as WiSE-FT and model soups save them), of
transformers, or of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmerge.families import Family
from clipmerge.images.decoding import to_rgb
from clipmerge.models import ImageTextModel, explain_errors
from clipmerge.models.open_clip import build_module, import_open_clip, inference_transform
from clipmerge.types import Json

# a small text tower, because open_clip builds one that is not used
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


class HeadedTower(ImageTextModel):
    """An image classifier, which embeds images by a function of its library."""

    def __init__(
        self,
        family: Family,
        folder: Path,
        module: nn.Module,
        head: nn.Linear,
        embed: Callable[[Tensor], Tensor],
        prepare: Callable[[list[Image]], Tensor],
    ) -> None:
        """Wrap a module: ``prepare`` preprocesses images, ``embed`` embeds them."""
        super().__init__(family, folder, module)
        self.head = head
        self._embed = embed
        self._prepare = prepare

    def prepare(self, images: list[Image]) -> Tensor:
        """Preprocess images: (batch, 3, height, width)."""
        return self._prepare(list(map(to_rgb, images)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images for the head: (batch, width)."""
        return self._embed(pixels.contiguous(memory_format=self.layout))


def open_clip_classifier(
    family: Family, config: Json, folder: Path, rows: int, has_bias: bool
) -> HeadedTower:
    """Build a tower of OpenCLIP with a head on features of unit length."""
    settings = deepcopy(config.get("model_cfg", config)) | {"text_cfg": _NO_TEXT}
    visual = build_module(import_open_clip(), settings).visual
    head = nn.Linear(settings["embed_dim"], rows, bias=has_bias)
    return HeadedTower(
        family,
        folder,
        nn.ModuleDict({"visual": visual, "classification_head": head}).eval(),
        head,
        lambda pixels: normalize(visual(pixels), dim=-1),
        inference_transform(config, folder, visual.image_size),
    )


def transformers_classifier(
    family: Family, config: Json, folder: Path, rows: int, has_bias: bool
) -> HeadedTower:
    """Build a classifier of transformers, such as `CLIPForImageClassification`."""
    import transformers

    with explain_errors(f"{folder}: transformers cannot build the classifier"):
        parsed = transformers.AutoConfig.for_model(**config)
        parsed.num_labels = rows
        module: Any = transformers.AutoModelForImageClassification.from_config(parsed)
        module = module.float().eval()
        processor: Any = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )

    tower = HeadedTower(
        family,
        folder,
        module,
        module.classifier,
        lambda pixels: module(pixel_values=pixels).logits,
        lambda images: torch.as_tensor(
            processor(images, return_tensors="pt")["pixel_values"]
        ).float(),
    )
    module.classifier = nn.Identity()  # the library pools, and the head scores
    module.head = tower.head  # so that it goes to the device
    return tower


def timm_classifier(
    family: Family, config: Json, folder: Path, rows: int, has_bias: bool
) -> HeadedTower:
    """Build a timm model."""
    import timm

    with explain_errors(f"{folder}: timm cannot build its model"):
        arguments = config.get("model_args", {})
        module: Any = timm.create_model(config["architecture"], num_classes=rows, **arguments)
        module = module.float().eval()
        data: Any = timm.data
        settings = data.resolve_data_config(config.get("pretrained_cfg", {}), model=module)
        transform = data.create_transform(**settings)
    return HeadedTower(
        family,
        folder,
        module,
        module.get_classifier(),
        lambda pixels: module.forward_head(module.forward_features(pixels), pre_logits=True),
        lambda images: torch.stack([transform(image) for image in images]),
    )
