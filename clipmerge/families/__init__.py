"""Families of models: the names of their parameters, and the layers these lie in.

The families are entries of one table, `clipmerge.families.known`; to add one, add an entry there.
A *canonical name* is one spelling of a parameter; the output keeps the spelling of its sources.
Layers are named by module path, in `clipmerge.families.naming`. A family that needs its own forward
pass names a module of `clipmerge.models`; ``tests/families/test_families.py`` has the requirements
for every family.
"""

from __future__ import annotations

from collections.abc import Collection

from clipmerge.conversion.keys import layout_of
from clipmerge.errors import CheckpointError
from clipmerge.families.family import (
    Family,
    is_counter,
    is_index_buffer,
    is_statistic,
    is_variance,
    tower_of,
)
from clipmerge.families.known import CLIP, FAMILIES, OPEN_CLIP, TIMM
from clipmerge.families.naming import layers_of
from clipmerge.types import Json

__all__ = [
    "FAMILIES",
    "Family",
    "family_of",
    "is_index_buffer",
    "is_counter",
    "is_statistic",
    "is_variance",
    "layers_of",
    "tower_of",
]


def family_of(config: Json | None, keys: Collection[str]) -> Family:
    """Recognise a checkpoint's family by the layout of its keys, the config's ``model_type``, or
    parts of keys.
    """
    layout = layout_of(keys)
    if layout == "open-clip":
        return OPEN_CLIP
    if layout == "timm" or "pretrained_cfg" in (config or {}):
        return TIMM
    model_type = (config or {}).get("model_type")
    if model_type is not None:
        whole = str(model_type).removesuffix("_vision_model").removesuffix("_text_model")
        for family in FAMILIES:
            if family.model_type == whole:
                return family
        known = ", ".join(family.name for family in FAMILIES)
        raise CheckpointError(f"is a '{model_type}' checkpoint; clipmerge merges {known}")
    for family in FAMILIES:
        if family.marks and all(any(mark in key for key in keys) for mark in family.marks):
            return family
    return CLIP
