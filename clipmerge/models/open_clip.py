"""Models of open_clip with two towers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from clipmerge.errors import CheckpointError
from clipmerge.families import Family
from clipmerge.models import ImageTextModel, explain_errors
from clipmerge.types import Json, Tensors


class OpenClip(ImageTextModel):
    """A model of open_clip."""

    def __init__(self, family: Family, config: Json, folder: Path) -> None:
        library = import_open_clip()
        model_cfg: Json = config.get("model_cfg", config)
        module = build_module(library, model_cfg)
        super().__init__(family, folder, module)
        self._prepare = inference_transform(config, folder, module.visual.image_size)
        self._tokenize = _load_tokenizer(library, model_cfg, folder)

    def prepare(self, images: list[Image]) -> Tensor:
        """Preprocess images like open_clip: (batch, 3, height, width)."""
        return self._prepare(images)

    def tokenize(self, prompts: list[str]) -> Tensors:
        """Pad and cut prompts to the text tower's length: ``input_ids`` (prompts, length)."""
        return {"input_ids": torch.as_tensor(self._tokenize(prompts))}

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images: (batch, width), unit length."""
        pixels = pixels.contiguous(memory_format=self.layout)
        features: Tensor = self.module.encode_image(pixels, normalize=True)
        return features

    def text_features(self, tokens: Tensors) -> Tensor:
        """Embed prompts: (prompts, width), unit length."""
        features: Tensor = self.module.encode_text(tokens["input_ids"], normalize=True)
        return features


build = OpenClip


def import_open_clip() -> Any:
    """Import open_clip, or say how to install it."""
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(
            f"measuring and evaluating an OpenCLIP checkpoint needs open_clip_torch ({error});"
            " install clipmerge[open-clip]"
        ) from None
    return open_clip


def build_module(library: Any, model_cfg: Json) -> Any:
    """Build the model that ``open_clip.create_model`` builds, without loading pretrained towers."""
    settings = deepcopy(model_cfg)
    vision, text = (settings.get(f"{side}_cfg") for side in ("vision", "text"))
    if not (isinstance(vision, dict) and isinstance(text, dict)):
        raise CheckpointError("open_clip_config.json has no model_cfg with vision_cfg and text_cfg")
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    kind = library.CLIP
    if settings.pop("custom_text", False) or "hf_model_name" in text:
        kind = library.CoCa if "multimodal_cfg" in settings else library.CustomTextCLIP
    with explain_errors("open_clip cannot build the model of open_clip_config.json"):
        return kind(**settings).float().eval()


def inference_transform(
    config: Json, folder: Path, image_size: Any
) -> Callable[[list[Image]], Tensor]:
    """Make open_clip's preprocessing for inference."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    stated = config.get("preprocess_cfg") or {}
    with explain_errors(f"{folder}: its images cannot be prepared"):
        settings = merge_preprocess_dict(PreprocessCfg(), {**stated, "size": image_size})
        transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    return lambda images: torch.stack([transform(image) for image in images])


def _load_tokenizer(library: Any, model_cfg: Json, folder: Path) -> Any:
    """Load the tokenizer that ``open_clip.get_tokenizer`` loads, from the folder's own files."""
    text = model_cfg.get("text_cfg") or {}
    name = text.get("hf_tokenizer_name")
    length = text.get("context_length", 77)
    options = text.get("tokenizer_kwargs") or {}
    advice = f"copy the files of {name or 'CLIP'}'s tokenizer beside the weights"
    with explain_errors(f"{folder}: its tokenizer cannot be loaded", advice):
        if not name:
            return library.SimpleTokenizer(context_length=length, **options)
        return library.tokenizer.HFTokenizer(
            str(folder),
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            # options that allow code give this argument twice, which is an error
            trust_remote_code=False,
            **options,
        )
