"""The plan of a merge: all its settings, as JSON that people read, diff, edit and apply again.

The JSON has no binary data. Tensors (saliency scores, learned coefficients) are in a safetensors
file beside it. The JSON has the name and the sha256 of this file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files import split_part
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import Array
from clipmerge.files.staging import TENSORS_SUFFIX, check_output_file, write_whole_file
from clipmerge.planning import Frozen, Rows, Tabular, read_versioned
from clipmerge.planning.recipe import Override, Recipe
from clipmerge.plugins import (
    Alpha,
    Density,
    check_mask_options,
    plugin_options,
)
from clipmerge.types import Device, Json, Layers, Missing, Names, OutputDtype, Shape, StrPath

# Prefixes of the names of a plan's tensors in their file. The parameter's name follows.
_SCORES, _COEFFICIENTS = "scores:", "coefficients:"
#: Tensors by parameter.
Tensors = dict[str, Array]
# Tolerance for a plan's mean and range, computed in float64 from float32 numbers: only the order of
# a sum may differ.
_SAME = 1e-6


class SourceRecord(Frozen):
    """One checkpoint of a merge.

    Attributes:
        source: A path or ``org/name``, as the user wrote it.
        revision: The commit on the Hub.
        model: The OpenCLIP architecture, if the option `model` named one.
        files: sha256 of each weight file, by name; ``None`` until the file is hashed.
    """

    source: str
    revision: str | None = None
    model: str | None = None
    files: dict[str, str | None]

    @property
    def pinned(self) -> str:
        """The source, with the commit that was used instead of the branch or tag that the user
        named.
        """
        if self.revision is None:
            return self.source
        address, part = split_part(self.source)
        return f"{address.partition('@')[0]}@{self.revision}" + (f"#{part}" if part else "")

    @property
    def public(self) -> SourceRecord:
        """A copy whose source has no private folders."""
        return self.replace(source=public_source(self.source, self.revision))


class HeadRecord(Frozen):
    """The settings of a head that is built from class prompts for the zero-shot model.

    Attributes:
        classes: Class names, in the order of the rows.
        templates: Prompt templates.
        device: Kind of device on which the head is built; another kind rounds differently.
    """

    classes: Names
    templates: Names
    device: Device = "cpu"


class TensorsRecord(Frozen):
    """The safetensors file beside a plan: its name and sha256; ``None`` if it was not kept."""

    file: str | None = None
    sha256: str | None = None


class LayerPlan(Frozen):
    """The settings of one layer.

    Attributes:
        alpha: Coefficient of the task vector: 0 = zero-shot, 1 = fine-tuned. If coefficients were
            learned, this is their mean.
        alpha_range: Smallest and largest learned coefficient. They only inform, because the merge
            uses the coefficients in the file beside the plan. ``None`` if the whole layer has one
            alpha.
        density: Share of the task vector kept, in (0, 1].
        mask: Rule that selects the entries to keep; ``None`` keeps all.
        mask_options: The mask's own options.
        parameters: Options of the mask for single parameters, by name; they override
            ``mask_options``.
    """

    alpha: Alpha
    alpha_range: tuple[Alpha, Alpha] | None = None
    density: Density = 1.0
    mask: str | None = None
    mask_options: Json = Field(default_factory=dict)
    parameters: dict[str, Json] = Field(default_factory=dict)

    def with_override(self, override: Override) -> LayerPlan:
        """Return a copy with the settings that an override of the recipe changes."""
        entry = self
        if override.alpha is not None:
            entry = entry.replace(alpha=override.alpha, alpha_range=None)
        if override.density is None:
            return entry
        if override.density == 1:
            return entry.replace(density=1.0, mask=None, mask_options={}, parameters={})
        return entry.replace(density=override.density, mask=entry.mask or "magnitude")

    @property
    def is_learned(self) -> bool:
        """Whether the merge uses learned coefficients, which are beside the plan, not `alpha`."""
        return self.alpha_range is not None


class Combination(Frozen):
    """How the task vectors of several checkpoints are masked and added up.

    Attributes:
        mask: Rule that selects the entries of each task vector to keep.
        density: Share of each task vector kept, in (0, 1].
        mask_options: The mask's own options.
        elect_signs: Whether each entry is averaged, as in TIES, over only those task vectors whose
            entry has the sign of the sum. If not, the task vectors are added up.
    """

    mask: str
    density: Density = 1.0
    mask_options: Json = Field(default_factory=dict)
    elect_signs: bool = False


class Plan(Tabular, Frozen):
    """A decided merge: the inputs by hash and the settings of each layer.

    Attributes:
        format: Version of this format.
        recipe: The recipe that made it.
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K.
        weights: One factor per fine-tuned checkpoint; checkpoint i enters layer l with ``weights[i]
            * alpha[l]``.
        combine: How task vectors are masked and combined; ``None`` adds them up.
        dtype: Output dtype, or ``keep``.
        missing: Treatment of keys that only one checkpoint has.
        head: The head that is built for the zero-shot model, if only the fine-tuned checkpoints
            have one.
        seed: Seed of the sample, the bootstrap and the random masks.
        layers: Settings by layer; layers that are not listed stay zero-shot.
        tensors: File with the scores that masks need and with learned coefficients.
        stragglers: Layers found to be stragglers.
        scores: Saliency scores for masks, by parameter; never part of the JSON.
        coefficients: Learned coefficients by parameter, float32 of shape (), (rows, 1, ...) or the
            parameter's own; never part of the JSON.
        files: The files that the plan was loaded from, the JSON first; never part of the JSON.
    """

    format: Literal["clipmerge-plan/3"] = "clipmerge-plan/3"
    recipe: Recipe
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...] = Field(min_length=1)
    weights: tuple[Alpha, ...]
    combine: Combination | None = None
    dtype: OutputDtype = "keep"
    missing: Missing = "error"
    head: HeadRecord | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    layers: dict[str, LayerPlan]
    tensors: TensorsRecord | None = None
    stragglers: Names = ()

    scores: Json = Field(default_factory=dict, exclude=True, repr=False)
    coefficients: Json = Field(default_factory=dict, exclude=True, repr=False)
    files: tuple[Path, ...] = Field(default=(), exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        """Whether both plans have the same JSON, which includes the sha256 of saved tensors."""
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def _caption(self) -> str:
        text = f"recipe {self.recipe.name!r}, {len(self.layers)} layers"
        alphas = [layer.alpha for layer in self.layers.values()]
        if alphas:
            text += f", alpha {min(alphas):.3g} to {max(alphas):.3g}"
        if self.stragglers:
            text += f", {len(self.stragglers)} stragglers"
        return text

    def _rows(self) -> Rows:
        return [
            {"layer": name, "alpha": layer.alpha, "density": layer.density, "mask": layer.mask}
            for name, layer in self.layers.items()
        ]

    @property
    def checkpoints(self) -> tuple[SourceRecord, ...]:
        """All inputs, theta_0 first."""
        return (self.zeroshot, *self.finetuned)

    @property
    def public(self) -> Plan:
        """A copy whose sources have no private folders."""
        zeroshot, *finetuned = (source.public for source in self.checkpoints)
        return self.replace(zeroshot=zeroshot, finetuned=tuple(finetuned))

    def with_tensors(self, scores: Mapping[str, Array], coefficients: Mapping[str, Array]) -> Plan:
        """Return a copy with these scores and coefficients, by parameter."""
        tensors = self.tensors or TensorsRecord()
        return self.replace(tensors=tensors, scores=scores, coefficients=coefficients)

    def save(self, path: StrPath, *, overwrite: bool = False) -> Plan:
        """Write the plan's tensors and then its JSON, each file completely or not at all.

        Args:
            path: The JSON file; tensors go to ``NAME.tensors.safetensors`` beside it.
            overwrite: Whether an earlier plan may be replaced.

        Returns:
            The plan as written, with the name and the sha256 of the tensors' file.

        Raises:
            OutputError: If a file already exists, or cannot be written.
        """
        check_output_file(Path(path), overwrite=overwrite)
        return write_plan_files(Path(path), self)

    @classmethod
    def load(cls, path: StrPath) -> Plan:
        """Read a plan and the tensors beside it.

        Args:
            path: The JSON file, written by `save` or by ``clipmerge plan``; it may have been
                edited.

        Returns:
            The plan.

        Raises:
            ClipmergeError: If there is no such file.
            UsageError: If the plan is invalid, or its tensors are missing or changed.
        """
        file = Path(path)
        fields = {**Plan.model_fields, **LayerPlan.model_fields}
        plan = read_versioned(cls, file, UsageError, "make one with `clipmerge plan`", fields)
        files = [file]
        scores: Tensors = {}
        coefficients: Tensors = {}
        if plan.tensors and plan.tensors.file:
            files.append(file.parent / plan.tensors.file)
            scores, coefficients = _read_tensors(files[1], plan.tensors.sha256)
        return plan.replace(scores=scores, coefficients=coefficients, files=tuple(files))

    def to_json(self) -> str:
        """Write the plan as indented JSON, always with the same order of keys."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    def check(self, layers: Layers, shapes: Mapping[str, Shape]) -> Names:
        """Check that the plan fits the model and does not contradict itself, and return warnings.

        Args:
            layers: The model's mergeable parameters by layer.
            shapes: Shapes of these parameters.

        Raises:
            UsageError: If the plan does not fit the model, or contradicts itself.
        """
        if not self.layers:
            raise UsageError(
                "the plan names no layers, so it would merge nothing; plan again with `clipmerge"
                " plan`"
            )
        if self.tensors and not (self.scores or self.coefficients):
            raise UsageError(
                "the plan is without its tensors (scores of masks, learned coefficients);"
                " apply one that `clipmerge plan` wrote"
            )
        if len(self.weights) != len(self.finetuned):
            raise UsageError(
                f"the plan has {len(self.weights)} weights for {len(self.finetuned)} fine-tuned"
                " checkpoints"
            )
        if self.combine:
            try:
                check_mask_options(self.combine.mask, self.combine.mask_options)
            except UsageError as error:
                raise UsageError(f"combine: {error}") from None
        for name, layer in self.layers.items():
            if name not in layers:
                raise UsageError(
                    f"the plan names layer '{name}', which does not"
                    f" exist.{did_you_mean(name, layers)}"
                )
            if layer.mask or layer.density != 1 or layer.parameters:
                _check_mask(name, layer, layers[name])
        if self.coefficients or any(layer.is_learned for layer in self.layers.values()):
            _check_coefficients(self, layers, shapes)
        return extrapolation_notes(self)


