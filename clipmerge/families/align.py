"""ALIGN: EfficientNet for the images, whose batch norms have statistics, and BERT for the text."""

from clipmerge.families import Family
from clipmerge.families._towers import AROUND, BERT_TEXT, transformers_settings

_VISION = (
    (r"vision_model\.encoder\.blocks\.(\d+)\.", "vision.{}.conv"),
    (r"vision_model\.embeddings\.", "vision.embeddings"),
)

FAMILY = Family(
    name="ALIGN",
    model_type="align",
    rules=(*_VISION, *BERT_TEXT, *AROUND, (r"temperature$", "logit_scale")),
    roots=("vision_model.", "text_model.", "text_projection.", "temperature"),
    bare=("embeddings.", "encoder.", "pooler."),
    text_marks=("word_embeddings.",),
    settings=transformers_settings(
        vision={"hidden_act": "swish", "pooling_type": "mean", "batch_norm_eps": 0.001},
        text={"hidden_act": "gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-12},
        both={"projection_dim": 640},
    ),
    model_class="AlignModel",
)
