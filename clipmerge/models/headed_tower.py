"""Image towers with a classification head, of OpenCLIP (as WiSE-FT and model soups save them), of
transformers, or of timm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmerge.errors import DataError
from clipmerge.families import Family
from clipmerge.images.classes import positions_among
from clipmerge.images.decoding import to_rgb
from clipmerge.models import ImageTextModel, explain_errors
from clipmerge.models.classifier import Classifier
from clipmerge.models.open_clip import build_module, import_open_clip, inference_transform
from clipmerge.types import Json, Names

# open_clip builds a text tower, too, which is not used
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


class HeadedTower(ImageTextModel):
    """An image classifier, which embeds images by a function of its library.

    Attributes:
        classes: Number of the head's rows.
    """

    has_head: ClassVar[bool] = True

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
        self.classes = head.out_features
        self._head, self._embed, self._prepare = head, embed, prepare

    def prepare(self, images: list[Image]) -> Tensor:
        """Preprocess images: (batch, 3, height, width)."""
        return self._prepare(list(map(to_rgb, images)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images for the head: (batch, width)."""
        return self._embed(pixels.contiguous(memory_format=self.layout))

    def head_rows(self) -> Tensor:
        """Return the head's weights and its biases: (rows, width + 1)."""
        bias = self._head.bias
        if bias is None:
            bias = torch.zeros_like(self._head.weight[:, 0])
        return torch.cat([self._head.weight, bias[:, None]], dim=1)

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Score features, (batch, width), by rows of `head_rows`: (batch, rows)."""
        return images @ classes[:, :-1].T + classes[:, -1]

    def classifier(self, source: str, names: Names, rows: Sequence[Sequence[int]]) -> Classifier:
        """Match the head's rows with the classes of a source.

        If ``rows`` has the numbers of each class's rows, it decides. Otherwise they are matched by
        name, if rows and classes have the same names, or by their order.
        """
        classes = len(names)
        by_name = positions_among(names, self.row_names) or range(self.classes)
        chosen = rows or [(row,) for row in by_name]
        if len(chosen) != classes or max(map(max, chosen)) >= self.classes:
            raise DataError(
                f"{source}: has {classes} classes, and the model's head {self.classes}; their"
                " correspondence is known for ImageNet and its shifts, given by their short names"
            )
        most = max(map(len, chosen))  # a class with fewer rows repeats its first
        padded = [[*each, *[each[0]] * (most - len(each))] for each in chosen]
        return Head(self, torch.tensor(padded))


class Head(Classifier):
    """Scores by a head: a class's logit is the largest of its ``rows``, (classes, rows of each)."""

    def __init__(self, model: HeadedTower, rows: Tensor) -> None:
        super().__init__(model, len(rows), moves=True)
        self._tower = model
        self._rows = rows

    def class_features(self, prompts: Tensor | None = None) -> Tensor:
        """Return the weights and biases of all rows, which cost nothing, unlike prompts."""
        return self._tower.head_rows()

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Score images against classes: (images, classes)."""
        logits = self.model.logits(image_features, class_features)
        self._rows = self._rows.to(logits.device)  # copied once
        return logits[:, self._rows].amax(dim=2)


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
        module = transformers.AutoModelForImageClassification.from_config(parsed).float().eval()
        processor: Any = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )

    def embed(pixels: Tensor) -> Tensor:
        features: Tensor = module(pixel_values=pixels).logits
        return features

    def prepare(images: list[Image]) -> Tensor:
        return torch.as_tensor(processor(images, return_tensors="pt")["pixel_values"]).float()

    tower = HeadedTower(family, folder, module, module.classifier, embed, prepare)
    module.classifier = nn.Identity()  # the library pools, and the head scores
    module.head = tower._head  # so that it goes to the device
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
