"""Models with two towers of the library transformers; features are computed in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.files.side_files import PROCESSORS
from clipmerge.images.decoding import to_rgb
from clipmerge.models import ImageTextModel, explain_errors
from clipmerge.types import Json, Tensors


class TransformersClip(ImageTextModel):
    """A two-tower model of transformers."""

    def __init__(self, family: Family, config: Json, folder: Path) -> None:
        self.processor = _load_processor(folder)
        with explain_errors(f"{folder}: transformers cannot build the model of its configuration"):
            module = _build_uninitialised(getattr(transformers, family.model_class), config)
        super().__init__(family, folder, module)
        self._reads_padding = family.reads_padding
        # its text tower pools the last token of a text, which attends only to the tokens before it
        self._sees_no_padding = type(module.text_model).__name__ in (
            "CLIPTextModel",
            "CLIPTextTransformer",
        )

    def prepare(self, images: list[Image]) -> Tensor:
        """Preprocess images: (batch, 3, height, width); for SigLIP 2 see `_pack_patches`."""
        processor = self.processor.image_processor
        if not getattr(processor, "do_convert_rgb", None):
            images = list(map(to_rgb, images))
        processed = processor(images, return_tensors="pt")
        if "spatial_shapes" in processed:
            return _pack_patches(processed)
        return torch.as_tensor(processed["pixel_values"], dtype=torch.float32)

    def tokenize(self, prompts: list[str]) -> Tensors:
        """Tokenise prompts: (prompts, length); no mask if the family reads padding as text."""
        encoded = self.processor.tokenizer(
            prompts,
            padding="max_length" if self._reads_padding else True,
            truncation=True,
            max_length=self._text_length(),
            return_tensors="pt",
        )
        names = ["input_ids"] if self._reads_padding else ["input_ids", "attention_mask"]
        return {name: encoded[name] for name in names}

    def _text_length(self) -> int:
        """Count the positions of the text tower. Those of RoBERTa begin after its padding index."""
        for name, embedding in self.module.text_model.named_modules():
            if name.endswith(("position_embedding", "position_embeddings")):
                offset = 0 if embedding.padding_idx is None else embedding.padding_idx + 1
                return int(embedding.num_embeddings) - int(offset)
        return int(self.processor.tokenizer.model_max_length)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images: (batch, width), unit length."""
        if pixels.ndim == 4:
            inputs = {"pixel_values": pixels.contiguous(memory_format=self.layout)}
        else:
            inputs = _unpack_patches(pixels)
        try:
            output = self.module.get_image_features(**inputs)
        except ValueError as error:  # images of another size than the model's
            raise CheckpointError(
                f"{self.folder}: its image processor does not fit its model ({error}); copy the"
                " base model's files"
            ) from None
        return normalize(output.pooler_output, dim=-1)

    def text_features(self, tokens: Tensors) -> Tensor:
        """Embed prompts: (prompts, width), unit length."""
        if self._sees_no_padding and tokens["input_ids"].device.type != "cpu":
            # with a mask the CPU waits for the card, twice in a pass, to see if it hides anything
            tokens = {"input_ids": tokens["input_ids"]}
        return normalize(self.module.get_text_features(**tokens).pooler_output, dim=-1)


build = TransformersClip


def _pack_patches(processed: Mapping[str, Any]) -> Tensor:
    """Join patches and the image's height and width in patches: (batch, patches, entries + 2),
    float32.
    """
    patches = torch.as_tensor(processed["pixel_values"], dtype=torch.float32)
    shapes = torch.as_tensor(processed["spatial_shapes"], dtype=torch.float32)
    shapes = shapes[:, None].expand(-1, patches.shape[1], -1)  # the same for every patch
    return torch.cat([patches, shapes], dim=-1)


def _unpack_patches(pixels: Tensor) -> dict[str, Tensor]:
    """Undo `_pack_patches`: make the arguments of the vision tower."""
    patches, shapes = torch.split(pixels, [pixels.shape[-1] - 2, 2], dim=-1)
    shapes = shapes[:, 0].round().long()
    positions = torch.arange(pixels.shape[1], device=pixels.device)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": (positions < shapes.prod(1, keepdim=True)).int(),  # padding follows
        "spatial_shapes": shapes,
    }


def _build_uninitialised(model_class: Any, config: Json) -> Any:
    """Build a model in float32 and eval mode, with uninitialised weights. To initialise them would
    take as long as to read them.
    """
    with init_empty_weights():
        module = model_class(model_class.config_class.from_dict(config))
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
    return module.float().eval()


def _load_processor(folder: Path) -> Any:
    """Load the processor for images and text from a checkpoint's folder."""
    needed = f"{' or '.join(PROCESSORS)} and the tokenizer's files"
    with explain_errors(
        f"{folder}: its processor cannot be loaded", f"measuring needs {needed} beside the weights"
    ):
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise CheckpointError(
            f"{folder}: holds {type(processor).__name__}, not a processor for images and text; copy"
            " the base model's processor and tokenizer files into it"
        )
    return processor
