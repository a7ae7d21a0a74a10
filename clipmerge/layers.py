"""Parameter name -> layer, in network order.

A *layer* is what a recipe, a plan and a report speak about: half a transformer block with the norm that feeds
it (``vision.3.attn`` = layer_norm1 + self_attn, ``vision.3.mlp`` = layer_norm2 + mlp), an embedding, a norm or
a projection. Every parameter lies in exactly one layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from clipmerge.errors import CheckpointError, PlanError, did_you_mean, shorten

_TOWER = {"vision_model": "vision", "text_model": "text"}
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(layer_norm[12]|self_attn|mlp)\.")
_HALF = {"layer_norm1": "attn", "self_attn": "attn", "layer_norm2": "mlp", "mlp": "mlp"}
_WHOLE = {
    "vision_model.embeddings": "vision.embeddings",
    "vision_model.pre_layrnorm": "vision.pre_norm",
    "vision_model.post_layernorm": "vision.norm",
    "visual_projection": "vision.projection",
    "text_model.embeddings": "text.embeddings",
    "text_model.final_layer_norm": "text.norm",
    "text_projection": "text.projection",
    "logit_scale": "logit_scale",
}
_EDGE_ORDER = {"embeddings": -2, "pre_norm": -1, "norm": 10**6, "projection": 10**6 + 1}
_ROOTS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
_BARE_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "final_layer_norm.")


def layer_of(name: str) -> str:
    """Name the layer a parameter belongs to.

    Args:
        name: Parameter name as ``transformers.CLIPModel`` spells it.

    Returns:
        Layer name, such as ``vision.3.attn`` or ``text.embeddings``.

    Raises:
        CheckpointError: If the name is not one of CLIP's.

    Example:
        >>> layer_of("vision_model.encoder.layers.10.layer_norm2.bias")
        'vision.10.mlp'
        >>> layer_of("visual_projection.weight")
        'vision.projection'
    """
    block = _BLOCK.match(name)
    if block:
        return f"{block[1]}.{block[2]}.{_HALF[block[3]]}"
    parts = name.split(".")
    for depth in (2, 1):
        layer = _WHOLE.get(".".join(parts[:depth]))
        if layer:
            return layer
    raise CheckpointError(
        f"parameter '{name}' belongs to no layer of a transformers CLIP model; "
        "clipmerge merges CLIPModel, CLIPVisionModel and CLIPTextModel checkpoints"
    )


def group_layers(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group parameters by layer, layers in network order (vision, text, then ``logit_scale``).

    Args:
        names: Parameter names as ``transformers.CLIPModel`` spells them.

    Returns:
        Layer name to the sorted names of its parameters.

    Raises:
        CheckpointError: If a name is not one of CLIP's.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layer_of(name), []).append(name)
    return {layer: tuple(sorted(groups[layer])) for layer in sorted(groups, key=_network_order)}


def _network_order(layer: str) -> tuple[int, int, str]:
    tower, _, rest = layer.partition(".")
    if not rest:
        return (2, 0, layer)
    index, _, half = rest.partition(".")
    depth = int(index) if index.isdigit() else _EDGE_ORDER[index]
    return (0 if tower == "vision" else 1, depth, half)


def block_of(layer: str) -> tuple[str, int, str] | None:
    """Split a block's layer into tower, depth and half; ``None`` for layers outside the blocks.

    Example:
        >>> block_of("vision.10.mlp")
        ('vision', 10, 'mlp')
        >>> block_of("text.norm") is None
        True
    """
    parts = layer.split(".")
    if len(parts) == 3 and parts[1].isdigit():
        return parts[0], int(parts[1]), parts[2]
    return None


def match_layers(glob: str, layers: Iterable[str]) -> list[str]:
    """Find the layers a glob names; the whole name must match, so ``vision.1.*`` leaves ``vision.10.*`` alone.

    Args:
        glob: Shell-style pattern (``*``, ``?``, ``[...]``).
        layers: The layers there are.

    Returns:
        Matching layers, in the order given.

    Raises:
        PlanError: If nothing matches; the message suggests the closest layer.

    Example:
        >>> match_layers("vision.1.*", ["vision.1.attn", "vision.10.attn"])
        ['vision.1.attn']
    """
    known = list(layers)
    found = [layer for layer in known if fnmatchcase(layer, glob)]
    if not found:
        hint = did_you_mean(glob, known) or f" Layers are {shorten(known)}."
        raise PlanError(f"override '{glob}' matches no layer.{hint}")
    return found


def canonical_names(keys: Iterable[str]) -> dict[str, str]:
    """Map a file's keys to the names a full ``transformers.CLIPModel`` gives them.

    Towers saved on their own come without their prefix (``embeddings.class_embedding``) and wrapped models with
    one too many (``module.vision_model...``, ``clip.text_model...``); both are normalised.

    Args:
        keys: Keys as they stand in the file.

    Returns:
        File key to canonical name, in the order given.

    Raises:
        CheckpointError: If the keys are not those of a CLIP model, or two become one name.
    """
    keys = list(keys)
    prefix = _wrapper_prefix(keys)
    tower = _bare_tower([key.removeprefix(prefix) for key in keys])
    names: dict[str, str] = {}
    owner: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix(prefix)
        if name.startswith(_BARE_TOWER):
            name = f"{tower}.{name}"
        if name in owner:
            raise CheckpointError(f"keys '{owner[name]}' and '{key}' are the same parameter, {name}")
        owner[name] = key
        names[key] = name
    return names


def _wrapper_prefix(keys: list[str]) -> str:
    """What stands before CLIP's own names, such as ``module.`` or ``clip.``; mostly nothing."""
    for key in keys:
        for root in (*_ROOTS, *_BARE_TOWER):
            head, found, _ = f".{key}".partition(f".{root}")
            if found:
                return f"{head[1:]}." if head else ""
    return ""


def _bare_tower(keys: list[str]) -> str:
    if any(key.endswith("token_embedding.weight") or key.startswith("final_layer_norm.") for key in keys):
        return "text_model"
    return "vision_model"


def tower_of(names: Iterable[str]) -> str:
    """Say which towers a checkpoint holds: ``"full"``, ``"vision"`` or ``"text"``.

    Args:
        names: Canonical parameter names.
    """
    names = list(names)
    has_vision = any(name.startswith("vision_model.") for name in names)
    has_text = any(name.startswith("text_model.") for name in names)
    if has_vision and has_text:
        return "full"
    return "vision" if has_vision else "text"
