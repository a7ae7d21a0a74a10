"""One family of models: the names of its parameters, the layers these lie in, and its library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clipmerge.errors import CheckpointError
from clipmerge.families.naming import layers_of
from clipmerge.layers import network_order
from clipmerge.types import Layers, Names

# What a model of transformers has beside its towers.
_AROUND = ("visual_projection.", "text_projection.", "classifier.", "logit_", "temperature")
_TOWERS = ("vision_model.", "text_model.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The properties of one family of checkpoints: names only, no weights.

    Attributes:
        name: Name in messages.
        model_type: ``model_type`` in a config, if it has one; a tower's ends with ``_vision_model``
            or ``_text_model``.
        marks: Parts of keys that tell the family where there is no config: all of them occur.
        renames: Regex and replacement, applied to every key in order: from other spellings to the
            canonical one.
        model: Module of `clipmerge.models` with the forward pass.
        model_class: transformers' class of the full model.
        reads_padding: Whether the text tower reads padding as text, so that prompts are padded to
            its full length.
        weights: File from which the family's library reads unsharded weights.
        config: File that describes the model.
    """

    name: str
    model_type: str | None = None
    marks: Names = ()
    renames: tuple[tuple[str, str], ...] = ()
    model: str = "transformers_clip"
    model_class: str = ""
    reads_padding: bool = False
    weights: str = "model.safetensors"
    config: str = "config.json"

    def by_canonical_name(self, keys: Iterable[str]) -> dict[str, str]:
        """Map canonical names to a file's keys.

        Towers of transformers that were saved alone lack their prefix
        (``embeddings.class_embedding``), which is put before them.
        """
        keys = list(keys)
        prefix = ""
        if self.model_type and not any(key.startswith(_TOWERS) for key in keys):
            is_text = any("token_embedding" in key or "word_embedding" in key for key in keys)
            prefix = "text_model." if is_text else "vision_model."
        named: dict[str, str] = {}
        for key in keys:
            name = key if key.startswith(_AROUND) else prefix + key
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in named:
                raise CheckpointError(
                    f"keys '{named[name]}' and '{key}' are the same parameter, {name}"
                )
            named[name] = key
        return named

    def group(self, names: Iterable[str]) -> Layers:
        """Group all canonical names of a checkpoint by layer: sorted names, layers in network
        order.
        """
        groups: dict[str, list[str]] = {}
        for name, layer in layers_of(names).items():
            groups.setdefault(layer, []).append(name)
        return {layer: tuple(sorted(groups[layer])) for layer in sorted(groups, key=network_order)}


def tower_of(layers: Iterable[str]) -> str:
    """Return the towers of a checkpoint's layers: ``"full"``, ``"vision"`` or ``"text"``."""
    towers = {layer.partition(".")[0] for layer in layers}
    if {"vision", "text"} <= towers:
        return "full"
    return "vision" if "vision" in towers else "text"


def is_index_buffer(name: str) -> bool:
    """Whether a tensor holds indices (of positions, of token types), as only old checkpoints do."""
    return name.endswith((".position_ids", ".token_type_ids"))


def is_statistic(name: str) -> bool:
    """Whether a tensor is a batch norm's running mean or variance: interpolated, never masked."""
    return name.endswith((".running_mean", ".running_var"))


def is_variance(name: str) -> bool:
    """Whether a tensor is a batch norm's running variance, which cannot be negative."""
    return name.endswith(".running_var")


def is_counter(name: str) -> bool:
    """Whether a tensor counts a batch norm's training steps: copied, because it has no effect at
    inference.
    """
    return name.endswith(".num_batches_tracked")
