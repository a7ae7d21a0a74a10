"""OpenAI's CLIP in transformers' format: both towers, one tower, or an image classifier made from
it.
"""

from typing import Any

from clipmerge.families import Family, Settings
from clipmerge.families._towers import (
    AROUND,
    BARE,
    CLIP_TEXT,
    CLIP_VISION,
    CLIP_VIT,
    ROOTS,
    transformers_settings,
)

_TEXT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8}
_WORDS = {"eos_token_id": 49407, "vocab_size": 49408}
_stated = transformers_settings(vision=CLIP_VIT, text=_TEXT | _WORDS, both={"projection_dim": 512})


def _settings(config: dict[str, Any]) -> Settings:
    values = _stated(config)
    words = values["text"].pop("vocab_size")
    if values["text"]["eos_token_id"] == 2 and isinstance(words, int):
        # as OpenAI's configurations say; transformers then takes the largest token, which is the
        # last word
        values["text"]["eos_token_id"] = words - 1
    return values


FAMILY = Family(
    name="CLIP",
    model_type="clip",
    rules=(*CLIP_VISION, *CLIP_TEXT, *AROUND),
    roots=ROOTS,
    bare=BARE,
    text_marks=("token_embedding.", "final_layer_norm."),
    settings=_settings,
    model_class="CLIPModel",
    rank=0,
)
