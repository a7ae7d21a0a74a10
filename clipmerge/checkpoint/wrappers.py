"""A CLIP inside another module: next to a separate head or a second copy, or with its towers apart.

People train `class Model: clip = CLIPModel(...); head = Linear(...)`, keep an average of the
weights in the same state dict, or hold the two towers as two attributes. The CLIP is found under
the attributes whose names lead to a tower.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from clipmerge.errors import CheckpointError, shorten
from clipmerge.types import Json

# Where a tower's part of a key begins, whatever comes before it.
_TOWER = re.compile(r"(?:^|\.)(?=(?:vision_model|text_model|visual)\.)")
# Attributes that hold an average of the weights or a frozen copy, by usual names.
_COPY = re.compile(r"ema|teacher|momentum|average|shadow|target|swa", re.IGNORECASE)
# Put before every key by data parallel training and averages of weights, and into keys by wrappers
# of single modules: torch.compile, FSDP, checkpoints of activations.
_PARALLEL, _WRAPPED = (
    "module.",
    re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."),
)
# Prefixes of a CLIP in WiSE-FT's ImageClassifier and ImageEncoder, and in model soups'
# ModelWrapper.
_ENCODERS = ("image_encoder.model.", "model.", "")
_HEAD = "classification_head."
# Counts that OpenAI's archives keep beside the weights, masks that older versions of open_clip
# saved, and what training loops add to a state dict.
_NOT_WEIGHTS = re.compile(
    r"input_resolution|context_length|vocab_size|(?:text\.)?attn_mask|best_\w+|(?:\w+_)?(?:loss|steps?|epochs?|acc\d?|lr)"
    r"|n_averaged|initted"
)
# What stands before a tower that is not alone.
_IN_A_CLIP = ("visual.", "visual.trunk.", "text.")
# One tower's own state dict: parameters that it has together, and the attribute of the whole model
# that it was.
_LONE_TOWERS = (
    # a ViT of OpenAI's or OpenCLIP's
    (
        ("conv1.weight", "class_embedding", "ln_pre.weight"),
        "visual.",
    ),
    (("conv1.weight", "bn1.weight", "attnpool.positional_embedding"), "visual."),  # a ResNet
    (("cls_token", "norm_pre.weight", "patch_embed.proj.weight"), ""),  # a ViT of timm
    (("trunk.patch_embed.proj.weight",), "visual."),  # a tower of timm inside OpenCLIP's
    (("trunk.stem.0.weight",), "visual."),
    (("trunk.conv_stem.weight",), "visual."),
    # a text tower of transformers in OpenCLIP's
    (
        ("transformer.embeddings.word_embeddings.weight",),
        "text.",
    ),
)
# Marks of files whose weights are not there or not whole, with what they are and the way out.
_NO_WEIGHTS = (
    (
        r"(?:^|\.)(?:ctx|compound_prompts_text\.\d+|meta_net\.linear1\.weight)$",
        "prompts that CoOp or a method like it has learned",
        "so it has no fine-tuned weights to merge; give a checkpoint whose weights were trained",
    ),
    (
        r"\.lora_(?:up|down)\.weight$",
        "factors of LoRA in kohya's format",
        (
            "which belong to a base; fuse them into it where it was made (sd-scripts:"
            " networks/merge_lora.py; diffusers: fuse_lora()) and give the result"
        ),
    ),
    (
        r"\.lora_(?:embedding_)?[AB](?:\.|$)",
        "factors of LoRA that are not part of the weights yet",
        (
            "so they would be lost; give the adapter's folder with its adapter_config.json, or"
            " merge them where they were trained (peft: merge_and_unload()) and save that"
        ),
    ),
)


# A text tower of OpenCLIP's alone, as generators of images have it beside another one, and one of
# transformers'.
_LONE_TEXT = re.compile(
    r"(.+\.)(?:token_embedding\.weight|text_model\.embeddings\.token_embedding\.weight)"
)

# Keys in the file by the CLIP's own names, and what was taken and left out, if anything was.
_Unwrapped = tuple[dict[str, str], Json | None]


def text_encoders(keys: Iterable[str]) -> list[str]:
    """The attributes that hold a text tower without images, other than averages and copies, in the
    file's order.

    Stable Diffusion XL has two of them in one file, CLIP's and OpenCLIP's.
    """
    keys = list(keys)
    attributes = []
    for match in filter(None, map(_LONE_TEXT.fullmatch, keys)):
        prefix = match[1].removesuffix("text_model.embeddings.")
        whole = prefix.removesuffix("text.")  # open_clip's CustomTextCLIP has its text tower there
        images = tuple(f"{whole}{name}" for name in ("visual.", "vision_model."))
        if not _COPY.search(prefix) and not any(key.startswith(images) for key in keys):
            attributes.append(prefix.removesuffix("."))
    return attributes


def unwrap(keys: Iterable[str], part: str | None = None) -> _Unwrapped:
    """Find the CLIP among the keys of a file, or what lies under the attribute ``part``."""
    file_keys = list(keys)
    if part is None and len(encoders := text_encoders(file_keys)) > 1:
        raise CheckpointError(
            f"holds {len(encoders)} text encoders; name the one that you mean after a #:"
            f" #{' or #'.join(encoders)} (`state_key` names it for all checkpoints)"
        )
    if part is not None:
        under = {
            key.removeprefix(f"{part}."): key for key in file_keys if key.startswith(f"{part}.")
        }
        if not under:
            firsts = dict.fromkeys(key.partition(".")[0] for key in file_keys)
            raise CheckpointError(
                f"nothing lies under '{part}'; its keys begin with {shorten(firsts)}"
            )
        return _without_wrappers(under), None
    for mark, what, way_out in _NO_WEIGHTS:
        if marked := [key for key in file_keys if re.search(mark, key)]:
            raise CheckpointError(f"holds {what} ({shorten(marked, 2)}), {way_out}")
    plain = _without_wrappers({key: key for key in file_keys})
    if lone := _lone_tower(plain):
        return lone
    if classifier := _find_classifier(plain):
        return classifier, None
    names = list(plain)
    # prefixes of the towers, the most common first, ties in the file's order; averages and copies
    # last
    matches = [match for match in map(_TOWER.search, names) if match]
    commonest = [
        prefix
        for prefix, _ in Counter(match.string[: match.end()] for match in matches).most_common()
    ]
    prefixes = sorted(commonest, key=lambda prefix: bool(_COPY.search(prefix)))
    chosen: list[str] = []
    copies: list[str] = []
    clip: dict[str, str] = {}
    for prefix in prefixes:
        longer = tuple(
            other for other in prefixes if len(other) > len(prefix) and other.startswith(prefix)
        )
        owned = [
            name
            for name in names
            if name.startswith(prefix) and not (longer and name.startswith(longer))
        ]
        inside = {name.removeprefix(prefix): plain[name] for name in owned}
        if clip.keys() & inside.keys():
            copies.append(prefix)
        else:
            chosen.append(prefix)
            clip |= inside
    clip_keys = set(clip.values())
    copied = tuple(filter(None, copies))
    outside = [
        name for name in names if plain[name] not in clip_keys and not name.startswith(copied)
    ]
    if not prefixes or (len(chosen) == 1 and not copies and not outside):
        return plain, None
    return clip, _describe_left_out(chosen, copies, outside)


def _without_wrappers(keys: dict[str, str]) -> dict[str, str]:
    """The keys of weights by names without wrappers of PyTorch, unless two would have one name."""
    weights = {name: key for name, key in keys.items() if not _NOT_WEIGHTS.fullmatch(name)}
    plain = {_WRAPPED.sub("", name): key for name, key in weights.items()}
    while plain and all(name.startswith(_PARALLEL) for name in plain):
        plain = {name.removeprefix(_PARALLEL): key for name, key in plain.items()}
    plain = plain if len(plain) == len(weights) else weights
    return {name: key for name, key in plain.items() if not _NOT_WEIGHTS.fullmatch(name)}


def _lone_tower(names: dict[str, str]) -> _Unwrapped | None:
    """The keys of a tower that was saved by itself, under the names that it has in the whole
    model.
    """
    for (first, *others), attribute in _LONE_TOWERS:
        for outer in (
            name.removesuffix(first) for name in names if f".{name}".endswith(f".{first}")
        ):
            if outer.endswith(_IN_A_CLIP) or not all(outer + other in names for other in others):
                continue
            inside = {
                attribute + name.removeprefix(outer): names[name]
                for name in names
                if name.startswith(outer)
            }
            outside = [name for name in names if not name.startswith(outer)]
            return inside, _describe_left_out([outer], [], outside) if outside else None
    return None


def _find_classifier(names: dict[str, str]) -> dict[str, str] | None:
    """The image encoder and the head of a WiSE-FT or model-soups classifier, without the remains of
    its text tower.
    """
    heads = {name: key for name, key in names.items() if name.startswith(_HEAD)}
    for prefix in _ENCODERS:
        inside = {
            name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)
        }
        is_encoder = (prefix or heads) and any(name.startswith("visual.") for name in inside)
        if is_encoder and len(inside.keys() | heads.keys()) == len(names):
            has_text = any(name.startswith("transformer.") for name in inside)
            visual = {
                name: key for name, key in inside.items() if has_text or name.startswith("visual.")
            }
            return {**visual, **heads}
    return names if heads else None


def _describe_left_out(chosen: list[str], copies: list[str], outside: list[str]) -> Json:
    """The attributes under which the CLIP lies, those with the same parameters, and the number and
    some names of the tensors outside, averages of weights first.
    """
    averages = [name for name in outside if _COPY.search(name.partition(".")[0])]
    rest = [name for name in outside if name not in set(averages)]
    return {
        "inside": [prefix[:-1] for prefix in chosen],
        "copies": [copy[:-1] for copy in copies],
        "averages": len(averages),
        "others": len(rest),
        "examples": [shorten(averages, 3), shorten(rest, 3)],
    }
