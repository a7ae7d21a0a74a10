"""Two or more aligned checkpoints: their keys by parameter, and the layout of the output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import Checkpoint
from clipmerge.families import Family, is_index_buffer, layers_of, tower_of
from clipmerge.files.safetensors import TensorEntry
from clipmerge.files.side_files import PROCESSORS, VOCABULARIES, have_same_files
from clipmerge.layers import HEAD
from clipmerge.types import Layers, Missing

if TYPE_CHECKING:
    from torch import Tensor


HEAD_WEIGHT, HEAD_BIAS = "classification_head.weight", "classification_head.bias"
_TEXT_BLOCK = re.compile(r"text\.\d+\.")
#: A checkpoint that holds a tensor, and the tensor's key there.
Location = tuple[Checkpoint, str]


@dataclass(frozen=True)
class Inputs:
    """The zero-shot checkpoint and its fine-tuned ones, aligned by canonical parameter name."""

    family: Family
    zeroshot: Checkpoint  # theta_0
    finetuned: tuple[Checkpoint, ...]  # theta_1 ... theta_K; usually one
    # keys in the zero-shot file by canonical name, in the file's order
    zeroshot_keys: dict[str, str]
    finetuned_keys: tuple[dict[str, str], ...]  # the same for each fine-tuned file
    tower: str  # the towers that the fine-tuned checkpoints hold: ``full``, ``vision`` or ``text``
    missing: Missing = "error"  # treatment of keys that only one side has
    notes: list[str] = field(default_factory=list)

    @cached_property
    def layers(self) -> Layers:
        """Canonical parameter names by layer, in network order; all parameters of the zero-shot
        file.
        """
        return self.family.group(self.zeroshot_keys)

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """Layers by canonical name, for the parameters of all checkpoints."""
        names = dict(self.zeroshot_keys)
        for keys in self.finetuned_keys:
            names |= keys
        return layers_of(names)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """theta_0, theta_1 ... theta_K."""
        return (self.zeroshot, *self.finetuned)

    @cached_property
    def are_alike(self) -> bool:
        """Whether all checkpoints have the same parameters, of the same shapes and dtypes, and the
        same configuration, processor and tokenizer beside them.
        """
        zeroshot = self.zeroshot
        beside = (*PROCESSORS, *VOCABULARIES)
        for finetuned, keys in zip(self.finetuned, self.finetuned_keys, strict=True):
            if zeroshot.config is None or finetuned.config != zeroshot.config or zeroshot.stored:
                return False
            if keys.keys() != self.zeroshot_keys.keys():
                return False
            for name, key in keys.items():
                ours, theirs = self.zeroshot_entry(name), finetuned.entries[key]
                if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                    return False
            if not have_same_files(zeroshot.folder, finetuned.folder, beside):
                return False
        return True

    @cached_property
    def is_partial(self) -> bool:
        """Whether the fine-tuned checkpoints are one tower of a full zero-shot model."""
        return self.tower != "full" and tower_of(self.layers) == "full"

    @cached_property
    def keeps_head(self) -> bool:
        """Whether only the fine-tuned checkpoints are classifiers; the output then has their head
        and their tower.
        """
        has_head = HEAD in self.layers and not self.zeroshot.has_built_head
        if self.tower == "full" or self.missing == "keep-zeroshot" or has_head:
            return False
        return any(self._has_head(keys) for keys in self.finetuned_keys)

    def _has_head(self, keys: dict[str, str]) -> bool:
        return any(self.layer_of[name] == HEAD for name in keys)

    @property
    def have_heads_only(self) -> bool:
        """Whether every checkpoint tells classes apart by a head alone: it has one, and no blocks
        of a text tower.
        """
        if any(_TEXT_BLOCK.match(layer) for layer in self.layers):
            return False
        everyone = (self.zeroshot_keys, *self.finetuned_keys)
        return all(map(self._has_head, everyone))

    @property
    def is_classifier(self) -> bool:
        """Whether the output has a classification head, and no class prompts."""
        return self.tower == "vision" and self._has_head(self.layout_keys)

    @cached_property
    def layout(self) -> Checkpoint:
        """The checkpoint whose keys, configuration and side files the output has: the zero-shot one
        if the others are one of its towers.
        """
        return self.zeroshot if self.is_partial and not self.keeps_head else self.finetuned[0]

    @property
    def layout_keys(self) -> dict[str, str]:
        """Keys in the file of `layout` by canonical name."""
        return self.zeroshot_keys if self.layout is self.zeroshot else self.finetuned_keys[0]

    @cached_property
    def output_keys(self) -> dict[str, str]:
        """Keys in the output by canonical name: those of `layout` where it has the parameter."""
        first, second = self.finetuned_keys[0], self.zeroshot_keys
        if self.layout is self.zeroshot:
            return first | second
        return first | second | first

    def expects(self, name: str) -> bool:
        """Whether the fine-tuned checkpoints must hold a zero-shot parameter, even if they are one
        tower.
        """
        layer = self.layer_of[name]
        if not self.is_partial or layer == HEAD:
            return True
        if not layer.startswith(f"{self.tower}."):
            return False
        # a tower may have been saved without its projection
        has_it = any(name in keys for keys in self.finetuned_keys)
        return has_it or not layer.endswith(".projection")

    def merges(self, name: str) -> bool:
        """Whether a parameter is a float that every checkpoint holds, so that it can be merged."""
        entries = self.entries(name)
        if len(entries) <= len(self.finetuned) or is_index_buffer(name):
            return False
        return all(entry.is_float for entry in entries)

    def zeroshot_entry(self, name: str) -> TensorEntry:
        """Type and place of a zero-shot parameter."""
        return self.zeroshot.entries[self.zeroshot_keys[name]]

    @property
    def merged_layers(self) -> Layers:
        """Mergeable parameters by layer, in network order, without empty layers."""
        merged = {}
        for layer, names in self.layers.items():
            if found := tuple(filter(self.merges, names)):
                merged[layer] = found
        return merged

    def theta_0(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Map a zero-shot parameter; see `Checkpoint.tensor`."""
        return self.zeroshot.tensor(self.zeroshot_keys[name], start, stop)

    def theta_1(
        self, name: str, start: int = 0, stop: int | None = None, *, which: int = 0
    ) -> Tensor:
        """Map a fine-tuned parameter; see `Checkpoint.tensor`."""
        return self.finetuned[which].tensor(self.finetuned_keys[which][name], start, stop)

    def entries(self, name: str) -> list[TensorEntry]:
        """Entries of a tensor: in the zero-shot checkpoint, then in the fine-tuned ones that have
        it.
        """
        holders = self.holders(name)
        return [checkpoint.entries[key] for checkpoint, key in holders]

    def release(self, name: str) -> None:
        """Release a tensor's mapped pages in every checkpoint; see `Checkpoint.release`."""
        for checkpoint, key in self.holders(name):
            checkpoint.release(key)

    def holders(self, name: str) -> list[Location]:
        """The checkpoints that hold a tensor, zero-shot first, each with the tensor's key in its
        file.
        """
        found = []
        if name in self.zeroshot_keys:
            found.append((self.zeroshot, self.zeroshot_keys[name]))
        for checkpoint, keys in zip(self.finetuned, self.finetuned_keys, strict=True):
            if name in keys:
                found.append((checkpoint, keys[name]))
        return found
