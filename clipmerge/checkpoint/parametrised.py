"""Weights that are stored in parts, such as a length and a direction: formed when they are read.

Averaging the parts of two such checkpoints is not averaging their weights, and a zero-shot
checkpoint usually has the plain weights. So a pair is always merged as weights, and written so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import Checkpoint, DerivedCheckpoint, LazyTensor, stored_array
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.safetensors import DTYPES, Array, TensorEntry
from clipmerge.finding import Finding
from clipmerge.parallel import one_thread
from clipmerge.types import Names, Shape

if TYPE_CHECKING:
    from torch import Tensor

# Parts of weights that cannot be formed here.
_UNFORMED = re.compile(r"\.parametrizations\.|\.weight_(?:g|orig)$")


@dataclass(frozen=True)
class _Parametrisation:
    """One way to store a weight in parts."""

    name: str
    # the end of each part's key, after the module's name, with ``NAME`` for the parameter's
    ends: Names
    # whether parts of these shapes can be formed, the whole weight's shape being the first's
    fits: Callable[[tuple[Shape, ...]], bool]
    form: Callable[..., Tensor]  # of the parts in float64, in the order of ``ends``
    parameter: str | None = None  # its name, if the keys do not tell


def _has_lengths(shapes: tuple[Shape, ...]) -> bool:
    """Whether the second part holds one length for each slice of the first, or one for all."""
    direction, length = shapes
    if not length or set(length) == {1}:
        return True
    return len(length) == len(direction) and all(
        ours in (1, theirs) for ours, theirs in zip(length, direction, strict=True)
    )


def _scale_to_length(direction: Tensor, length: Tensor) -> Tensor:
    """Length * direction / ||direction||, as of `torch.nn.utils.weight_norm`."""
    if length.ndim != direction.ndim:
        length = length.reshape((1,) * direction.ndim)
    axes = [axis for axis, size in enumerate(length.shape) if size == 1]
    norm = direction.square().sum(axes, keepdim=True).sqrt() if axes else direction.abs()
    return direction * (length / norm)


def _has_singular_vectors(shapes: tuple[Shape, ...]) -> bool:
    weight, left, right = shapes
    rows = weight[0] if weight else 0
    size = 1
    for side in weight[1:]:
        size *= side
    return len(weight) > 1 and left == (rows,) and right == (size,)


def _divide_by_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The weight divided by its largest singular value, as of `torch.nn.utils.spectral_norm`."""
    return weight / left.dot(weight.flatten(1).mv(right))


_PARAMETRISATIONS = (
    _Parametrisation("weight norm", ("NAME_v", "NAME_g"), _has_lengths, _scale_to_length),
    _Parametrisation(
        "weight norm",
        ("parametrizations.NAME.original1", "parametrizations.NAME.original0"),
        _has_lengths,
        _scale_to_length,
    ),
    _Parametrisation("GmP", ("theta", "r"), _has_lengths, _scale_to_length, parameter="weight"),
    _Parametrisation(
        "spectral norm", ("NAME_orig", "NAME_u", "NAME_v"), _has_singular_vectors, _divide_by_norm
    ),
    _Parametrisation(
        "spectral norm",
        (
            "parametrizations.NAME.original",
            "parametrizations.NAME.0._u",
            "parametrizations.NAME.0._v",
        ),
        _has_singular_vectors,
        _divide_by_norm,
    ),
    _Parametrisation(
        "pruning",
        ("NAME_orig", "NAME_mask"),
        lambda shapes: shapes[0] == shapes[1],
        lambda weight, mask: weight * mask,
    ),
)


def form_weights(checkpoint: Checkpoint) -> Checkpoint:
    """View a checkpoint with the weights that its parts stand for; without parts it is returned as
    it is.
    """
    entries = dict(checkpoint.entries)
    lazy = {}
    names: dict[str, int] = {}
    for kind in _PARAMETRISATIONS:
        for weight, keys in _find_parts(kind, entries):
            parts = [entries[key] for key in keys]
            if weight in entries or not kind.fits(tuple(part.shape for part in parts)):
                continue
            entries = _replace_entries(entries, keys, weight)
            lazy[weight] = LazyTensor(keys, partial(_form_weight, checkpoint, keys, kind.form))
            names[kind.name] = names.get(kind.name, 0) + 1
    if unformed := [key for key in entries if _UNFORMED.search(key)]:
        raise CheckpointError(
            f"{checkpoint.source}: holds parts that PyTorch makes weights from"
            f" ({shorten(unformed, 2)}), so the weights themselves are missing; remove the"
            " parametrisation (remove_parametrizations, remove_weight_norm or prune.remove) where"
            " it was trained and save that"
        )
    if not lazy:
        return checkpoint
    note = Finding.of(
        "formed-weights", source=checkpoint.source, weights=len(lazy), kinds=list(names)
    )
    notes = (*checkpoint.notes, note)
    return DerivedCheckpoint.of(checkpoint, lazy, entries=entries, notes=notes)


def _find_parts(kind: _Parametrisation, entries: Iterable[str]) -> list[tuple[str, Names]]:
    """The weights that are stored in this way, each with the keys of its parts."""
    keys_of_file = set(entries)
    end = re.escape(kind.ends[0]).replace("NAME", r"(?P<name>\w+)")
    weights = []
    for key in entries:
        if match := re.fullmatch(rf"(?P<module>.+\.)?{end}", key):
            module = match["module"] or ""
            name = kind.parameter or match["name"]
            keys = tuple(module + part.replace("NAME", name) for part in kind.ends)
            if keys_of_file.issuperset(keys):
                weights.append((module + name, keys))
    return weights


def _replace_entries(
    entries: dict[str, TensorEntry], keys: Names, weight: str
) -> dict[str, TensorEntry]:
    """The entries with a weight in the place of its first part."""
    whole = entries[keys[0]]
    size = whole.size * DTYPES[whole.dtype][1]
    replaced: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        if key == keys[0]:
            replaced[weight] = replace(whole, begin=0, end=size)
        elif key not in keys:
            replaced[key] = entry
    return replaced


@one_thread()
def _form_weight(checkpoint: Checkpoint, keys: Names, form: Callable[..., Tensor]) -> Array:
    """One weight in float32 (float64 if stored so), not rounded to a narrower stored dtype."""
    import torch

    parts = [checkpoint.tensor(key) for key in keys]
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    weight = form(*(part.double() for part in parts))
    return stored_array(weight.to(wide).flatten().contiguous())
