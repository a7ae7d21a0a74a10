"""The plan of a merge: all its settings, as JSON that people read, diff, edit and apply again.

Tensors (saliency scores, learned coefficients) are in a safetensors file beside the JSON, which has
the name and the sha256 of this file.
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
from clipmerge.planning import Frozen, Rows, Tabular, read_json
from clipmerge.planning.recipe import Override, Recipe
from clipmerge.plugins import (
    Alpha,
    Density,
    check_mask_options,
    plugin_options,
)
from clipmerge.types import Device, Json, Layers, Missing, Names, OutputDtype, Shape, StrPath

# A tensor's name in the file is one of these prefixes and the name of its parameter.
_SCORES, _COEFFICIENTS = "scores:", "coefficients:"
#: Tensors by parameter.
Tensors = dict[str, Array]
# Tolerance for a stated mean and range. An unedited plan differs from a new computation only by the
# order of a sum.
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
        """The source at the commit that was used, whatever branch or tag the user named."""
        if self.revision is None:
            return self.source
        address, part = split_part(self.source)
        return f"{address.partition('@')[0]}@{self.revision}" + (f"#{part}" if part else "")

    @property
    def public(self) -> SourceRecord:
        """A copy without the private folders of a local source."""
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
        alpha_range: Smallest and largest learned coefficient, for information: the merge uses the
            coefficients in the file beside the plan. ``None`` if the whole layer has one alpha.
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
        """Return a copy with the settings of an override of the recipe."""
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
        """Whether the merge uses learned coefficients instead of `alpha`."""
        return self.alpha_range is not None


class Combination(Frozen):
    """How the task vectors of several checkpoints are masked and added up.

    Attributes:
        mask: Rule that selects the entries of each task vector to keep.
        density: Share of each task vector kept, in (0, 1].
        mask_options: The mask's own options.
        elect_signs: Whether an entry is the mean over the task vectors that have the sign of their
            sum there, as in TIES. If not, the task vectors are added up.
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
        """Compare the JSON of two plans, which includes the sha256 of saved tensors."""
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def _caption(self) -> str:
        layers = self.layers.values()
        ends = [end for layer in layers for end in layer.alpha_range or (layer.alpha,)]
        low, high = min(ends, default=0), max(ends, default=0)
        far = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        count = len(self.finetuned)
        target = "fine-tuned" if count == 1 else f"{count} fine-tuned models combined"
        text = f"The layers go {far} of the way from zero-shot to {target}"
        if any(layer.is_learned for layer in layers):
            text += ", each weight as far as was learned"
        masks = [layer.mask for layer in layers if layer.mask]
        if masks:
            text += f"; {len(masks)} of {len(layers)} have a mask ({', '.join(sorted(set(masks)))})"
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
        """A copy without the private folders of local sources."""
        zeroshot, *finetuned = (source.public for source in self.checkpoints)
        return self.replace(zeroshot=zeroshot, finetuned=tuple(finetuned))

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
        file = Path(path)
        check_output_file(file, overwrite=overwrite)
        plan = self
        tensors = {f"{_SCORES}{name}": values for name, values in self.scores.items()}
        for name, values in self.coefficients.items():
            tensors[f"{_COEFFICIENTS}{name}"] = values
        if tensors:
            from safetensors.numpy import save

            beside = file.with_suffix(TENSORS_SUFFIX)
            write_whole_file(beside, save(tensors))
            record = TensorsRecord(file=beside.name, sha256=sha256_of(beside))
            plan = self.replace(tensors=record)
        write_whole_file(file, plan.to_json().encode())
        return plan

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
        keys = (*Plan.model_fields, *LayerPlan.model_fields)
        plan = read_json(cls, file, UsageError, "make one with `clipmerge plan`", keys)
        if plan.tensors is None or plan.tensors.file is None:
            return plan.replace(files=(file,))
        from safetensors.numpy import load_file

        beside = file.parent / plan.tensors.file
        if not beside.is_file() or sha256_of(beside) != plan.tensors.sha256:
            raise UsageError(
                f"{beside}: the plan's tensors are missing or have changed; plan again with"
                " `clipmerge plan`"
            )
        scores: Tensors = {}
        coefficients: Tensors = {}
        for name, values in load_file(beside).items():
            kind = scores if name.startswith(_SCORES) else coefficients
            kind[name.partition(":")[2]] = values
        return plan.replace(scores=scores, coefficients=coefficients, files=(file, beside))

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
                "the plan's tensors (scores of masks, learned coefficients) were not kept; apply a"
                " plan that `clipmerge plan` wrote"
            )
        if len(self.weights) != len(self.finetuned):
            raise UsageError(
                f"the plan has {len(self.weights)} weights for {len(self.finetuned)} fine-tuned"
                " checkpoints"
            )
        if self.combine:
            check_mask_options(self.combine.mask, self.combine.mask_options)
        for name, layer in self.layers.items():
            if name not in layers:
                raise UsageError(
                    f"the plan names layer '{name}', which does not"
                    f" exist.{did_you_mean(name, layers)}"
                )
            try:
                _check_mask(layer, layers[name])
                _check_coefficients(layer, layers[name], self.coefficients, shapes)
            except UsageError as error:
                raise UsageError(f"layer '{name}': {error}") from None
        return _extrapolation_notes(self)


