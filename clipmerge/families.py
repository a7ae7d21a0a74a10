"""Families of models: the names of their parameters, and the layer of each parameter.

To add a family, add an entry to `FAMILIES`; `tests/families` has the requirements for every family.
A *canonical name* is the one spelling of a parameter that clipmerge uses; the output keeps the
spelling of its sources. Layers are named by module path: `vision.3.attn`, `text.norm`,
`logit_scale`. The first word of a path gives the tower, and words such as ``layers.3`` give the
block. Keywords give the half of a block, attention or MLP; a parameter without any is in ``conv``.
Outside the blocks the first module gives the part; an unknown module is a layer of its own name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from clipmerge.errors import CheckpointError
from clipmerge.layers import HEAD
from clipmerge.types import Json, Names

Layout = Literal["transformers", "open-clip", "timm"]


def is_open_clip(keys: Iterable[str]) -> bool:
    """Whether keys are in OpenCLIP's layout."""
    return any(key.startswith("visual.") or ".resblocks." in key for key in keys)


# Parameters of transformers' models outside the towers.
_AROUND = ("visual_projection.", "text_projection.", "classifier.", "logit_", "temperature")
_TOWERS = ("vision_model.", "text_model.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """What is known of one family of models: names of parameters, configuration and weights.

    Attributes:
        name: Name in messages.
        layout: Layout of its keys.
        model_type: ``model_type`` in a config, if it has one; a tower's ends with ``_vision_model``
            or ``_text_model``.
        marks: Parts of keys by which the family is recognised without a config; all must occur.
        renames: Regexes and replacements that turn other spellings into the canonical one, applied
            to every key in order.
        model: Module of `clipmerge.models` with the forward pass.
        model_class: transformers' class of the full model.
        reads_padding: Whether the text tower reads padding as text, so that prompts are padded to
            its full length.
        weights: The file that the family's library reads unsharded weights from.
        config: The file that describes the model.
    """

    name: str
    layout: Layout = "transformers"
    model_type: str | None = None
    marks: Names = ()
    renames: tuple[tuple[str, str], ...] = ()
    model: str = "transformers_clip"
    model_class: str = ""
    reads_padding: bool = False
    weights: str = "model.safetensors"
    config: str = "config.json"

    def by_canonical_name(self, keys: Collection[str], source: str = "the model") -> dict[str, str]:
        """Map canonical names to a file's keys.

        The keys of a transformers tower that was saved alone lack the tower's prefix
        (``embeddings.class_embedding``), so it is added.
        """
        prefix = ""
        if self.model_type and not any(key.startswith(_TOWERS) for key in keys):
            prefix = _prefix_of_tower(keys)
        named: dict[str, str] = {}
        for key in keys:
            name = key if key.startswith(_AROUND) else prefix + key
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in named:
                raise CheckpointError(
                    f"{source}: keys '{named[name]}' and '{key}' are the same parameter, {name}"
                )
            named[name] = key
        return named


def _prefix_of_tower(keys: Iterable[str]) -> str:
    """Find the prefix that the keys of a tower saved alone have in a whole model."""
    is_text = any("token_embedding" in key or "word_embedding" in key for key in keys)
    return "text_model." if is_text else "vision_model."


def tower_of(layers: Iterable[str]) -> Literal["full", "vision", "text"]:
    """Name the tower that layers belong to, ``"vision"`` or ``"text"``; ``"full"`` for both."""
    towers = {layer.partition(".")[0] for layer in layers}
    if {"vision", "text"} <= towers:
        return "full"
    return "vision" if "vision" in towers else "text"


def is_index_buffer(name: str) -> bool:
    """Whether a tensor holds indices of positions or token types, as only old checkpoints do."""
    return name.endswith((".position_ids", ".token_type_ids"))


def is_statistic(name: str) -> bool:
    """Whether a tensor is a batch norm's running mean or variance, which is interpolated but never
    masked.
    """
    return name.endswith((".running_mean", ".running_var"))


def is_variance(name: str) -> bool:
    """Whether a tensor is a batch norm's running variance, which cannot be negative."""
    return name.endswith(".running_var")


def is_counter(name: str) -> bool:
    """Whether a tensor counts a batch norm's training steps. It is copied, because inference
    ignores it.
    """
    return name.endswith(".num_batches_tracked")


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
    layout="open-clip",
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
    layout="timm",
    renames=((r"^(?:head\.fc|head|fc)\.(?=weight$|bias$)", "classifier."),),
    model="headed_tower",
)
#: Two towers of any kind, such as ViT and BERT, which keep the names of their own libraries.
VISION_TEXT_DUAL_ENCODER = Family(
    name="VisionTextDualEncoder",
    model_type="vision-text-dual-encoder",
    marks=("text_model.encoder.layer.", "vision_model."),
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

#: Tried in this order for weights without a config; those without any marks are CLIP's.
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
    VISION_TEXT_DUAL_ENCODER,
    CLIP,
    OPEN_CLIP,
    TIMM,
)


_TIMM_KEYS = {"cls_token", "pos_embed", "patch_embed.proj.weight"}
_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}


