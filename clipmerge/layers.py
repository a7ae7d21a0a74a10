"""Names of layers: their order in the network, their blocks, and globs that match them.

A *layer* is the unit of recipes, plans and reports: half a transformer block with the norm before
it (``vision.3.attn``, ``vision.3.mlp``), a convolutional block (``vision.3.conv``), or a part
outside the blocks: ``vision.embeddings``, ``pre_norm``, ``norm``, ``pooler``, ``projection``, the
same for ``text.`` (and for the ``decoder.`` of a CoCa, whose blocks attend to the image in
``decoder.3.cross``), and ``head`` (a classifier), ``logit_scale``, ``logit_bias``. Every parameter
is in exactly one layer, by its module path; see `clipmerge.families`. An unknown part of a
tower is a layer named after its module, such as ``vision.features``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from clipmerge.errors import UsageError, did_you_mean, shorten

HEAD = "head"
_AFTER_ALL_BLOCKS = 10**6
_EDGE_ORDER = {
    "embeddings": -2,
    "pre_norm": -1,
    "norm": _AFTER_ALL_BLOCKS,
    "pooler": _AFTER_ALL_BLOCKS + 1,
    "projection": _AFTER_ALL_BLOCKS + 2,
}
_PART_ORDER = ("vision", "text", "decoder", HEAD, "logit_scale", "logit_bias")


def network_order(layer: str) -> tuple[int, int, str]:
    """Return a sort key for network order: vision, text, then layers in neither tower.

    Inside a tower, unknown parts come last.

    Example:
        >>> layers = ["logit_scale", "text.norm", "vision.10.attn", "vision.2.mlp", "vision.2.attn"]
        >>> sorted(layers, key=network_order)
        ['vision.2.attn', 'vision.2.mlp', 'vision.10.attn', 'text.norm', 'logit_scale']
    """
    part, _, rest = layer.partition(".")
    index, _, half = rest.partition(".")
    rank = _PART_ORDER.index(part)
    if index.isdecimal():
        return rank, int(index), half
    depth = _EDGE_ORDER.get(index, _AFTER_ALL_BLOCKS + 3)
    return rank, depth, re.sub(r"\d+", lambda number: number[0].zfill(6), rest)


def block_of(layer: str) -> tuple[str, int, str] | None:
    """Split the layer of a block into tower, depth and half; ``None`` for other layers.

    Example:
        >>> block_of("vision.10.mlp")
        ('vision', 10, 'mlp')
        >>> block_of("text.norm") is None
        True
    """
    parts = layer.split(".")
    if len(parts) == 3 and parts[1].isdecimal():
        return parts[0], int(parts[1]), parts[2]
    return None


def may_precede_blocks(layer: str) -> bool:
    """Whether a layer lies outside the blocks, and may act before them.

    This is true of every part that is not known to act after the blocks.

    Example:
        >>> layers = ("vision.embeddings", "vision.features.3", "vision.norm")
        >>> [may_precede_blocks(layer) for layer in layers]
        [True, True, False]
    """
    _, _, part = layer.partition(".")
    return bool(part) and block_of(layer) is None and part not in ("norm", "pooler", "projection")


def match_layers(glob: str, layers: Iterable[str]) -> list[str]:
    """Find the layers whose whole name matches a glob: ``vision.1.*`` excludes ``vision.10.attn``.

    Example:
        >>> match_layers("vision.1.*", ["vision.1.attn", "vision.10.attn"])
        ['vision.1.attn']
    """
    known = list(layers)
    matching = [layer for layer in known if fnmatchcase(layer, glob)]
    if not matching:
        hint = did_you_mean(glob, known) or f" Layers are {shorten(known)}."
        raise UsageError(f"override '{glob}' matches no layer.{hint}")
    return matching
