"""Small real OpenCLIP models, saved as open_clip saves them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from tests.support.tiny_clip import stir, tiny_processor, vocabulary

VISION = {
    "layers": 3,
    "width": 32,
    "head_width": 16,
    "mlp_ratio": 2.0,
    "patch_size": 8,
    "image_size": 32,
}
TEXT = {
    "layers": 3,
    "width": 32,
    "heads": 2,
    "mlp_ratio": 2.0,
    "context_length": 32,
    "vocab_size": len(vocabulary()),
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

#: Tiny models of every kind of tower OpenCLIP builds: changes to the plain `model_config`.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {"quick_gelu": True},
    "custom text": {"custom_text": True},
    "resnet": {"vision": {"layers": [1, 2, 1, 1], "width": 8, "head_width": 16, "image_size": 64}},
    "timm vit": {"vision": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}},
    "timm siglip": {
        "vision": {
            "timm_model_name": "test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 160,
        },
        "text": {
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10.0,
    },
    "timm convnext": {
        "vision": {"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 160}
    },
    "timm efficientnet": {
        "vision": {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "image_size": 64}
    },
    "coca": {
        "vision": {
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 4,
            "output_tokens": True,
        },
        "text": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 32,
            "vocab_size": len(vocabulary()),
            "width": 16,
            "heads": 2,
            "layers": 2,
            "attn_pooler_heads": 2,
        },
        "custom_text": True,
    },
    "layer scale": {"vision": {"ls_init_value": 0.1}, "text": {"ls_init_value": 0.1}},
}


def bert_text(folder: Path) -> dict[str, Any]:
    """Settings of a Hugging Face text tower, whose configuration is saved to a folder."""
    from transformers import BertConfig

    width = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertConfig(vocab_size=len(vocabulary()), max_position_embeddings=32, **width).save_pretrained(
        folder
    )
    return {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp"}


def model_config(*, vision: Any = None, text: Any = None, **changes: Any) -> dict[str, Any]:
    """A ``model_cfg``; ``vision`` and ``text`` change single settings."""
    towers = {"vision_cfg": {**VISION, **(vision or {})}, "text_cfg": {**TEXT, **(text or {})}}
    return {"embed_dim": 16, **towers, **changes}


def build(model_cfg: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """A model with random weights, norms and biases among them, in eval mode."""
    settings = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    torch.manual_seed(seed)
    kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CLIP
    custom = model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]
    if custom and kind is open_clip.CLIP:
        kind = open_clip.CustomTextCLIP
    model: torch.nn.Module = kind(**settings)
    if kind is open_clip.CoCa:  # open_clip leaves what lies in memory there
        torch.nn.init.normal_(model.text_decoder.text_projection)
    stir(model, 0.1)
    return model.eval()


def save(model: torch.nn.Module, model_cfg: dict[str, Any], folder: Path) -> Path:
    """Save weights, configuration and the tiny tokenizer, which open_clip then reads from the
    folder."""
    folder.mkdir(parents=True)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    tiny_processor().tokenizer.save_pretrained(folder)
    text = {**model_cfg["text_cfg"], "hf_tokenizer_name": "acme/tiny"}
    config = {
        "model_cfg": {**model_cfg, "text_cfg": text},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def save_open_clip_pair(
    folder: Path, model_cfg: dict[str, Any], *, change: float = 0.01
) -> tuple[Path, Path]:
    """Save ``zeroshot`` and ``finetuned``: random weights, and the same with every entry moved a
    little."""
    model = build(model_cfg)
    paths = (folder / "zeroshot", folder / "finetuned")
    for path in paths:
        save(model, model_cfg, path)
        stir(model, change)
    return paths


def load(folder: Path) -> torch.nn.Module:
    """Load a folder with open_clip, which refuses missing and unexpected keys."""
    model: torch.nn.Module = open_clip.create_model(f"local-dir:{folder}")
    return model.eval()


@torch.no_grad()
def outputs(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit features of fixed noise and of fixed texts, and the logit scale."""
    generator = torch.Generator().manual_seed(5)
    size = open_clip.model.to_2tuple(model.visual.image_size)
    images = torch.randn(4, 3, *size, generator=generator)
    start, end = len(vocabulary()) - 2, len(vocabulary()) - 1
    texts = torch.arange(3 * TEXT["context_length"]).view(3, -1) % start
    texts[:, 0] = start
    texts[:, 9:] = end  # and as padding, as both tokenizers write it
    features = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
    return (*features, model.logit_scale.exp())
