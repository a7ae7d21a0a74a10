"""AltCLIP: CLIP's vision tower, and XLM-RoBERTa followed by a transformation for the text."""

from clipmerge.families import Family
from clipmerge.families._towers import (
    AROUND,
    BARE,
    CLIP_VISION,
    CLIP_VIT,
    ROOTS,
    blocks_of_bert,
    transformers_settings,
)

_TEXT = (
    *blocks_of_bert(r"text_model\.roberta\."),
    (r"text_model\.roberta\.embeddings\.", "text.embeddings"),
    (r"text_model\.pre_LN\.", "text.norm"),
    (r"text_model\.(?:roberta\.pooler|transformation)\.", "text.pooler"),
)

FAMILY = Family(
    name="AltCLIP",
    model_type="altclip",
    rules=(*CLIP_VISION, *_TEXT, *AROUND),
    roots=ROOTS,
    bare=(*BARE, "roberta.", "transformation.", "pre_LN."),
    text_marks=("word_embeddings.",),
    # transformers 5 writes "layer" in both towers, has "layers" in both in memory, and reads either
    renames=(
        (r"^text_model\.roberta\.encoder\.layers\.", "text_model.roberta.encoder.layer."),
        (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),
    ),
    settings=transformers_settings(
        vision=CLIP_VIT,
        text={"hidden_act": "gelu", "num_attention_heads": 16, "layer_norm_eps": 1e-5},
        both={"projection_dim": 768},
    ),
    model_class="AltCLIPModel",
)