def public_source(source: str, revision: str | None) -> str:
    """Return a source without the folders of a local path, which are private."""
    return source if revision else last_part(source)


def last_part(path: str) -> str:
    r"""Return the last component of a path of any operating system.

    Example:
        >>> last_part("/home/me & you/clip/"), last_part(r"C:\models\clip"), last_part("clip")
        ('clip', 'clip', 'clip')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def _check_mask(layer: str, entry: LayerPlan, names: Names) -> None:
    """Raise an error if a layer has a density, options or parameters that its mask or the model
    lacks.
    """
    try:
        if entry.mask is None:
            what = "options of parameters" if entry.parameters else f"density {entry.density}"
            raise UsageError(f"has {what} and no mask; name one, such as 'magnitude'")
        if entry.density != 1 and "density" not in plugin_options("masks", entry.mask):
            raise UsageError(
                f"has density {entry.density}, which the mask '{entry.mask}' does not have; leave"
                " the density out, or name another mask"
            )
        check_mask_options(entry.mask, entry.mask_options)
        for name, options in entry.parameters.items():
            if name not in names:
                raise UsageError(
                    f"names parameter '{name}', which it does not have.{did_you_mean(name, names)}"
                )
            check_mask_options(entry.mask, entry.mask_options | options)
    except UsageError as error:
        raise UsageError(f"layer '{layer}': {error}") from None


def extrapolation_notes(plan: Plan) -> Names:
    """Return a warning about the alpha farthest outside [0, 1], if there is one. With several
    fine-tuned models, whose task vectors are added up, any alpha is usual.
    """
    alphas = [entry.alpha for entry in plan.layers.values() if not entry.is_learned]
    farthest = max(alphas, key=lambda alpha: abs(alpha - 0.5), default=0.0)
    if len(plan.finetuned) > 1 or 0 <= farthest <= 1:
        return ()
    half = "; half of the way is 0.5" if abs(farthest) > 2 else ""
    return (
        f"alpha {farthest:g} is outside [0, 1]: the merge extrapolates beyond the two models{half}",
    )


def with_coefficients(
    layers: Mapping[str, LayerPlan],
    coefficients: Mapping[str, Array],
    names: Layers,
    shapes: Mapping[str, Shape],
) -> dict[str, LayerPlan]:
    """Set alpha and alpha_range of each layer to the mean and range of its coefficients."""
    filled = dict(layers)
    for layer, entry in layers.items():
        learned = {name: coefficients[name] for name in names[layer] if name in coefficients}
        if not learned:
            continue
        arrays = learned.values()
        low = float(min(values.min() for values in arrays))
        high = float(max(values.max() for values in arrays))
        # weighted by size, because a coefficient may be that of a whole row
        sizes = [math.prod(shapes[name]) for name in learned]
        means = [values.mean(dtype=np.float64) for values in arrays]
        mean = float(np.average(means, weights=sizes))
        filled[layer] = entry.replace(alpha=mean, alpha_range=(low, high))
    return filled


def _check_coefficients(plan: Plan, names: Layers, shapes: Mapping[str, Shape]) -> None:
    """Raise an error if the alpha of a layer was edited although the merge would use its learned
    coefficients instead.
    """
    without = {layer: entry.replace(alpha_range=None) for layer, entry in plan.layers.items()}
    expected = with_coefficients(without, plan.coefficients, names, shapes)
    for layer, entry in plan.layers.items():
        if not entry.alpha_range:
            continue
        low, high = expected[layer].alpha_range or (math.nan, math.nan)
        found = (expected[layer].alpha, low, high)
        if not np.allclose((entry.alpha, *entry.alpha_range), found, atol=_SAME):
            raise UsageError(
                f"layer '{layer}': alpha {entry.alpha:g} and alpha_range are not the mean and range"
                " of its coefficients; remove alpha_range to give the layer one alpha"
            )


def rows_shape(shape: Shape) -> Shape:
    """Return the shape of coefficients with one number per row: (rows, 1, ...); () for a
    scalar.
    """
    return tuple(length if axis == 0 else 1 for axis, length in enumerate(shape))


def write_plan_files(path: Path, plan: Plan) -> Plan:
    """Write a plan's tensors and then its JSON, and return the plan with the tensors' file name."""
    tensors = {f"{_SCORES}{name}": values for name, values in plan.scores.items()}
    for name, values in plan.coefficients.items():
        tensors[f"{_COEFFICIENTS}{name}"] = values
    if tensors:
        from safetensors.numpy import save

        file = path.with_suffix(TENSORS_SUFFIX)
        write_whole_file(file, save(tensors))
        plan = plan.replace(tensors=TensorsRecord(file=file.name, sha256=sha256_of(file)))
    write_whole_file(path, plan.to_json().encode())
    return plan


def _read_tensors(file: Path, sha256: str | None) -> tuple[Tensors, Tensors]:
    """Read scores and coefficients from the file beside a plan, which must have the plan's hash."""
    from safetensors.numpy import load_file

    if not file.is_file() or sha256_of(file) != sha256:
        state = "is missing" if not file.is_file() else "has changed"
        raise UsageError(
            f"{file}: the tensors beside the plan: the file {state}; plan again with `clipmerge"
            " plan`"
        )
    scores: Tensors = {}
    coefficients: Tensors = {}
    for name, values in load_file(file).items():
        kind = scores if name.startswith(_SCORES) else coefficients
        kind[name.partition(":")[2]] = values
    return scores, coefficients
