"""Families of two-tower models: the names of their parameters, and the layers these lie in.

The families are entries of two tables, `clipmerge.families.transformers` and
`clipmerge.families.open_clip`; to add one, add an entry there.

A *canonical name* is one spelling of a parameter; ``renames`` converts other spellings to it, and
the output keeps the spelling of its sources. The first rule that matches the start of a canonical
name gives the layer, with the number of the block, which its groups hold, for ``{}``. If there are
several numbers (stage and block), the blocks of a tower are numbered consecutively. A parameter
that no rule matches, in a tower that ``towers`` names, is in a layer named after its module. Layers
are named as in `clipmerge.layers`. A family that needs its own forward pass names a module of
`clipmerge.models`; ``tests/families/test_families.py`` has the requirements for every family.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from clipmerge.errors import CheckpointError
from clipmerge.families.family import (
    Family,
    is_counter,
    is_index_buffer,
    is_statistic,
    is_variance,
    tower_of,
)
from clipmerge.families.open_clip import OPEN_CLIP
from clipmerge.families.transformers import FAMILIES
from clipmerge.types import Json

__all__ = [
    "Family",
    "families",
    "is_known",
    "family_of",
    "is_index_buffer",
    "is_counter",
    "is_statistic",
    "is_variance",
    "known_keys",
    "tower_of",
]


@cache
def families() -> tuple[Family, ...]:
    """List the families in the order in which they are tried."""
    members = (*FAMILIES, OPEN_CLIP)
    return tuple(sorted(members, key=lambda family: (family.rank, family.name)))


def family_of(config: Json | None, keys: Iterable[str]) -> Family:
    """Recognise a checkpoint's family: that of the config's ``model_type``, or the one that knows
    most of the keys.
    """
    keys = list(keys)
    settings = config or {}
    model_type = settings.get("model_type")
    named = _families_of(str(model_type))
    if model_type is not None and not named:
        raise CheckpointError(
            f"is a '{model_type}' checkpoint; clipmerge merges"
            f" {', '.join(family.name for family in families())}"
        )
    if model_type is None and "pretrained_cfg" in settings:
        raise CheckpointError(
            f"is timm's '{settings.get('architecture')}'; of timm's models clipmerge reads the ViTs"
            " of CLIP (vit_*_clip_*). The tower of an OpenCLIP model is read as"
            " model.visual.state_dict()"
        )
    for candidates in (named, list(families())):
        counts = [known_keys(family, keys) for family in candidates]
        if any(counts):
            return candidates[counts.index(max(counts))]
    return named[0] if named else families()[0]


def is_known(model_type: str) -> bool:
    """Whether a configuration's ``model_type`` is a family's, or one of its towers'."""
    return bool(_families_of(model_type))


def _families_of(model_type: str) -> list[Family]:
    whole = model_type.removesuffix("_vision_model").removesuffix("_text_model")
    return [family for family in families() if whole == family.model_type]


def known_keys(family: Family, keys: Iterable[str]) -> int:
    """Count the keys of a file that a family has a layer for."""
    try:
        return sum(map(family.knows, family.by_canonical_name(keys)))
    except CheckpointError:
        return 0
