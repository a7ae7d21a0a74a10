"""`clipmerge inspect`: list the layers of a checkpoint, or compare two checkpoints.

With images it also measures the sharpness of each layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clipmerge.api._pair import CheckpointLike, Pair, as_addresses
from clipmerge.checkpoint import Checkpoint, Inputs, align_checkpoints, open_checkpoints
from clipmerge.checkpoint.mismatches import find_mismatches
from clipmerge.errors import UsageError
from clipmerge.files.safetensors import DTYPES
from clipmerge.options import InspectOptions, PlanOptions
from clipmerge.planning import Rows, Tabular
from clipmerge.progress import Journal, Progress
from clipmerge.types import Json, Names


@dataclass(frozen=True, repr=False)
class InspectResult(Tabular):
    """Result of `inspect`.

    Attributes:
        family: Name of the model family.
        layers: By layer, in network order: ``parameters`` (number of tensors), ``size`` (number of
            entries) and ``shapes``; with two checkpoints also ``change``, and with images
            ``sharpness`` and ``straggler``.
        mismatches: Reasons why the checkpoints cannot be merged, one line each.
        record: The output of ``clipmerge inspect --json``.
    """

    family: str
    layers: dict[str, Json]
    mismatches: Names
    record: Json

    def _rows(self) -> Rows:
        rows = []
        for name, layer in self.layers.items():
            row = {"layer": name, **layer}
            del row["shapes"]
            rows.append(row)
        return rows

    def _caption(self) -> str:
        return f"{self.family}, {len(self.layers)} layers, {len(self.mismatches)} mismatches"


def inspect(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> InspectResult:
    """List the layers of one checkpoint, or compare two checkpoints layer by layer.

    Args:
        zeroshot: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        finetuned: A checkpoint fine-tuned from ``zeroshot``, in one of these forms.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.InspectOptions`.

    Returns:
        The layers in network order. For two checkpoints, ``change`` is
        ||theta_1 - theta_0|| / ||theta_0|| of the layer. With ``data``, ``sharpness`` is measured
        in the middle of the path for each layer that fine-tuning changed, in nats.

    Raises:
        CheckpointError: If a checkpoint cannot be read.
        UsageError: If there are images but only one checkpoint.
    """
    opts = InspectOptions.of(options)
    if opts.data is not None and finetuned is None:
        raise UsageError("`data` measures the layers that fine-tuning changed; name FINETUNED too")
    journal = Journal(progress)
    checkpoints = [zeroshot] if finetuned is None else [zeroshot, finetuned]
    with as_addresses(checkpoints, state_key=opts.state_key) as sources:
        base, *others = open_checkpoints(sources, [opts.model] * len(sources))
        inputs = align_checkpoints(base, others, refuse=False)
        record = _describe(inputs, others, journal)
        if opts.data is not None:
            _add_sharpness(record, Pair(inputs, opts.device), opts, journal)
    return InspectResult(record["family"], record["layers"], tuple(record["mismatches"]), record)


def _describe(inputs: Inputs, others: list[Checkpoint], journal: Journal) -> Json:
    """Make the record of an inspection, with a comparison if there is a second checkpoint."""
    layers = _describe_layers(inputs)
    return {
        "family": inputs.family.name,
        "zeroshot": _describe_source(inputs.zeroshot),
        "finetuned": _describe_source(others[0]) if others else None,
        "layers": layers,
        "mismatches": _compare(inputs, layers, journal) if others else [],
        "total": _describe_all_tensors(inputs.zeroshot),
        "warnings": journal.warnings,
    }


def _compare(inputs: Inputs, layers: dict[str, Json], journal: Journal) -> list[str]:
    """Add ``change`` to each layer, and return the reasons why the checkpoints cannot be merged."""
    from clipmerge.checks import check_models

    journal.warn(*inputs.notes)
    mismatches = find_mismatches(inputs)
    journal.stage("inspect")
    for number, (layer, names) in enumerate(inputs.layers.items(), start=1):
        change = layers[layer]["change"] = _relative_change(inputs, names)
        if change is not None and math.isnan(change):
            layers[layer]["change"] = None
            mismatches.append(f"{layer}: its weights hold NaN or Inf")
        journal.advance(number, len(layers))
    for failed in () if mismatches else check_models(inputs):
        journal.warn(failed.text)
    return mismatches


def _add_sharpness(record: Json, pair: Pair, options: InspectOptions, journal: Journal) -> None:
    """Measure each layer's sharpness on images, and add it to the record with a straggler mark."""
    from clipmerge.api._images import measure
    from clipmerge.api.merge import open_and_split_images
    from clipmerge.planning.recipe import load_recipe

    if record["mismatches"]:
        journal.warn("sharpness is not measured, because the checkpoints do not match")
        return
    recipe = load_recipe({"measure": {"name": "sharpness"}, "method": {"name": "wise-ft"}})
    opts = PlanOptions.of({**vars(options), "verdict": False})
    pair, split = open_and_split_images(pair, recipe, opts, journal)
    assert split is not None
    found, images = measure(pair, recipe, split, opts, journal)
    record["images"] = images.images
    layers = record["layers"]
    for layer in pair.inputs.layers.keys() - layers.keys():  # a zero-shot head built from prompts
        layers[layer] = _describe_layers(pair.inputs)[layer]
        layers[layer]["change"] = _relative_change(pair.inputs, pair.inputs.layers[layer])
    for layer, values in found.layers.items():
        straggler = bool(values["straggler"])
        layers[layer] |= {"sharpness": values["sharpness"], "straggler": straggler}


def _describe_source(checkpoint: Checkpoint) -> Json:
    files = [file.name for file in checkpoint.files]
    return {"source": checkpoint.source, "revision": checkpoint.revision, "files": files}


def _describe_all_tensors(checkpoint: Checkpoint) -> Json:
    """Count a checkpoint's tensors and entries, and list its dtypes."""
    entries = checkpoint.entries.values()
    return {
        "parameters": len(entries),
        "size": sum(entry.size for entry in entries),
        "dtypes": sorted({DTYPES[entry.dtype] for entry in entries}),
    }


def _describe_layers(inputs: Inputs) -> dict[str, Json]:
    described = {}
    for layer, names in inputs.layers.items():
        entries = {name: inputs.zeroshot_entry(name) for name in names}
        described[layer] = {
            "parameters": len(names),
            "size": sum(entry.size for entry in entries.values()),
            "shapes": {name: list(entry.shape) for name, entry in entries.items()},
        }
    return described


def _relative_change(inputs: Inputs, names: Names) -> float | None:
    """Compute ||task_vector|| / ||theta_0|| of a layer. The result is ``None`` if there is nothing
    to compare or theta_0 is zero, and NaN if a weight is not finite.
    """
    changes, bases = [], []
    for name in names:
        if _are_comparable(inputs, name):
            theta_0, theta_1 = inputs.theta_0(name).float(), inputs.theta_1(name).float()
            changes.append(float((theta_1 - theta_0).norm()))
            bases.append(float(theta_0.norm()))
    change, base = math.hypot(*changes), math.hypot(*bases)
    if not math.isfinite(change + base):
        return math.nan
    return change / base if base else None


def _are_comparable(inputs: Inputs, name: str) -> bool:
    """Whether both checkpoints have a float parameter of this name and of the same shape."""
    shapes = {entry.shape for entry in inputs.entries(name)}
    return inputs.merges(name) and len(shapes) == 1