def public_source(source: str, revision: str | None) -> str:
    """Return the last part of a local source, because its folders are private."""
    return source if revision else last_part(source)


def last_part(path: str) -> str:
    r"""Return the last component of a path of any operating system.

    Example:
        >>> last_part("/home/me & you/clip/"), last_part(r"C:\models\clip"), last_part("clip")
        ('clip', 'clip', 'clip')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def _check_mask(layer: LayerPlan, names: Names) -> None:
    """Raise an error if a layer has a density, options or parameters that its mask or the model
    lacks.
    """
    if layer.mask is None:
        if layer.density != 1 or layer.parameters:
            raise UsageError(
                "has a density or options of parameters, but no mask; name one, such as 'magnitude'"
            )
        return
    if layer.density != 1 and "density" not in plugin_options("masks", layer.mask):
        raise UsageError(
            f"has density {layer.density}, which the mask '{layer.mask}' does not have; leave the"
            " density out, or name another mask"
        )
    check_mask_options(layer.mask, layer.mask_options)
    for name, options in layer.parameters.items():
        if name not in names:
            raise UsageError(
                f"names parameter '{name}', which it does not have.{did_you_mean(name, names)}"
            )
        check_mask_options(layer.mask, layer.mask_options | options)


def _check_coefficients(
    layer: LayerPlan,
    names: Names,
    coefficients: Mapping[str, Array],
    shapes: Mapping[str, Shape],
) -> None:
    """Raise an error if a layer's alpha was edited, but the merge would use its learned
    coefficients.
    """
    if layer.alpha_range is None:
        return
    found = _mean_and_range(names, coefficients, shapes)
    if found is None or not np.allclose((layer.alpha, *layer.alpha_range), found, atol=_SAME):
        raise UsageError(
            f"alpha {layer.alpha:g} and alpha_range are not the mean and range of its coefficients;"
            " remove alpha_range to give the layer one alpha"
        )


def _extrapolation_notes(plan: Plan) -> Names:
    """Warn of the alpha farthest outside [0, 1], if there is one. With several fine-tuned models,
    any alpha is usual, because their task vectors are added up.
    """
    alphas = [layer.alpha for layer in plan.layers.values() if not layer.is_learned]
    farthest = max(alphas, key=lambda alpha: abs(alpha - 0.5), default=0.0)
    if len(plan.finetuned) > 1 or 0 <= farthest <= 1:
        return ()
    return (f"alpha {farthest:g} is outside [0, 1]: the merge extrapolates beyond the two models",)


def with_coefficients(
    layers: Mapping[str, LayerPlan],
    coefficients: Mapping[str, Array],
    names: Layers,
    shapes: Mapping[str, Shape],
) -> dict[str, LayerPlan]:
    """Set alpha and alpha_range of each layer to the mean and range of its coefficients."""
    filled = dict(layers)
    for name, layer in layers.items():
        if found := _mean_and_range(names[name], coefficients, shapes):
            mean, low, high = found
            filled[name] = layer.replace(alpha=mean, alpha_range=(low, high))
    return filled


def _mean_and_range(
    names: Names, coefficients: Mapping[str, Array], shapes: Mapping[str, Shape]
) -> tuple[float, float, float] | None:
    """Compute the mean, smallest and largest coefficient of these parameters; ``None`` if none of
    them has coefficients.
    """
    learned = [name for name in names if name in coefficients]
    if not learned:
        return None
    arrays = [coefficients[name] for name in learned]
    means = [values.mean(dtype=np.float64) for values in arrays]
    # weighted by size, because one coefficient may apply to a whole row
    sizes = [math.prod(shapes[name]) for name in learned]
    mean = float(np.average(means, weights=sizes))
    return mean, float(min(map(np.min, arrays))), float(max(map(np.max, arrays)))


def rows_shape(shape: Shape) -> Shape:
    """Return the shape of coefficients with one number per row: (rows, 1, ...); () for a
    scalar.
    """
    return shape[:1] + (1,) * (len(shape) - 1)
