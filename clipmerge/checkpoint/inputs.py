"""Two or more checkpoints side by side: which keys are the same parameter, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint.compare import is_incidental, what_happens
from clipmerge.checkpoint.converted import in_one_layout
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.checkpoint.with_head import WithHead
from clipmerge.errors import CheckpointError, shorten
from clipmerge.families import Family, family_of, is_buffer, known_keys, tower_of
from clipmerge.files.safetensors import DTYPES, Array, TensorEntry
from clipmerge.layers import HEAD
from clipmerge.planning.choices import Missing

if TYPE_CHECKING:
    from torch import Tensor

_TOWER_WORDS = {"full": "both towers", "vision": "the vision tower only", "text": "the text tower only"}


@dataclass(frozen=True)
class Inputs:
    """The zero-shot checkpoint and its fine-tuned ones, aligned by canonical parameter name.

    Attributes:
        family: What they are.
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K; usually one.
        zeroshot_keys: Canonical name to key in the zero-shot file, in the file's order.
        finetuned_keys: The same for each fine-tuned file.
        tower: What the fine-tuned checkpoints hold: ``full``, ``vision`` or ``text``.
        missing: What happens to keys that only one side has.
        notes: What the user should know, one line each.
    """

    family: Family
    zeroshot: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    zeroshot_keys: dict[str, str]
    finetuned_keys: tuple[dict[str, str], ...]
    tower: str
    missing: Missing = "error"
    notes: list[str] = field(default_factory=list)

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer to its parameters' canonical names, network order; everything the zero-shot file holds."""
        return self.family.group(self.zeroshot_keys)

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """Canonical name to layer, whichever checkpoint holds it."""
        names = dict.fromkeys(name for keys in (self.zeroshot_keys, *self.finetuned_keys) for name in keys)
        return self.family.layers_of(name for name in names if self.family.knows(name))

    @property
    def folders(self) -> set[Path]:
        """Folders that hold something of the checkpoints; an adapter's side files are not beside its weights."""
        each = (self.zeroshot, *self.finetuned)
        return {one.folder for one in each} | {file.parent for one in each for file in one.files}

    @property
    def is_partial(self) -> bool:
        """Whether the fine-tuned checkpoints are one tower of a full zero-shot model."""
        return self.tower != "full" and tower_of(self.layers) == "full"

    @property
    def has_built_head(self) -> bool:
        """Whether the zero-shot checkpoint's head was built from class prompts."""
        return isinstance(self.zeroshot, WithHead)

    @property
    def keeps_head(self) -> bool:
        """Whether only the fine-tuned checkpoints have a classifier: the output has it too, and their one tower.

        A head that was built for the zero-shot checkpoint is none of its own.
        """
        own = HEAD in self.layers and not self.has_built_head
        if self.tower == "full" or self.missing == "keep-zeroshot" or own:
            return False
        return any(self.layer_of.get(name) == HEAD for keys in self.finetuned_keys for name in keys)

    @property
    def is_classifier(self) -> bool:
        """Whether the output has a classification head, and no class prompts."""
        return self.tower == "vision" and any(self.layer_of.get(name) == HEAD for name in self.form_keys)

    @property
    def takes_zeroshot_form(self) -> bool:
        """Whether the output has the zero-shot checkpoint's shape, configuration and side files."""
        return self.is_partial and not self.keeps_head

    @property
    def form(self) -> Checkpoint:
        """The checkpoint whose shape, configuration and side files the output has."""
        return self.zeroshot if self.takes_zeroshot_form else self.finetuned[0]

    @property
    def form_keys(self) -> dict[str, str]:
        """Canonical name to key in the file of `form`."""
        return self.zeroshot_keys if self.takes_zeroshot_form else self.finetuned_keys[0]

    @cached_property
    def output_keys(self) -> dict[str, str]:
        """Canonical name to key in the output: spelled as `form` spells it, a wrapper's prefix taken off."""
        files = ((self.finetuned[0], self.finetuned_keys[0]), (self.zeroshot, self.zeroshot_keys))
        keys: dict[str, str] = {}
        for checkpoint, names in (*files, (self.form, self.form_keys)):
            prefix = self.family.wrapper_prefix(checkpoint.entries)
            keys |= {name: key.removeprefix(prefix) for name, key in names.items()}
        return keys

    def expects(self, name: str) -> bool:
        """Whether the fine-tuned checkpoints, if they are one tower of the model, must hold a zero-shot parameter."""
        if not self.is_partial or self.layer_of[name] == HEAD:
            return True
        tower, _, rest = self.layer_of[name].partition(".")
        if rest != "projection":
            return tower == self.tower
        projection = f"{tower}.projection"
        return tower == self.tower and any(self.layer_of.get(n) == projection for k in self.finetuned_keys for n in k)

    def merges(self, name: str) -> bool:
        """Whether a parameter is a float that every checkpoint holds, so that it can be merged."""
        if name not in self.zeroshot_keys or not all(name in keys for keys in self.finetuned_keys):
            return False
        entries = [self.zeroshot.entries[self.zeroshot_keys[name]]]
        entries += [c.entries[keys[name]] for c, keys in zip(self.finetuned, self.finetuned_keys, strict=True)]
        return all(entry.is_float for entry in entries) and not is_buffer(name)

    def theta_0(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Map a zero-shot parameter; see `Checkpoint.tensor`."""
        return self.zeroshot.tensor(self.zeroshot_keys[name], start, stop)

    def theta_1(self, name: str, start: int = 0, stop: int | None = None, *, which: int = 0) -> Tensor:
        """Map a fine-tuned parameter; see `Checkpoint.tensor`."""
        return self.finetuned[which].tensor(self.finetuned_keys[which][name], start, stop)

    def entries(self, name: str) -> list[TensorEntry]:
        """Where a tensor lies: in the zero-shot checkpoint, then in the fine-tuned ones that have it."""
        return [checkpoint.entries[key] for checkpoint, key in self._holders(name)]

    def arrays(self, name: str, start: int, stop: int) -> tuple[Array, list[Array]]:
        """Map a run of a tensor's elements: zero-shot, and of the fine-tuned that have it; see `Checkpoint.array`."""
        theta_0, *finetuned = (checkpoint.array(key, start, stop) for checkpoint, key in self._holders(name))
        return theta_0, finetuned

    def release(self, name: str) -> None:
        """Let go of a tensor's mapped pages in every checkpoint; see `Checkpoint.release`."""
        for checkpoint, key in self._holders(name):
            checkpoint.release(key)

    def _holders(self, name: str) -> list[tuple[Checkpoint, str]]:
        everyone = zip((self.zeroshot, *self.finetuned), (self.zeroshot_keys, *self.finetuned_keys), strict=True)
        return [(checkpoint, keys[name]) for checkpoint, keys in everyone if name in keys]


def align_checkpoints(
    zeroshot: Checkpoint,
    finetuned: list[Checkpoint],
    *,
    missing: Missing = "error",
    mixed_dtypes: bool = False,
) -> Inputs:
    """Align checkpoints and refuse what does not fit; no weight is read.

    Args:
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K, at least one.
        missing: What to do with keys that only one side has; ``error`` lists them.
        mixed_dtypes: Accept different float dtypes (an output dtype was named).

    Returns:
        The aligned pair.

    Raises:
        CheckpointError: The first thing that does not fit, in one line.
    """
    inputs = align(zeroshot, finetuned, missing=missing)
    for problem in find_mismatches(inputs, missing=missing, mixed_dtypes=mixed_dtypes):
        raise CheckpointError(problem)
    return inputs


def align(zeroshot: Checkpoint, finetuned: list[Checkpoint], *, missing: Missing = "error") -> Inputs:
    """Match keys by canonical name, without judging whether the checkpoints fit.

    Args:
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K, at least one.
        missing: As in `align_checkpoints`.

    Returns:
        The aligned pair.

    Raises:
        CheckpointError: If a checkpoint is of no known family, or they are of several.
    """
    zeroshot, finetuned = in_one_layout(zeroshot, finetuned)
    checkpoints = (zeroshot, *finetuned)
    family = _common_family(checkpoints)
    keys = [{name: key for key, name in _names(family, each).items()} for each in checkpoints]
    try:
        family.layers_of(keys[0])
    except CheckpointError as error:
        raise CheckpointError(f"{zeroshot.source}: {error}") from None
    towers = {_tower(family, names) for names in keys[1:]}
    tower = towers.pop() if len(towers) == 1 else "full"
    inputs = Inputs(family, zeroshot, tuple(finetuned), keys[0], tuple(keys[1:]), tower, missing)
    inputs.notes.extend(each.note for each in (zeroshot, *finetuned) if each.note)
    inputs.notes.extend(what_happens(inputs))
    for each in (zeroshot, *finetuned):
        if each.config is None:
            inputs.notes.append(f"{each.source}: no {family.config} beside it, so its activation could not be compared")
    return inputs


def _common_family(checkpoints: tuple[Checkpoint, ...]) -> Family:
    """The family of all; the first config decides for those without one whose keys it fits as well."""
    found = [_family(each) for each in checkpoints]
    first = next((f for f, each in zip(found, checkpoints, strict=True) if each.config is not None), found[0])
    for family, each in zip(found, checkpoints, strict=True):
        undecided = each.config is None and known_keys(first, each.entries) >= known_keys(family, each.entries)
        if family is not first and not undecided:
            known = next(e for e, f in zip(checkpoints, found, strict=True) if f is first)
            raise CheckpointError(
                f"{each.source} is a {family.name} checkpoint and {known.source} a {first.name} one; models of "
                "different families do not merge. Give the base that was fine-tuned"
            )
    return first


def _family(checkpoint: Checkpoint) -> Family:
    try:
        return family_of(checkpoint.config, checkpoint.entries)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.source}: {error}") from None