def family_of(config: Json | None, keys: Collection[str], source: str) -> Family:
    """Recognise a checkpoint's family by its keys, or by the config's ``model_type``.

    Example:
        >>> family_of(None, ["visual.conv1.weight"], "here").name
        'OpenCLIP'
    """
    if is_open_clip(keys):
        return OPEN_CLIP
    stated = config or {}
    if "pretrained_cfg" in stated or set(keys) >= _TIMM_KEYS:
        return TIMM
    model_type = stated.get("model_type")
    if model_type is None:
        return _family_by_marks(keys)
    whole = str(model_type).removesuffix("_vision_model").removesuffix("_text_model")
    family = _BY_MODEL_TYPE.get(whole)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise CheckpointError(f"{source}: is a '{model_type}' checkpoint; clipmerge merges {known}")
    return family


def _family_by_marks(keys: Collection[str]) -> Family:
    """Find the first family whose marks all occur in the keys."""
    text = "\n".join(keys)
    for family in FAMILIES:
        if family.marks and all(mark in text for mark in family.marks):
            return family
    return CLIP


# Patterns of names, with their tower, or their layer outside the towers.
_PLACES = (
    (r"^(?:logit_scale|temperature)", "logit_scale"),  # the second is ALIGN's
    (r"^logit_bias", "logit_bias"),
    (r"^class(?:ifier|ification_head)\.", HEAD),
    (r"^vision_model\.head\.", "vision.pooler"),  # of SigLIP
    (r"^text_decoder\.", "decoder"),
    (r"^(?:text[_.]|transformer\.|token_emb|positional_embedding|cls_emb|ln_final\.)", "text"),
)
_TOWERS_OF_BLOCKS = ("vision", "text", "decoder")
# The number of a block, or of a stage and a block in it.
_BLOCK = re.compile(
    r"(?:^|\.)(?:layers?|blocks?|resblocks|stages|cross_attn)\.?(\d+)"
    r"(?:\.(?:(?:layers?|blocks?)\.)?(\d+))?(?=\.)"
)
# The modules that make patches of an image; hybrid towers have blocks in them.
_STEM = re.compile(r"(?:(?:visual|vision_model)\.)?(?:trunk\.)?(?:patch_embed|stem)\.")
# Words of paths in a block: of attention and the norm before it, and of the MLP and its norm.
_HALVES = (
    (
        r"(?i)attn|attention|(?:ln|norm|ls)_?1|gamma_1|layer_?scale_?1|layernorm_before"
        r"|sa_layer_norm",
        "attn",
    ),
    (
        r"(?i)mlp|(?:ln|norm|ls)_?[23]|gamma_2|layer_?scale_?2|layernorm_after|intermediate|output"
        r"|dense|fc[12]|ffn|lin[12]|final_layer_norm",
        "mlp",
    ),
)
# Modules outside the blocks that only contain other modules.
_CONTAINERS = re.compile(
    r"^(?:(?:vision_model|visual|text_model|text|text_decoder"
    r"|trunk|transformer|encoder|roberta|backbone|model)\.)+(?=\w)"
)
_PARTS = (
    (r"pool|transformation|final_conv|conv_head", "pooler"),
    (r"pre_layrnorm|ln_pre|norm_pre", "pre_norm"),
    (r"emb|cls_|class_|token|stem|patch|^conv\d*$|^bn\d$|rel_pos|shared", "embeddings"),
    (r"norm|^ln_|pre_LN", "norm"),
    (r"proj|head|^fc$|classifier|last_linear", "projection"),
)


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """Name the layer of each parameter of a checkpoint; blocks are numbered through all stages.

    Example:
        >>> names = ["visual.layer1.0.conv1.weight", "visual.layer2.0.conv1.weight", "visual.proj"]
        >>> list(layers_of(names).values())
        ['vision.0.conv', 'vision.1.conv', 'vision.projection']
    """
    places = {name: _parts_of_name(name) for name in names}
    blocks = {(tower, numbers) for tower, numbers, _ in places.values() if numbers}
    staged = {tower for tower, numbers in blocks if len(numbers) > 1}
    depths = {}
    ranks = Counter[str]()
    for tower, numbers in sorted(blocks):
        depths[tower, numbers] = ranks[tower] if tower in staged else numbers[0]
        ranks[tower] += 1
    layers = {}
    for name, (tower, numbers, part) in places.items():
        place = f"{tower}.{depths[tower, numbers]}" if numbers else tower
        layers[name] = f"{place}.{part}" if part else place
    return layers


def _parts_of_name(name: str) -> tuple[str, tuple[int, ...], str]:
    """Split a parameter's name into its tower, the numbers of its block, and its part."""
    place = _first_match(name, _PLACES, "vision")
    if place not in _TOWERS_OF_BLOCKS:
        return place, (), ""
    block = None if _STEM.match(name) else _BLOCK.search(name)
    if block is None:
        module, _, _ = _CONTAINERS.sub("", name).partition(".")
        return place, (), _first_match(module, _PARTS, module)
    numbers = tuple(map(int, filter(None, block.groups())))
    if "cross_attn" in block[0]:
        return place, numbers, "cross"
    return place, numbers, _first_match(name[block.end() :], _HALVES, "conv")


def _first_match(text: str, patterns: tuple[tuple[str, str], ...], otherwise: str) -> str:
    """Return the word of the first pattern that matches a text."""
    for pattern, word in patterns:
        if re.search(pattern, text):
            return word
    return otherwise
