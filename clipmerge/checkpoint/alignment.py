"""Checkpoints aligned by canonical parameter name, and the kind of output that they give."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.families import Family, is_index_buffer, layers_of, tower_of
from clipmerge.files.safetensors import TensorEntry
from clipmerge.layers import HEAD, network_order
from clipmerge.types import Kind, Layers, Missing, Names, OutputDtype

if TYPE_CHECKING:
    from torch import Tensor


HEAD_WEIGHT, HEAD_BIAS = "classification_head.weight", "classification_head.bias"
#: A checkpoint, and the key of a tensor in it.
Location = tuple[Checkpoint, str]


class OutputKind(Enum):
    """The kind of model that a merge writes; it follows from the parts of the checkpoints."""

    MODEL = "the towers that every checkpoint has: both, or one"
    ZEROSHOT_MODEL = "both towers of the zero-shot model; the fine-tuned ones have one tower"
    CLASSIFIER = "a tower with a head, as every checkpoint has"
    FINETUNED_CLASSIFIER = "a tower with a head, as only the fine-tuned checkpoints have"

    @property
    def is_classifier(self) -> bool:
        """Whether the merged model classifies with a head, not with prompts."""
        return self in (OutputKind.CLASSIFIER, OutputKind.FINETUNED_CLASSIFIER)


@dataclass(frozen=True)
class Inputs:
    """A zero-shot checkpoint and its fine-tuned ones, aligned by canonical parameter name."""

    family: Family
    zeroshot: Checkpoint  # theta_0
    finetuned: tuple[Checkpoint, ...]  # theta_1 ... theta_K; usually one
    # keys in the zero-shot file by canonical name, in the file's order
    zeroshot_keys: dict[str, str]
    finetuned_keys: tuple[dict[str, str], ...]  # the same for each fine-tuned file
    layer_of: dict[str, str]  # layers by canonical name, for the parameters of all checkpoints
    missing: Missing = "error"  # treatment of keys that not every checkpoint has
    dtype: OutputDtype = "keep"  # of the merged weights
    notes: list[str] = field(default_factory=list)

    @cached_property
    def layers(self) -> Layers:
        """Names of the zero-shot parameters by layer: layers in network order, names sorted."""
        groups: dict[str, list[str]] = {}
        for name in sorted(self.zeroshot_keys):
            layer = self.layer_of[name]
            groups.setdefault(layer, []).append(name)
        return {layer: tuple(groups[layer]) for layer in sorted(groups, key=network_order)}

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All checkpoints: the zero-shot one, then the fine-tuned ones."""
        return (self.zeroshot, *self.finetuned)

    @cached_property
    def tower(self) -> str:
        """The tower of the fine-tuned checkpoints, ``vision`` or ``text``; ``full`` for both."""
        return tower_of(self.layer_of[name] for keys in self.finetuned_keys for name in keys)

    @cached_property
    def output(self) -> OutputKind:
        """The kind of output."""
        is_tower = self.tower != "full"
        # a head is built only for a zero-shot checkpoint that has none
        only_theirs = HEAD not in self.layers and HEAD in self.layer_of.values()
        is_new = only_theirs or self.zeroshot.has_built_head
        if is_tower and is_new and self.missing != "keep-zeroshot":
            return OutputKind.FINETUNED_CLASSIFIER
        if tower_of(self.layers) == "full":
            return OutputKind.ZEROSHOT_MODEL if is_tower else OutputKind.MODEL
        everyone = len(self.checkpoints)
        head = self.layers.get(HEAD, ())
        if head and all(len(self.locations[name]) == everyone for name in head):
            return OutputKind.CLASSIFIER
        return OutputKind.MODEL

    @property
    def kind(self) -> Kind:
        """The kind of output in a word, for records and cards."""
        if self.output.is_classifier:
            return "classifier"
        return tower_of(self.layer_of[name] for name in self.output_keys)

    @property
    def row_names(self) -> Names:
        """Class names of the rows of the output's head; empty if there is no head, or if no
        configuration names them.
        """
        if not self.output.is_classifier:
            return ()
        known = [one.row_names for one in (*self.finetuned, self.zeroshot)]
        return next(filter(None, known), ())

    @cached_property
    def layout(self) -> Checkpoint:
        """The checkpoint that gives the output its keys, configuration and side files."""
        if self.output is OutputKind.ZEROSHOT_MODEL:
            return self.zeroshot
        return self.finetuned[0]

    @cached_property
    def output_keys(self) -> dict[str, str]:
        """Map canonical names to the keys of the output's tensors: `layout`'s key if it has the
        tensor, otherwise the key of the checkpoint that has it.
        """
        keys = self.zeroshot_keys | self.finetuned_keys[0]
        if self.layout is self.zeroshot:
            keys |= self.zeroshot_keys
        return {name: key for name, key in keys.items() if self._is_written(name)}

    def _is_written(self, name: str) -> bool:
        """Whether a tensor is written to the output, even if only one checkpoint has it."""
        keeps_finetuned = self.missing == "keep-finetuned"
        has_new_head = self.output is OutputKind.FINETUNED_CLASSIFIER
        if name not in self.zeroshot_keys:
            return keeps_finetuned or (has_new_head and self.layer_of[name] == HEAD)
        if name in self.finetuned_keys[0]:
            return True
        if has_new_head:
            return self.is_expected(name)
        return not keeps_finetuned or self.layout is self.zeroshot

    def is_expected(self, name: str) -> bool:
        """Whether every fine-tuned checkpoint should have this zero-shot parameter."""
        layer = self.layer_of[name]
        if self.output in (OutputKind.MODEL, OutputKind.CLASSIFIER) or layer == HEAD:
            return True
        if not layer.startswith(f"{self.tower}."):
            return False
        # a tower may have been saved without its projection
        has_it = any(name in keys for keys in self.finetuned_keys)
        return has_it or not layer.endswith(".projection")

    @cached_property
    def merged_layers(self) -> Layers:
        """Names of the merged parameters by layer, in network order; no layer is empty."""
        merged = {}
        for layer, names in self.layers.items():
            found = tuple(filter(self.merges, names))
            if found:
                merged[layer] = found
        return merged

    def merges(self, name: str) -> bool:
        """Whether a parameter is merged: every checkpoint has it, in floats."""
        locations = self.locations[name]
        if len(locations) <= len(self.finetuned) or is_index_buffer(name):
            return False
        return all(checkpoint.entries[key].is_float for checkpoint, key in locations)

    def zeroshot_entry(self, name: str) -> TensorEntry:
        """Return the entry of a zero-shot parameter in its file."""
        return self.zeroshot.entries[self.zeroshot_keys[name]]

    def theta_0(self, name: str) -> Tensor:
        """Read a zero-shot parameter."""
        return self.zeroshot.tensor(self.zeroshot_keys[name])

    def theta_1(self, name: str, *, which: int = 0) -> Tensor:
        """Read a parameter of one of the fine-tuned checkpoints."""
        return self.finetuned[which].tensor(self.finetuned_keys[which][name])

    def entries(self, name: str) -> list[TensorEntry]:
        """Return the entries of a tensor in all checkpoints that have it, zero-shot first."""
        return [checkpoint.entries[key] for checkpoint, key in self.locations[name]]

    @cached_property
    def locations(self) -> dict[str, list[Location]]:
        """For each tensor, the checkpoints that have it, zero-shot first, and its key in each."""
        found: dict[str, list[Location]] = {}
        everyone = (self.zeroshot_keys, *self.finetuned_keys)
        for checkpoint, keys in zip(self.checkpoints, everyone, strict=True):
            for name, key in keys.items():
                found.setdefault(name, []).append((checkpoint, key))
        return found


