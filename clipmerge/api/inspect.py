"""`clipmerge inspect`: layers, shapes, relative changes, and mismatches between two checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.api._in_memory import CheckpointLike, as_sources, open_source
from clipmerge.api._results import InspectResult
from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.alignment import align, find_mismatches, finetuned_dtype
from clipmerge.checkpoint.ancestry import UNRELATED, cosines_of
from clipmerge.checkpoint.source import prefix_errors
from clipmerge.errors import CheckpointError
from clipmerge.families import family_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.progress import Logged, Progress, say_all
from clipmerge.types import Json, Layers, Names

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 20


def inspect(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | None = None,
    *,
    weights: bool = True,
    progress: Progress | None = None,
) -> InspectResult:
    """Describe a checkpoint, or compare two.

    Weights are read, and downloaded, only for two checkpoints that match.

    Args:
        zeroshot: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        finetuned: The same, fine-tuned from it.
        weights: Whether to read weights, to compute how far each layer moved.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.

    Returns:
        Layers in network order, each with its number of tensors and entries, shapes and, for two
        checkpoints, ||theta_1 - theta_0|| / ||theta_0||; whether the second started from the first;
        and obstacles to a merge.

    Raises:
        CheckpointError: If a checkpoint cannot be read.
    """
    with as_sources([zeroshot] if finetuned is None else [zeroshot, finetuned]) as (base, *others):
        record = _describe_pair(
            base, others[0] if others else None, progress or Logged(), weights=weights
        )
    return InspectResult(record["family"], record["layers"], tuple(record["mismatches"]), record)


def _describe_pair(
    zeroshot: str, finetuned: str | None, progress: Progress, *, weights: bool
) -> Json:
    base = open_source(zeroshot)
    if finetuned is None:
        family, layers = _describe_alone(base)
        alone: Json = {
            "family": family,
            "zeroshot": _describe_source(base),
            "finetuned": None,
            "layers": layers,
        }
        return alone | {"mismatches": [], "ancestry": None, "total": _describe_total(base)}
    other = open_source(finetuned, base)
    inputs = align(base, [other])
    mismatches = find_mismatches(inputs, mixed_dtypes=finetuned_dtype(inputs) is not None)
    layers = _describe(inputs.zeroshot, inputs.zeroshot_keys, inputs.layers)
    if inputs.notes:
        from clipmerge.report.text import texts_of

        say_all(progress, texts_of(inputs.notes))
    ancestry = None
    if weights:
        # without weights its import would take a fifth of the time
        from clipmerge.checks import check_models
        from clipmerge.report.text import texts_of

        progress.stage("inspect")
        done = 0
        total = sum(layer["size"] for layer in layers.values())
        for layer, names in inputs.layers.items():
            layers[layer]["change"] = _relative_change(inputs, names)
            done += layers[layer]["size"]
            progress.advance(done, total)
        say_all(progress, texts_of(check_models(inputs)))
        cosines = cosines_of(inputs)
        related = all(cosine >= UNRELATED for cosine in cosines.values())
        ancestry = {"relation": "related" if related else "unrelated", "cosines": cosines}
        mismatches = mismatches or _find_faults(inputs, layers)
    return {
        "family": inputs.family.name,
        "zeroshot": _describe_source(base),
        "finetuned": _describe_source(other),
        "layers": layers,
        "mismatches": mismatches,
        "ancestry": ancestry,
        "total": _describe_total(inputs.zeroshot),
    }


def _find_faults(inputs: Inputs, layers: dict[str, Json]) -> list[str]:
    """Find the first fault that a merge notices only while reading: NaN, Inf, or integers that
    differ.
    """
    from clipmerge.merging.stream import plan_tensors
    from clipmerge.planning.plan import Plan, SourceRecord
    from clipmerge.planning.recipe import Recipe

    unnamed = SourceRecord(source="", files={})
    recipe = Recipe(name="none", method={})
    copies = Plan(recipe=recipe, zeroshot=unnamed, finetuned=(unnamed,), weights=(1.0,), layers={})
    sound = {  # not read again
        name
        for layer, names in inputs.layers.items()
        for name in names
        if inputs.merges(name) and layers[layer]["change"] is not None
    }
    try:
        for tensor in plan_tensors(inputs, copies):
            for _ in tensor.chunks(np.empty) if tensor.name not in sound else ():
                pass
    except CheckpointError as error:
        return [str(error)]
    return []


def _describe_source(checkpoint: Checkpoint) -> Json:
    files = [file.name for file in checkpoint.files]
    return {"source": checkpoint.source, "revision": checkpoint.revision, "files": files}


def _describe_total(checkpoint: Checkpoint) -> Json:
    entries = checkpoint.entries.values()
    return {
        "parameters": len(entries),
        "size": sum(entry.size for entry in entries),
        "bytes": checkpoint.bytes,
        "dtypes": sorted({DTYPES[entry.dtype][0] for entry in entries}),
    }


def _describe_alone(checkpoint: Checkpoint) -> tuple[str, dict[str, Json]]:
    with prefix_errors(checkpoint.source):
        family = family_of(checkpoint.config, checkpoint.entries)
        keys = family.by_canonical_name(checkpoint.entries)
        return family.name, _describe(checkpoint, keys, family.group(keys))


def _describe(checkpoint: Checkpoint, keys: dict[str, str], layers: Layers) -> dict[str, Json]:
    return {
        layer: {
            "parameters": len(names),
            "size": sum(checkpoint.entries[keys[name]].size for name in names),
            "shapes": {name: list(checkpoint.entries[keys[name]].shape) for name in names},
        }
        for layer, names in layers.items()
    }


def _relative_change(inputs: Inputs, names: Names) -> float | None:
    """||task_vector|| / ||theta_0|| of a layer; ``None`` if nothing can be compared."""
    change = base = 0.0
    sizes = {
        name: inputs.entries(name)[0].size
        for name in names
        if inputs.merges(name) and len({entry.shape for entry in inputs.entries(name)}) == 1
    }
    if not sizes:
        return None
    for name, size in sizes.items():
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            theta_0 = inputs.theta_0(name, start, stop).float()
            change += _square_norm(inputs.theta_1(name, start, stop).float() - theta_0)
            base += _square_norm(theta_0)
    ratio = math.sqrt(change / base) if base else math.inf if change else 0.0
    return ratio if math.isfinite(ratio) else None


def _square_norm(tensor: Tensor) -> float:
    return float(tensor.flatten().dot(tensor.flatten()))
