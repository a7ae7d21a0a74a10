"""The plan of a merge: a frozen model, JSON both ways.

A plan holds numbers and rules, no binary data: it can be read, diffed, edited by hand and applied
again. Its tensors (saliency scores, learned coefficients) are in a safetensors file beside it,
which the plan names by hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from clipmerge.config import Missing, OutputDtype
from clipmerge.errors import OutputError, PlanError, RecipeError, did_you_mean
from clipmerge.files.hashes import sha256_of
from clipmerge.files.limits import MAX_JSON_BYTES, MAX_RECORD_VALUES
from clipmerge.files.reading import Unreadable, parse_json, read_text
from clipmerge.files.staging import staged_files
from clipmerge.finding import NOTE, Finding
from clipmerge.frozen import FewLayers, Frozen
from clipmerge.planning.earlier import upgrade_format
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.merge_effect import MergeEffect
from clipmerge.planning.other_tasks import OtherTaskScores
from clipmerge.planning.provenance import CalibrationRecord, HeadRecord, SourceRecord, TensorsRecord
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.table import Rows, Tabular, layer_rows
from clipmerge.plugins import (
    Alpha,
    Density,
    check_mask_options,
    check_options,
    plugin_names,
    plugin_options,
)
from clipmerge.types import Json, Layers, Names, Shape, StrPath, Tensors

if TYPE_CHECKING:
    from torch import Tensor

#: Beginnings of the names of a plan's tensors, followed by the parameter: saliency for masks, and
#: learned coefficients, float32 of shape (), (rows, 1, ...) or the parameter's.
SCORES, COEFFICIENTS = "scores:", "coefficients:"

_FORMAT, _EARLIER_FORMAT = "clipmerge-plan/2", "clipmerge-plan/1"
# Tolerance for a plan's mean and range, computed in float64 from float32 numbers: only the order of
# a sum may differ.
_SAME = 1e-6


class LayerPlan(Frozen):
    """The settings of one layer.

    Attributes:
        alpha: Coefficient of the task vector: 0 = zero-shot, 1 = fine-tuned; the mean of learned
            coefficients.
        alpha_range: Smallest and largest learned coefficient; the merge uses the coefficients
            themselves, beside the plan. ``None`` if the whole layer has one alpha.
        density: Share of the task vector kept, in (0, 1].
        mask: Rule that selects the entries to keep; ``None`` keeps all.
        mask_options: The mask's own options.
        parameters: Options of the mask for single parameters, by name; they override
            ``mask_options``.
        reason: Reason for the settings; ``None`` if the method gives none.
    """

    alpha: Alpha
    alpha_range: tuple[Alpha, Alpha] | None = None
    density: Density = 1.0
    mask: str | None = None
    mask_options: Json = Field(default_factory=dict)
    parameters: dict[str, Json] = Field(default_factory=dict)
    reason: Finding | None = None

    @property
    def is_learned(self) -> bool:
        """Whether the merge uses learned coefficients beside the plan, not `alpha`."""
        return self.alpha_range is not None


class Combination(Frozen):
    """A rule that replaces the weighted sum of several fine-tuned checkpoints' task vectors.

    Attributes:
        rule: Name of the method whose file holds the rule.
        options: Its options.
    """

    rule: str
    options: Json = Field(default_factory=dict)


class Plan(Tabular, Frozen):
    """A decided merge: the inputs by hash and the settings of each layer.

    Attributes:
        format: Version of this format.
        recipe: The recipe that made it.
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K.
        weights: One factor per fine-tuned checkpoint; checkpoint i enters layer l with ``weights[i]
            * alpha[l]``.
        combine: The rule that replaces the weighted sum, if any.
        dtype: Output dtype, or ``keep``.
        missing: Treatment of keys that only one checkpoint has.
        head: The head whose zero-shot counterpart is built, if any.
        layers: Settings by layer; layers that are not listed stay zero-shot.
        tensors: File with the scores that masks need and with learned coefficients.
        stragglers: Layers found to be stragglers.
        straggler_statistic: Statistic used to look for stragglers; ``None`` if the method does not.
        straggler_scores: ``{"z": ..., "stability": ...}`` by layer.
        decision: What was found before deciding, which does not depend on the settings; ``None`` if
            the method decides without looking.
        recipe_digest: Hash of the recipe, which says how the plan was made, so that an edit of it
            would do nothing.
        inputs_digest: `digest_of_inputs` of the checkpoints that the plan was decided for.
        layer_digests: `digest_of_layer` of the settings that each layer's reason is about, by
            layer.
        effect: The effect of the merge, measured on held-out images.
        other_tasks: Scores on tasks that the models were not fine-tuned for.
        measurements: The measurements behind the decision.
        calibration: The images used for measuring.
        seed: Seed of the sample, the bootstrap and the random masks.
        warnings: Warnings.
    """

    format: Literal["clipmerge-plan/2"] = "clipmerge-plan/2"
    recipe: Json
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...] = Field(min_length=1)
    weights: tuple[Alpha, ...]
    combine: Combination | None = None
    dtype: OutputDtype = "keep"
    missing: Missing = "error"
    head: HeadRecord | None = None
    layers: Annotated[dict[str, LayerPlan], FewLayers]
    tensors: TensorsRecord | None = None
    stragglers: Names = ()
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    decision: Finding | None = None
    recipe_digest: str = ""
    inputs_digest: str = ""
    layer_digests: dict[str, str] = Field(default_factory=dict)
    effect: MergeEffect | None = None
    other_tasks: tuple[OtherTaskScores, ...] = ()
    measurements: Measurements | None = None
    calibration: CalibrationRecord | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    warnings: tuple[Finding, ...] = ()

    # set by `Plan.load` and the API; neither part of the JSON nor of the comparison of plans
    _tensors: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _folder: Path | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same JSON; tensors beside it are compared by the hash that `save`
        writes into it.
        """
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def _caption(self) -> str:
        alphas = [layer.alpha for layer in self.layers.values()]
        spread = f", alpha {min(alphas):.3g} to {max(alphas):.3g}" if alphas else ""
        stragglers = f", {len(self.stragglers)} stragglers" if self.stragglers else ""
        return (
            f"recipe {self.recipe.get('name', 'none')!r}, {len(self.layers)}"
            f" layers{spread}{stragglers}"
        )

    def _rows(self) -> Rows:
        return layer_rows(self.layers, self.measurements.layers if self.measurements else {})

    @property
    def folder(self) -> Path | None:
        """The folder that the plan was loaded from, for relative sources; ``None`` if it was not
        loaded.
        """
        return self._folder

    @property
    def loaded_tensors(self) -> Mapping[str, Tensor]:
        """Scores and learned coefficients in memory, by their names in the file beside the plan."""
        return self._tensors

    @property
    def coefficients(self) -> Tensors:
        """Learned coefficients in memory, by parameter."""
        items = self._tensors.items()
        return {
            name.removeprefix(COEFFICIENTS): tensor
            for name, tensor in items
            if name.startswith(COEFFICIENTS)
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Plan:
        """Return the plan with its scores and learned coefficients, by their names in the file
        beside it.
        """
        plan = self.model_copy()
        plan._tensors = dict(tensors)
        return plan

    def save(self, path: StrPath, *, overwrite: bool = False) -> Plan:
        """Write the plan as JSON and its tensors beside it, both completely or not at all.

        Args:
            path: The JSON file; tensors go to ``NAME.tensors.safetensors`` beside it.
            overwrite: Whether an earlier plan may be replaced.

        Returns:
            The plan as written, naming the tensors' file by hash.

        Raises:
            OutputError: If a file already exists, or cannot be written.
        """
        for file in (Path(path), tensors_path(Path(path))):
            if file.exists() and not overwrite:
                raise OutputError(
                    f"{file}: already exists; choose another path, or pass overwrite=True to"
                    " replace it"
                )
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
            PlanError: If it cannot be read, is invalid, or its tensors are missing or have changed.
        """
        plan = read_plan(Path(path))
        if plan.tensors:
            plan = plan.with_tensors(_read_tensors(Path(path), plan.tensors))
        plan._folder = Path(path).parent
        return plan

    def to_json(self) -> str:
        """Write the plan as indented JSON, always with the same order of keys."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """Hash of everything that determines the merged weights: settings, inputs, scores and
        learned coefficients.
        """
        tensors = []
        for name, tensor in sorted(self._tensors.items()):
            import torch  # only where there are tensors

            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            tensors.append(
                [name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()]
            )
        return digest_of([self.settings_digest, self.digest_of_inputs, tensors])

    @property
    def settings_digest(self) -> str:
        """Hash of everything that determines the merged weights, given the inputs and tensors."""
        what = self.model_dump(
            mode="json", include={"weights", "combine", "dtype", "missing", "head", "seed"}
        )
        layers = {
            name: layer.model_dump(mode="json", exclude={"reason"})
            for name, layer in self.layers.items()
        }
        return digest_of([what, layers])

    @property
    def digest_of_inputs(self) -> str:
        """Hash of the checkpoints: of their files' hashes, or of their sources where the files are
        not hashed.
        """
        return digest_of([source.identity for source in (self.zeroshot, *self.finetuned)])

    def signed(self) -> Plan:
        """Return the plan with the digests of what it was decided and measured for; called before
        it is written.
        """
        digest = self.digest
        return self.replace(
            recipe_digest=digest_of(self.recipe),
            inputs_digest=self.digest_of_inputs,
            effect=self.effect and self.effect.replace(plan=digest),
            other_tasks=tuple(task.replace(plan=digest) for task in self.other_tasks),
        )

    def without_stale(self) -> Plan:
        """Drop what was measured or found for other checkpoints or settings, if the plan was edited
        since.
        """
        if self.inputs_digest and self.inputs_digest != self.digest_of_inputs:
            reason = Finding.of("decided-for-others")
            return self.replace(
                layers={name: layer.replace(reason=reason) for name, layer in self.layers.items()},
                measurements=None,
                calibration=None,
                effect=None,
                other_tasks=(),
                decision=None,
                layer_digests={},
                warnings=(Finding.of("other-checkpoints"),),
                stragglers=(),
                straggler_statistic=None,
                straggler_scores={},
            )
        plan = self
        if self.decision and self.decision.kind.startswith("learned") and self._edited_layers():
            plan = plan.replace(decision=None)  # what the held-out images chose is not taken
        measured = [effect for effect in (self.effect, *self.other_tasks) if effect is not None]
        if not measured or {effect.plan for effect in measured} == {self.digest}:
            return plan
        stale = self.effect.warnings if self.effect else ()
        warnings = (
            *(warning for warning in self.warnings if warning not in stale),
            Finding.of("stale-effect"),
        )
        return plan.replace(effect=None, other_tasks=(), warnings=warnings)

    def _edited_layers(self) -> Names:
        """The layers whose settings are not those that their reasons are about."""
        return tuple(
            name
            for name, entry in self.layers.items()
            if self.layer_digests.get(name) not in (None, digest_of_layer(entry))
        )

    def checked(self, layers: Layers) -> Plan:
        """Check the plan against the existing layers, and its mask rules against the available
        masks.
        """
        if self.recipe_digest and self.recipe_digest != digest_of(self.recipe):
            raise PlanError(
                "the plan's 'recipe' was edited, but only says how it was made; edit 'layers', or"
                " plan again with `set`"
            )
        if len(self.weights) != len(self.finetuned):
            raise PlanError(
                f"the plan has {len(self.weights)} weights for {len(self.finetuned)} fine-tuned"
                " checkpoints"
            )
        if self.combine:
            try:
                check_options("combinations", self.combine.rule, self.combine.options)
            except RecipeError as error:
                raise PlanError(f"combine: {error}") from None
        for name, layer in self.layers.items():
            if name not in layers:
                raise PlanError(
                    f"the plan names layer '{name}', which does not"
                    f" exist.{did_you_mean(name, layers)}"
                )
            if layer.mask is not None:
                _check_mask(name, layer, layer.mask, layers[name])
            elif layer.density != 1.0 or layer.parameters:
                what = "options of parameters" if layer.parameters else f"density {layer.density}"
                raise PlanError(
                    f"layer '{name}' has {what} and no mask; name one, such as 'magnitude'"
                )
        edited = self._edited_layers()
        decided = {
            name: entry
            if name not in edited
            or (entry.reason and entry.reason.kind == NOTE)  # written with the edit
            else entry.replace(reason=Finding.of("edited"))
            for name, entry in self.layers.items()
        }
        return self.replace(layers=decided)


def _check_mask(name: str, layer: LayerPlan, mask: str, parameters: Names) -> None:
    """Check one layer's mask rule against the available masks."""
    masks = plugin_names("masks")
    if mask not in masks:
        raise PlanError(
            f"layer '{name}' has the unknown mask '{mask}' (masks:"
            f" {', '.join(masks)}).{did_you_mean(mask, masks)}"
        )
    if layer.density != 1.0 and "density" not in plugin_options("masks", mask):
        raise PlanError(
            f"layer '{name}' has density {layer.density}, which the mask '{mask}' does not have; "
            "set its mask_options, or name another mask"
        )
    for parameter, options in {"": {}, **layer.parameters}.items():
        if parameter and parameter not in parameters:
            raise PlanError(
                f"layer '{name}' names parameter '{parameter}', which it does not have."
                f"{did_you_mean(parameter, parameters)}"
            )
        try:
            check_mask_options(mask, layer.mask_options)
            check_options("masks", mask, {**layer.mask_options, **options})
        except RecipeError as error:
            raise PlanError(f"layer '{name}': {error}") from None


def extrapolation_notes(layers: Mapping[str, LayerPlan], finetuned: int) -> list[Finding]:
    """A note of the alpha that is farthest beyond the two models; none if several fine-tuned models
    are merged.
    """
    alphas = [entry.alpha for entry in layers.values() if not entry.is_learned]
    farthest = max(alphas, key=lambda alpha: abs(alpha - 0.5), default=0.0)
    if finetuned > 1 or 0 <= farthest <= 1:
        return []
    return [Finding.of("extrapolation", alpha=farthest)]


def means_unchanged(reason: Finding | None) -> bool:
    """Whether a layer has this reason because fine-tuning did not change it."""
    return reason is not None and reason.kind == "unchanged"


def digest_of_layer(entry: LayerPlan) -> str:
    """Short hash of a layer's settings, which shows whether they changed after their reason."""
    return digest_of(entry.model_dump(mode="json", exclude={"reason"}))[:8]


def digest_of(what: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def named_tensors(scores: Mapping[str, Tensor], coefficients: Mapping[str, Tensor]) -> Tensors:
    """Scores for the masks that need them, and coefficients, by parameter, under their names in the
    plan.
    """
    named = {f"{SCORES}{name}": tensor for name, tensor in scores.items()}
    return named | {f"{COEFFICIENTS}{name}": tensor for name, tensor in coefficients.items()}


def with_coefficients(
    layers: Mapping[str, LayerPlan],
    coefficients: Mapping[str, Tensor],
    names: Layers,
    shapes: Mapping[str, Shape],
) -> dict[str, LayerPlan]:
    """Store the mean and the range of its coefficients in each layer that has some."""
    filled = dict(layers)
    for layer, entry in layers.items():
        learned = [
            (coefficients[name], shapes[name]) for name in names[layer] if name in coefficients
        ]
        if learned:
            mean, low, high = _summary(learned)
            filled[layer] = entry.replace(alpha=mean, alpha_range=(low, high))
    return filled


def _summary(learned: list[tuple[Tensor, Shape]]) -> tuple[float, float, float]:
    """Mean over all entries of the parameters, smallest and largest coefficient."""
    total = sum(math.prod(shape) * float(c.double().mean()) for c, shape in learned)
    mean = total / max(sum(math.prod(shape) for _, shape in learned), 1)
    return mean, min(float(c.min()) for c, _ in learned), max(float(c.max()) for c, _ in learned)


def check_coefficients(plan: Plan, names: Layers, shapes: Mapping[str, Shape]) -> None:
    """Check a plan, which may have been edited, against its coefficients."""
    coefficients = plan.coefficients
    for name, coefficient in coefficients.items():
        if name not in shapes:
            raise PlanError(
                f"the plan has coefficients for {name}, which does not exist; plan again"
            )
        stored_shape = tuple(coefficient.shape)
        shape = shapes[name]
        if coefficient.numel() != 1 and stored_shape not in (shape, rows_shape(shape)):
            raise PlanError(
                f"the coefficients of {name} have shape {stored_shape}, but the parameter has"
                f" {shape}: expected one number, one per row or one per entry"
            )
        if not coefficient.is_floating_point() or not bool(coefficient.isfinite().all()):
            raise PlanError(f"the coefficients of {name} are not finite numbers; plan again")
    for layer, entry in plan.layers.items():
        if entry.alpha_range is None:
            continue
        learned = [
            (coefficients[name], shapes[name]) for name in names[layer] if name in coefficients
        ]
        if not learned:
            raise PlanError(
                f"layer '{layer}' has an alpha_range, but the plan holds no coefficients for it;"
                " remove alpha_range to give the layer one alpha"
            )
        stated = (entry.alpha, *entry.alpha_range)
        actual = _summary(learned)
        if max(abs(a - b) for a, b in zip(stated, actual, strict=True)) > _SAME:
            raise PlanError(
                f"layer '{layer}': alpha {entry.alpha:g} and alpha_range are not the mean and range"
                f" of its coefficients (mean {actual[0]:g}); remove alpha_range to give the layer"
                " one alpha"
            )


def rows_shape(shape: Shape) -> Shape:
    """Shape of coefficients with one number per row: (rows, 1, ...); () if the parameter is a
    scalar.
    """
    return tuple(length if axis == 0 else 1 for axis, length in enumerate(shape))


def read_plan(path: Path) -> Plan:
    """Read a plan written by `Plan.to_json` or by hand."""
    try:
        data = parse_json(read_text(path, MAX_JSON_BYTES), max_values=MAX_RECORD_VALUES)
        if isinstance(data, dict) and data.get("format") == _EARLIER_FORMAT:
            data = upgrade_format(data) | {"format": _FORMAT}
        format_ = str(data.get("format", _FORMAT)) if isinstance(data, dict) else _FORMAT
        if format_.startswith("clipmerge-record"):
            raise Unreadable("it is the record of a merge")
        if format_ != _FORMAT and format_.startswith("clipmerge-plan"):
            raise PlanError(
                f"{path}: has the format {format_[:40]!r}, but this version of clipmerge reads"
                f" {_FORMAT!r}; update clipmerge, or plan again"
            )
        plan = Plan.model_validate(data)
        # a plan written by hand need not name a recipe
        Recipe.model_validate({"name": "none", "method": {}, **plan.recipe})
        return plan
    except Unreadable as error:
        raise PlanError(
            f"{path}: cannot be read ({error}); make one with `clipmerge plan`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        where = f"recipe.{where}" if error.title == Recipe.__name__ else where
        known = LayerPlan.model_fields if "layers" in first["loc"] else Plan.model_fields
        hint = (
            did_you_mean(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        )
        raise PlanError(f"{path}: {where}: {first['msg']}.{hint}") from None


def tensors_path(plan: Path) -> Path:
    """Path of a plan's tensors: ``plan.tensors.safetensors`` beside ``plan.json``."""
    return plan.with_suffix(".tensors.safetensors")


def write_plan_files(path: Path, plan: Plan) -> Plan:
    """Write a plan and its tensors beside it, both completely or not at all."""
    tensors = plan.loaded_tensors
    with staged_files(path) as folder:
        if tensors:
            file = folder / tensors_path(path).name
            _save_tensors(tensors, file)
            mask = os.umask(0)
            os.umask(mask)
            file.chmod(0o666 & ~mask)  # save_file makes it readable only by its owner
            named = TensorsRecord(file=file.name, sha256=sha256_of(file))
            plan = plan.replace(tensors=named)
        (folder / path.name).write_text(plan.to_json(), encoding="utf-8")
    return plan


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file)
    except SafetensorError as error:  # which says in words what the system refused
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def _read_tensors(path: Path, record: TensorsRecord) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path.parent / record.file
    if not file.is_file() or sha256_of(file) != record.sha256:
        state = "is missing" if not file.is_file() else "has changed"
        raise PlanError(
            f"{file}: the tensors beside the plan: the file {state}; plan again with `clipmerge"
            " plan`"
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise PlanError(
            f"{file}: the tensors beside the plan: {error}; plan again with `clipmerge plan`"
        ) from None