def pair_keys(
    zeroshot: Checkpoint, finetuned: list[Checkpoint], missing: Missing, dtype: OutputDtype
) -> Inputs:
    """Match the keys of all checkpoints by canonical name.

    Checkpoints of another layout are converted to that of the first fine-tuned one.
    """
    checkpoints = [zeroshot, *finetuned]
    if len({one.family.layout for one in checkpoints}) > 1:
        from clipmerge.checkpoint.views import convert_checkpoint

        checkpoints = [convert_checkpoint(one, finetuned[0]) for one in checkpoints]
    # a checkpoint without a configuration is of the others' family
    known = [one for one in checkpoints if one.config is not None] or checkpoints
    family = known[0].family
    for other in known:
        if other.family is not family:
            raise CheckpointError(
                f"{other.source} is of the family {other.family.name}, {known[0].source} of"
                f" {family.name}; models of different families do not merge. Give the base that was"
                " fine-tuned"
            )
    keys = [family.by_canonical_name(one.entries, one.source) for one in checkpoints]
    first, *others = checkpoints
    return Inputs(
        family=family,
        zeroshot=first,
        finetuned=tuple(others),
        zeroshot_keys=keys[0],
        finetuned_keys=tuple(keys[1:]),
        layer_of=layers_of(name for found in keys for name in found),
        missing=missing,
        dtype=dtype,
        notes=[note for one in checkpoints for note in one.notes],
    )