def _names(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    try:
        return family.canonical_names(checkpoint.entries)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.source}: {error}") from None


def _tower(family: Family, names: dict[str, str]) -> str:
    return tower_of(family.layers_of(name for name in names if family.knows(name)).values())


def find_mismatches(inputs: Inputs, *, missing: Missing = "error", mixed_dtypes: bool = False) -> list[str]:
    """List what keeps checkpoints from being merged, most telling first, one line each.

    Args:
        inputs: Aligned checkpoints.
        missing: As in `align_checkpoints`.
        mixed_dtypes: As in `align_checkpoints`.

    Returns:
        Messages; empty when everything fits.
    """
    problems = _tower_mismatch(inputs) + _several_heads(inputs)
    for which, checkpoint in enumerate([] if problems else inputs.finetuned):
        problems += _config_mismatches(inputs, checkpoint)
        if missing == "error":
            problems += _key_mismatches(inputs, which)
        problems += _field_mismatch(inputs, which, "shape", lambda entry: entry.shape)
        if mixed_dtypes:
            problems += _field_mismatch(inputs, which, "kind", lambda entry: "float" if entry.is_float else "integer")
        else:
            problems += _field_mismatch(
                inputs, which, "dtype", lambda entry: DTYPES[entry.dtype][0], " Or name one with `--dtype`."
            )
    # a scale and a bias have the same names in many models
    if not problems and not any(inputs.merges(name) for name in inputs.zeroshot_keys if "." in inputs.layer_of[name]):
        problems.append(
            f"{inputs.finetuned[0].source}: has no weight in common with {inputs.zeroshot.source}, so there is nothing "
            f"to merge; is it a {inputs.family.name} checkpoint?"
        )
    return problems


