"""LoRA adapters, saved by peft as after training."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel

LINEAR = ["q_proj", "fc1", "visual_projection"]


def save_adapter(base: Path, folder: Path, model: Any = CLIPModel, **options: Any) -> Path:
    """Save an adapter with all tensors moved, as if by training."""
    torch.manual_seed(0)
    settings = {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, **options}
    adapted = get_peft_model(model.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return folder


def configure(adapter: Path, **changes: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return adapter


Q = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
