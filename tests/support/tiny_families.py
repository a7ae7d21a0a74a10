"""Small real models of every family, random weights, and the inputs that they take."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.support.tiny_clip import stir, tiny_processor

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT = {
    **_SIZES,
    "vocab_size": 64,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {**_SIZES, "image_size": 16, "patch_size": 8}
_PATCHES = {**_SIZES, "patch_size": 4, "num_patches": 16}
_STAGES = {
    "kernel_sizes": [3, 3, 3],
    "in_channels": [32, 8, 16],
    "out_channels": [8, 16, 32],
    "strides": [1, 2, 2],
}
_EFFICIENT_NET = {
    **_STAGES,
    "image_size": 16,
    "width_coefficient": 1.0,
    "depth_coefficient": 0.5,
    "depth_divisor": 4,
    "hidden_dim": 32,
    "num_block_repeats": [1, 2, 2],
    "expand_ratios": [1, 6, 6],
    "depthwise_padding": [],
}
_LETTERS = list(string.ascii_lowercase + ".,")
_BERT = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
]
_XLM = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *_LETTERS, "<mask>"]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *_LETTERS]
_SQUARE = {"height": 16, "width": 16}


def _clip_images() -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SQUARE)


def _bert() -> Any:
    return hf.BertTokenizer(
        vocab={word: index for index, word in enumerate(_BERT)}, model_max_length=24
    )


def _xlm_roberta() -> Any:
    return hf.XLMRobertaTokenizer(
        vocab=[(piece, -float(i)) for i, piece in enumerate(_XLM)], model_max_length=22
    )


def _gemma() -> Any:
    vocab = {piece: index for index, piece in enumerate(_GEMMA)}
    return hf.Siglip2Tokenizer(vocab=vocab, merges=[], model_max_length=24, padding_side="right")


def _config(
    config: Any, *, vision: dict[str, Any] = _VISION, text: dict[str, Any] = _TEXT, **more: Any
) -> Any:
    return config(vision_config=vision, text_config=text, **more)


def _dual(vision: Any, text: Any) -> Any:
    return hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)


@dataclass(frozen=True)
class Tiny:
    """One kind of model, and functions that make its configuration and its processor."""

    family: str
    model: Any
    config: Callable[[], Any]
    processor: Callable[[], Any] | None = None  # a classifier has its base's
    base: str | None = None  # the kind of the model that it was made from, if it is another

    def make(self) -> Any:
        """Build it with random weights in eval mode; norms and statistics are moved from their
        defaults too."""
        torch.manual_seed(0)
        model = self.model(self.config()).eval()
        stir(model, 0.1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 4:  # else a convolutional tower answers all images alike
                    parameter.mul_(8)
        return model

    def inputs(self) -> dict[str, Tensor]:
        """Random inputs of the whole model."""
        generator = torch.Generator().manual_seed(5)
        texts = {"input_ids": torch.randint(3, 60, (3, 9), generator=generator)}
        if "siglip2" in self.model.__name__.lower():
            images = {
                "pixel_values": torch.randn(2, 16, 48, generator=generator),
                "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int32),
                "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
            }
        else:
            images = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        return images if "Classification" in self.model.__name__ else {**images, **texts}

    @torch.no_grad()
    def outputs(self, model: Any) -> Tensor:
        """Its outputs for these inputs, float64: images against texts or classes."""
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.inputs().items()}
        output = model.double().eval()(**inputs)
        return output.logits if hasattr(output, "logits") else output.logits_per_image


TINY: dict[str, Tiny] = {
    "CLIP": Tiny(
        "CLIP", hf.CLIPModel, lambda: _config(hf.CLIPConfig, projection_dim=16),
        lambda: hf.CLIPProcessor(_clip_images(), tiny_processor().tokenizer),
    ),
    "MetaCLIP2": Tiny(
        "MetaCLIP 2", hf.MetaClip2Model, lambda: _config(hf.MetaClip2Config, projection_dim=16),
        lambda: hf.CLIPProcessor(_clip_images(), _xlm_roberta()),
    ),
    "SigLIP": Tiny(
        "SigLIP", hf.SiglipModel, lambda: _config(hf.SiglipConfig),
        lambda: hf.SiglipProcessor(hf.SiglipImageProcessor(size=_SQUARE), _gemma()),
    ),
    "SigLIP2": Tiny(
        "SigLIP 2", hf.Siglip2Model, lambda: _config(hf.Siglip2Config, vision=_PATCHES),
        lambda: hf.Siglip2Processor(hf.Siglip2ImageProcessor(patch_size=4, max_num_patches=16), _gemma()),
    ),
    "ChineseCLIP": Tiny(
        "Chinese-CLIP", hf.ChineseCLIPModel, lambda: _config(hf.ChineseCLIPConfig, projection_dim=16),
        lambda: hf.ChineseCLIPProcessor(hf.ChineseCLIPImageProcessor(size=_SQUARE, crop_size=_SQUARE), _bert()),
    ),
    "AltCLIP": Tiny(
        "AltCLIP", hf.AltCLIPModel,
        lambda: _config(hf.AltCLIPConfig, text={**_TEXT, "project_dim": 24, "pad_token_id": 1}, projection_dim=16),
        lambda: hf.AltCLIPProcessor(_clip_images(), _xlm_roberta()),
    ),
    "ALIGN": Tiny(
        "ALIGN", hf.AlignModel, lambda: _config(hf.AlignConfig, vision=_EFFICIENT_NET, projection_dim=32),
        lambda: hf.AlignProcessor(hf.EfficientNetImageProcessor(size=_SQUARE, crop_size=_SQUARE), _bert()),
    ),
    "ViT+BERT": Tiny(
        "VisionTextDualEncoder", hf.VisionTextDualEncoderModel,
        lambda: _dual(hf.ViTConfig(**_VISION), hf.BertConfig(**_TEXT)),
        lambda: hf.VisionTextDualEncoderProcessor(hf.ViTImageProcessor(size=_SQUARE), _bert()),
    ),
    "DINOv2+RoBERTa": Tiny(
        "VisionTextDualEncoder", hf.VisionTextDualEncoderModel,
        lambda: _dual(hf.Dinov2Config(**{**_VISION, "mlp_ratio": 2}), hf.RobertaConfig(**_TEXT)),
        lambda: hf.VisionTextDualEncoderProcessor(_clip_images(), _xlm_roberta()),
    ),
    "SigLIP classifier": Tiny(
        "SigLIP", hf.SiglipForImageClassification, lambda: _config(hf.SiglipConfig, num_labels=3),
        base="SigLIP",
    ),
    "CLIP classifier": Tiny(
        "CLIP", hf.CLIPForImageClassification,
        lambda: _config(hf.CLIPConfig, projection_dim=16, num_labels=3),
        base="CLIP",
    ),
}  # fmt: skip


def save_pair(name: str, folder: Path) -> tuple[Path, Path]:
    """Save ``zeroshot`` and ``finetuned`` of a kind; a classifier's tower comes from its base."""
    tiny = TINY[name]
    paths = (folder / "zeroshot", folder / "finetuned")
    base, finetuned = TINY[tiny.base or name].make(), tiny.make()
    base.save_pretrained(paths[0])
    TINY[tiny.base or name].processor().save_pretrained(paths[0])
    tensors = base.state_dict()
    if tiny.base:
        tensors = {key: value for key, value in tensors.items() if key.startswith("vision_")}
    finetuned.load_state_dict(tensors, strict=not tiny.base)
    stir(finetuned, 0.02)
    finetuned.save_pretrained(paths[1])
    if tiny.processor:
        tiny.processor().save_pretrained(paths[1])
    return paths
