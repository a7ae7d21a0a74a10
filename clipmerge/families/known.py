"""The known families; to add one, add an entry to `FAMILIES`."""

from __future__ import annotations

from dataclasses import replace

from clipmerge.families.family import Family

#: Both towers, one tower, or an image classifier made from it.
CLIP = Family(name="CLIP", model_type="clip", model_class="CLIPModel")
#: SigLIP 2 at a fixed resolution is published under this family's ``model_type`` too.
SIGLIP = Family(
    name="SigLIP",
    model_type="siglip",
    marks=("logit_bias", "vision_model."),
    model_class="SiglipModel",
    reads_padding=True,
)
#: ViT, ResNet and timm vision towers, its own and Hugging Face's text towers, CoCa.
OPEN_CLIP = Family(
    name="OpenCLIP",
    renames=(
        # its own text tower may be separate, under ``text.``, with the same parameters
        (
            r"^text\.(?=transformer\.resblocks\.|token_embedding\.|positional_embedding$|cls_emb$|ln_final\.|text_proj)",
            "",
        ),
        # the two halves of a block of T5
        (r"(\.encoder\.block\.\d+)\.layer\.0\.", r"\1.attention."),
        (r"(\.encoder\.block\.\d+)\.layer\.1\.", r"\1.mlp."),
    ),
    model="open_clip",
    weights="open_clip_model.safetensors",
    config="open_clip_config.json",
)
#: Image towers of timm, such as ``vit_base_patch32_clip_224``, with their heads.
TIMM = Family(
    name="timm",
    renames=((r"^(?:head\.fc|head|fc)\.(?=weight$|bias$)", "classifier."),),
    model="headed_tower",
)
#: Two towers of any kind, such as ViT and BERT, which keep the names of their own libraries.
VISION_TEXT_DUAL_ENCODER = Family(
    name="VisionTextDualEncoder",
    model_type="vision-text-dual-encoder",
    renames=(
        # a CLIP tower, as transformers 4 wrote it
        (r"^(vision|text)_model\.\1_model\.", r"\1_model."),
        # ViT and similar models: transformers 5 uses these names in memory, and the old ones in
        # files
        (
            r"^vision_model\.layers\.(\d+)\.mlp\.fc1\.",
            r"vision_model.encoder.layer.\1.intermediate.dense.",
        ),
        (
            r"^vision_model\.layers\.(\d+)\.mlp\.fc2\.",
            r"vision_model.encoder.layer.\1.output.dense.",
        ),
        (r"^vision_model\.layers\.", "vision_model.encoder.layer."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)q_proj\.", r"\1attention.query."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)k_proj\.", r"\1attention.key."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)v_proj\.", r"\1attention.value."),
        (r"^(vision_model\.encoder\.layer\.\d+\.attention\.)o_proj\.", r"\1output.dense."),
    ),
    model_class="VisionTextDualEncoderModel",
)

#: In the order in which they are tried where there is no config; CLIP is what no mark tells.
FAMILIES = (
    SIGLIP,
    Family(
        name="AltCLIP",
        model_type="altclip",
        marks=("roberta.encoder.",),
        # transformers 5 writes "layer" in both towers, has "layers" in both in memory, and reads
        # either
        renames=(
            (r"^text_model\.roberta\.encoder\.layers\.", "text_model.roberta.encoder.layer."),
            (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),
        ),
        model_class="AltCLIPModel",
    ),
    Family(
        name="ALIGN",
        model_type="align",
        marks=("vision_model.encoder.blocks.",),
        model_class="AlignModel",
    ),
    Family(
        name="Chinese-CLIP",
        model_type="chinese_clip",
        marks=("text_model.encoder.layer.", "vision_model.pre_layrnorm."),
        model_class="ChineseCLIPModel",
    ),
    # any aspect ratio (NaFlex): SigLIP's names, images as sequences of patches
    replace(SIGLIP, name="SigLIP 2", model_type="siglip2", model_class="Siglip2Model"),
    # Meta's worldwide model: CLIP's architecture and names, its own configuration
    replace(CLIP, name="MetaCLIP 2", model_type="metaclip_2", model_class="MetaClip2Model"),
    replace(VISION_TEXT_DUAL_ENCODER, marks=("text_model.encoder.layer.", "vision_model.")),
    CLIP,
    OPEN_CLIP,
    TIMM,
)
