"""OpenAI's CLIP in transformers' format: both towers, one tower, or an image classifier made from it."""

from collections.abc import Callable, Mapping
from typing import Any

from clipmerge.families import Family, Settings
from clipmerge.families._towers import AROUND, BARE, CLIP_TEXT, CLIP_VISION, CLIP_VIT, ROOTS, transformers_settings

_MODEL_TYPES = {"clip": "full", "clip_vision_model": "vision", "clip_text_model": "text"}


def clip_settings(model_types: Mapping[str, str]) -> Callable[[dict[str, Any]], Settings]:
    """Make the function that reads the settings of a family with CLIP's architecture and defaults."""
    text = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8}
    words = {"eos_token_id": 49407, "vocab_size": 49408}
    read = transformers_settings(model_types, vision=CLIP_VIT, text=text | words, both={"projection_dim": 512})

    def settings(config: dict[str, Any]) -> Settings:
        values = read(config)
        words = values["text"].pop("vocab_size")
        if values["text"]["eos_token_id"] == 2 and isinstance(words, int):
            # as OpenAI's configurations say; transformers then takes the largest token, which is the last word
            values["text"]["eos_token_id"] = words - 1
        return values

    return settings


FAMILY = Family(
    name="CLIP",
    model_types=_MODEL_TYPES,
    rules=(*CLIP_VISION, *CLIP_TEXT, *AROUND),
    roots=ROOTS,
    bare=BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=clip_settings(_MODEL_TYPES),
    model_class="CLIPModel",
    rank=0,
)
