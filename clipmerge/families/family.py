"""One family of two-tower models: the names of its parameters, and the layers these lie in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from clipmerge.errors import CheckpointError
from clipmerge.layers import network_order
from clipmerge.types import Json, Layers, Names, Shape

# Values by setting, by side (``vision``, ``text``, or ``""`` for common settings).
Settings = dict[str, Json]

#: Regular expressions for the start of a canonical name, each with its layer.
Rules = tuple[tuple[str, str], ...]
_Position = tuple[str, Shape]


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The properties of one family of checkpoints: names only, no weights.

    Attributes:
        name: Name in messages.
        model_type: ``model_type`` in a config, if it has one; a tower's ends with ``_vision_model``
            or ``_text_model``.
        rules: Regex for the start of a canonical name, and the layer; ``{}`` is replaced by the
            block's number.
        roots: Starts of canonical names.
        settings: Function from a config to the settings that change the function but no shape, with
            defaults; ``None`` is an unknown value, which is not compared.
        bare: Starts of names if a tower was saved alone, without ``vision_model.`` or
            ``text_model.``.
        text_marks: Parts of names that identify a tower saved alone as the text tower.
        renames: Regex and replacement, applied to every key in order: from other spellings to the
            canonical one.
        model: Module of `clipmerge.models` with the forward pass.
        model_class: transformers' class of the full model.
        towers: Starts of canonical names, and the tower that such a parameter is in if no rule
            matches it.
        reads_padding: Whether the text tower reads padding as text, so that prompts are padded to
            its full length.
        rank: Without a config, the family with the lowest rank is used among those that know the
            same keys.
        weights: File from which the family's library reads unsharded weights.
        config: File that describes the model.
    """

    name: str
    rules: Rules
    roots: Names
    settings: Callable[[Json], Settings]
    model_type: str | None = None
    bare: Names = ()
    text_marks: Names = ()
    renames: tuple[tuple[str, str], ...] = ()
    model: str = "transformers_clip"
    model_class: str = ""
    towers: tuple[tuple[str, str], ...] = (("vision_model.", "vision"), ("text_model.", "text"))
    reads_padding: bool = False
    rank: int = 1
    weights: str = "model.safetensors"
    config: str = "config.json"

    def by_canonical_name(self, keys: Iterable[str]) -> dict[str, str]:
        """Map canonical names to a file's keys.

        Towers saved alone lack their prefix (``embeddings.class_embedding``), and wrapped models
        have one too many (``module.vision_model...``, ``clip.text_model...``); both are normalised.
        """
        keys = list(keys)
        prefix = self.wrapper_prefix(keys)
        is_text = any(mark in key.removeprefix(prefix) for key in keys for mark in self.text_marks)
        named: dict[str, str] = {}
        for key in keys:
            name = key.removeprefix(prefix)
            if self.bare and name.startswith(self.bare):
                name = f"{'text_model' if is_text else 'vision_model'}.{name}"
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in named:
                raise CheckpointError(
                    f"keys '{named[name]}' and '{key}' are the same parameter, {name}"
                )
            named[name] = key
        return named

    def wrapper_prefix(self, keys: Iterable[str]) -> str:
        """Return the prefix before the family's own names in a file, such as ``module.``; usually
        empty.
        """
        for key in keys:
            for root in (*self.roots, *self.bare):
                head, mark, _ = f".{key}".partition(f".{root}")
                if mark:
                    return f"{head[1:]}." if head else ""
        return ""

    def layers_of(self, names: Iterable[str]) -> dict[str, str]:
        """Name the layer of each parameter, such as ``vision.3.attn``, from all canonical names of
        a checkpoint.

        All of them are needed because blocks in stages are numbered consecutively.
        """
        positions = {
            name: self._position(name) or (self._named_by_module(name), ()) for name in names
        }
        strange = next((name for name, (layer, _) in positions.items() if not layer), None)
        if strange is not None:
            raise CheckpointError(
                f"parameter '{strange}' belongs to no layer of a {self.name} model"
            )
        depths = {}
        blocks = sorted({(_tower(layer), at) for layer, at in positions.values() if at})
        for tower in {tower for tower, _ in blocks}:
            numbers = [at for other, at in blocks if other == tower]
            staged = any(len(at) > 1 for at in numbers)
            depths.update(
                {(tower, at): rank if staged else at[0] for rank, at in enumerate(numbers)}
            )
        return {
            name: layer.format(depths.get((_tower(layer), at)))
            for name, (layer, at) in positions.items()
        }

    def knows(self, name: str) -> bool:
        """Whether a rule names the layer of a canonical name."""
        return self._any_rule.match(name) is not None

    def has_layer(self, name: str) -> bool:
        """Whether a canonical name has a layer, if only one named after its module."""
        return self.knows(name) or bool(self._named_by_module(name))

    def _named_by_module(self, name: str) -> str:
        """The layer of a parameter without a rule: its tower, and its module up to the second
        numbered one.
        """
        for start, tower in self.towers:
            if name.startswith(start):
                *modules, parameter = name.removeprefix(start).split(".")
                numbered = [depth for depth, module in enumerate(modules) if module.isdecimal()]
                numbered = numbered or [
                    depth for depth, module in enumerate(modules) if module[-1:].isdecimal()
                ]
                numbers = numbered[:2]
                return ".".join(
                    [tower, *(modules[: numbers[-1] + 1 if numbers else 1] or [parameter])]
                )
        return ""

    @cached_property
    def _compiled_rules(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(pattern), layer) for pattern, layer in self.rules)

    @cached_property
    def _any_rule(self) -> re.Pattern[str]:
        # One expression for `knows`, which every family is asked about every name of a checkpoint.
        return re.compile("|".join(f"(?:{pattern})" for pattern, _ in self.rules))

    def _position(self, name: str) -> _Position | None:
        for pattern, layer in self._compiled_rules:
            if match := pattern.match(name):
                return layer, tuple(int(group) for group in match.groups() if group is not None)
        return None

    def group(self, names: Iterable[str]) -> Layers:
        """Group all canonical names of a checkpoint by layer: sorted names, layers in network
        order.
        """
        groups: dict[str, list[str]] = {}
        for name, layer in self.layers_of(names).items():
            groups.setdefault(layer, []).append(name)
        return {layer: tuple(sorted(groups[layer])) for layer in sorted(groups, key=network_order)}


def _tower(layer: str) -> str:
    return layer.partition(".")[0]


def tower_of(layers: Iterable[str]) -> str:
    """Return the towers of a checkpoint's layers: ``"full"``, ``"vision"`` or ``"text"``."""
    towers = {_tower(layer) for layer in layers}
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