def _tower_mismatch(inputs: Inputs) -> list[str]:
    ours = tower_of(inputs.layers)
    if ours in ("full", inputs.tower):
        return []
    return [
        f"{inputs.zeroshot.source}: holds the {ours} tower only, the fine-tuned checkpoint "
        f"{_TOWER_WORDS[inputs.tower]}; give the zero-shot model that was fine-tuned"
    ]


def _several_heads(inputs: Inputs) -> list[str]:
    if len(inputs.finetuned) < 2 or not inputs.keeps_head or inputs.has_built_head:
        return []
    return [
        "several fine-tuned classifiers, and a zero-shot model without a head: one head can be kept, not several; give "
        "one of them, or a base with a head of the same classes"
    ]


def _config_mismatches(inputs: Inputs, finetuned: Checkpoint) -> list[str]:
    if inputs.zeroshot.config is None or finetuned.config is None:
        return []
    problems = []
    ours, theirs = inputs.family.settings(inputs.zeroshot.config), inputs.family.settings(finetuned.config)
    for side in ("vision", "text", ""):
        if inputs.tower not in ("full", side):
            continue
        for key, a in ours.get(side, {}).items():
            b = theirs.get(side, {}).get(key)
            if a == b or None in (a, b):
                continue
            problems.append(
                f"the {side} towers differ in {key}: zeroshot {a}, finetuned {b}; the weights would merge "
                "silently and wrongly. Use the base that was fine-tuned, or correct the wrong config.json"
                if side
                else f"{key} differs: zeroshot {a}, finetuned {b}; these are not the same {inputs.family.name}"
            )
    return problems


def _key_mismatches(inputs: Inputs, which: int) -> list[str]:
    ours, theirs = inputs.zeroshot_keys, inputs.finetuned_keys[which]
    only_ours = [n for n in ours if n not in theirs and not is_incidental(n) and inputs.expects(n)]
    only_theirs = [n for n in theirs if n not in ours and not is_incidental(n)]
    if inputs.keeps_head:
        only_theirs = [n for n in only_theirs if inputs.layer_of.get(n) != HEAD]
    problems = []
    for side, names in (("zero-shot", only_ours), ("fine-tuned", only_theirs)):
        if names:
            problems.append(
                f"{len(names)} keys are only in the {side} checkpoint: {shorten(names)}; if that is meant, set "
                "`missing=keep-zeroshot` or `missing=keep-finetuned`"
            )
    return problems


def _field_mismatch(inputs: Inputs, which: int, what: str, get: Callable[[Any], Any], advice: str = "") -> list[str]:
    keys = inputs.finetuned_keys[which]
    shared = [name for name in inputs.zeroshot_keys if name in keys and not is_incidental(name)]
    differing = []
    for name in shared:
        a = get(inputs.zeroshot.entries[inputs.zeroshot_keys[name]])
        b = get(inputs.finetuned[which].entries[keys[name]])
        if a != b:
            differing.append((name, a, b))
    if not differing:
        return []
    name, a, b = differing[0]
    return [
        f"{len(differing)} of {len(shared)} tensors differ in {what}; first {name}: zeroshot {a}, finetuned {b}. "
        f"Compare both with `clipmerge inspect`.{advice}"
    ]
