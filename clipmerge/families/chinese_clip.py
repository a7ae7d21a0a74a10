"""Chinese-CLIP: CLIP's vision tower, a Chinese BERT for the text."""

from clipmerge.families import Family
from clipmerge.families._towers import (
    AROUND,
    BARE,
    BERT_TEXT,
    CLIP_VISION,
    CLIP_VIT,
    ROOTS,
    transformers_settings,
)

FAMILY = Family(
    name="Chinese-CLIP",
    model_type="chinese_clip",
    rules=(*CLIP_VISION, *BERT_TEXT, *AROUND),
    roots=ROOTS,
    bare=(*BARE, "pooler."),
    text_marks=("word_embeddings.",),
    settings=transformers_settings(
        vision=CLIP_VIT,
        text={"hidden_act": "gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-12},
        both={"projection_dim": 512},
    ),
    model_class="ChineseCLIPModel",
)
