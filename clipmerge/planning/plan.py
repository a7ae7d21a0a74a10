"""The plan of a merge: a frozen model, JSON both ways.

A plan holds numbers and rules, no binary data: it can be read, diffed, edited by hand and applied
again. Its tensors (saliency scores, learned coefficients) are in a safetensors file beside it,
which the plan names by hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from clipmerge.config import Missing, OutputDtype
from clipmerge.errors import OutputError, PlanError, RecipeError, counted, did_you_mean
from clipmerge.files.hashes import sha256_of
from clipmerge.files.limits import LARGEST_JSON, MOST_RECORD_VALUES
from clipmerge.files.reading import Unreadable, check_values, parse_json, read_text
from clipmerge.files.staging import staged_files
from clipmerge.planning.earlier import upgrade
from clipmerge.planning.frozen import FewLayers, Frozen
from clipmerge.planning.layer_plan import Combination, LayerPlan, LearnedAlpha, check_mask
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.merge_effect import MergeEffect
from clipmerge.planning.other_tasks import OtherTaskScores
from clipmerge.planning.provenance import CalibrationRecord, HeadRecord, SourceRecord, TensorsRecord
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.table import Rows, Tabular, layer_rows
from clipmerge.plugins import Alpha, check_options

if TYPE_CHECKING:
    from torch import Tensor

#: Beginnings of the names of a plan's tensors, followed by the parameter: saliency for masks, and
#: learned coefficients, float32 of shape (), (rows, 1, ...) or the parameter's.
SCORES, COEFFICIENTS = "scores:", "coefficients:"
#: The reason given for a layer whose settings were edited after its reason was written.
EDITED = "edited by hand"
#: The reason given for every layer of a plan that was edited to other checkpoints.
OTHER_INPUTS = "decided for other checkpoints"
#: Warning of such a plan.
OTHER_CHECKPOINTS = (
    "the plan was edited to other checkpoints than it was decided for; those findings are left out"
)
#: Warning of a plan that was edited after its effect was measured.
STALE = "the plan was edited after it was measured, so the effect of this merge is not known"

_FORMAT, _EARLIER_FORMAT = "clipmerge-plan/2", "clipmerge-plan/1"


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
        verdict: The plan in one sentence; `checked` rewrites it if it does not match the settings.
        finding: The part of the verdict that does not depend on the settings.
        verdict_digest: `settings_digest` of the plan that the method's verdict describes.
        recipe_digest: Hash of the recipe, which says how the plan was made, so that an edit of it
            would do nothing.
        inputs_digest: `digest_of_inputs` of the checkpoints that the plan was decided for.
        worded: `worded_for` of the settings that each layer's reason describes, by layer.
        effect: The effect of the merge, measured on images that the decision did not see.
        other_tasks: Scores on tasks that the models were not fine-tuned for.
        measurements: The measurements behind the decision.
        calibration: The images used for measuring.
        seed: Seed of the sample, the bootstrap and the random masks.
        warnings: Warnings, one line each.
    """

    format: Literal["clipmerge-plan/2"] = "clipmerge-plan/2"
    recipe: dict[str, Any]
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...] = Field(min_length=1)
    weights: tuple[Alpha, ...]
    combine: Combination | None = None
    dtype: OutputDtype = "keep"
    missing: Missing = "error"
    head: HeadRecord | None = None
    layers: Annotated[dict[str, LayerPlan], FewLayers]
    tensors: TensorsRecord | None = None
    stragglers: tuple[str, ...] = ()
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    verdict: str = ""
    finding: str = ""
    verdict_digest: str = ""
    recipe_digest: str = ""
    inputs_digest: str = ""
    worded: dict[str, str] = Field(default_factory=dict)
    effect: MergeEffect | None = None
    other_tasks: tuple[OtherTaskScores, ...] = ()
    measurements: Measurements | None = None
    calibration: CalibrationRecord | None = None
    seed: int = 0
    warnings: tuple[str, ...] = ()

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
    def held_tensors(self) -> Mapping[str, Tensor]:
        """Scores and learned coefficients in memory, by their names in the file beside the plan."""
        return self._tensors

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """Learned coefficients in memory, by parameter."""
        held = self._tensors.items()
        return {
            name.removeprefix(COEFFICIENTS): each
            for name, each in held
            if name.startswith(COEFFICIENTS)
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Plan:
        """Return the plan with its scores and learned coefficients, by their names in the file
        beside it.
        """
        plan = self.model_copy()
        plan._tensors = dict(tensors)
        return plan

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Plan:
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
    def load(cls, path: str | os.PathLike[str]) -> Plan:
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
        return self.model_copy(
            update={
                "recipe_digest": digest_of(self.recipe),
                "inputs_digest": self.digest_of_inputs,
                "effect": self.effect and self.effect.model_copy(update={"plan": digest}),
                "other_tasks": tuple(
                    task.model_copy(update={"plan": digest}) for task in self.other_tasks
                ),
            }
        )

    def without_stale(self) -> Plan:
        """Drop what was measured or found for other checkpoints or settings, if the plan was edited
        since.
        """
        if self.inputs_digest and self.inputs_digest != self.digest_of_inputs:
            reasons = {
                name: layer.model_copy(update={"reason": OTHER_INPUTS})
                for name, layer in self.layers.items()
            }
            forgotten: dict[str, Any] = {
                "measurements": None,
                "calibration": None,
                "effect": None,
                "other_tasks": (),
                "verdict_digest": "",
                "finding": "",
                "worded": {},
                "warnings": (OTHER_CHECKPOINTS,),
                "stragglers": (),
                "straggler_statistic": None,
                "straggler_scores": {},
            }
            return self.model_copy(update={"layers": reasons, **forgotten})
        measured = [effect for effect in (self.effect, *self.other_tasks) if effect is not None]
        if not measured or {effect.plan for effect in measured} == {self.digest}:
            return self
        stale = set(self.effect.warnings) if self.effect else set()
        warnings = (*(warning for warning in self.warnings if warning not in stale), STALE)
        return self.model_copy(update={"effect": None, "other_tasks": (), "warnings": warnings})

    def checked(self, layers: dict[str, tuple[str, ...]]) -> Plan:
        """Check the plan against the existing layers, and its mask rules against the available
        masks.
        """
        if self.recipe_digest and self.recipe_digest != digest_of(self.recipe):
            raise PlanError(
                "the plan's 'recipe' was edited, but only says how it was made; edit 'layers', or"
                " plan again with `clipmerge plan` and --set"
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
                check_mask(name, layer, layer.mask, layers[name])
            elif layer.density != 1.0:
                raise PlanError(
                    f"layer '{name}' has density {layer.density} and no mask; name one, such as"
                    " 'magnitude'"
                )
        reworded = {}
        for name, entry in self.layers.items():
            earlier_settings, _, earlier_reason = self.worded.get(
                name, worded_for(entry)
            ).partition("-")
            settings, _, reason = worded_for(entry).partition("-")
            edited = settings != earlier_settings and reason == earlier_reason
            reworded[name] = entry.model_copy(update={"reason": EDITED}) if edited else entry
        plan = self.model_copy(update={"layers": reworded})
        if plan.verdict_digest == plan.settings_digest:
            return plan
        verdict = verdict_on(reworded, layers, self.weights, self.combine, finding=self.finding)
        return plan.model_copy(update={"verdict": verdict})


def worded_for(entry: LayerPlan) -> str:
    """Short hashes of a layer's settings and of its reason, which show whether settings changed
    under their reason.
    """
    settings = json.dumps(entry.model_dump(mode="json", exclude={"reason"}), sort_keys=True)
    return "-".join(
        hashlib.sha256(text.encode()).hexdigest()[:8] for text in (settings, entry.reason)
    )


def digest_of(what: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read a plan written by `Plan.to_json` or by hand."""
    try:
        text = read_text(path, LARGEST_JSON)
        check_values(text, MOST_RECORD_VALUES)
        data = parse_json(text)
        if isinstance(data, dict) and data.get("format") == _EARLIER_FORMAT:
            data = upgrade(data) | {"format": _FORMAT}
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
    tensors = plan.held_tensors
    with staged_files(path) as folder:
        if tensors:
            from safetensors.torch import save_file

            file = folder / tensors_path(path).name
            save_file(dict(tensors), file)
            mask = os.umask(0)
            os.umask(mask)
            file.chmod(0o666 & ~mask)  # save_file makes it readable only by its owner
            named = TensorsRecord(file=file.name, sha256=sha256_of(file))
            plan = plan.model_copy(update={"tensors": named})
        (folder / path.name).write_text(plan.to_json(), encoding="utf-8")
    return plan


def _read_tensors(path: Path, record: TensorsRecord) -> dict[str, Tensor]:
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


def verdict_on(
    layers: Mapping[str, LayerPlan],
    names: Collection[str],
    weights: Sequence[float],
    combine: Combination | None,
    *,
    finding: str = "",
) -> str:
    """Make a verdict from the settings alone."""
    entries = [layers[name] for name in names if name in layers]
    parts = [finding, _distance(entries, len(names) - len(entries), _target(weights, combine))]
    masked = [entry for entry in entries if entry.mask]
    if masked:
        rules = ", ".join(sorted({str(entry.mask) for entry in masked}))
        densities = sorted({entry.density for entry in masked})
        ends = [f"{density:g}" for density in dict.fromkeys((densities[0], densities[-1]))]
        shares = "" if densities == [1.0] else f", density {' to '.join(ends)}"
        layers_have = counted(
            len(masked), f"of {len(names)} layers has", f"of {len(names)} layers have"
        )
        parts.append(f"{layers_have} a mask ({rules}{shares})")
    return "; ".join(part for part in parts if part)


def _distance(entries: Sequence[LayerPlan], rest: int, target: str) -> str:
    coefficients = [entry.coefficient for entry in entries]
    learned = [coefficient for coefficient in coefficients if isinstance(coefficient, LearnedAlpha)]
    ends = [
        coefficient for coefficient in coefficients if not isinstance(coefficient, LearnedAlpha)
    ]
    ends += [end for coefficient in learned for end in (coefficient.low, coefficient.high)]
    ends += [0.0] * bool(rest)
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    way = f"of the way from zero-shot to {target}"
    if low == high:
        return "every layer stays zero-shot" if high == 0 else f"every layer goes {high:g} {way}"
    kind = "coefficients go" if learned else "layers go"
    they_stay = counted(
        rest, "layer that the plan does not name stays", "layers that the plan does not name stay"
    )
    left = f", and {they_stay} zero-shot" if rest else ""
    return f"the {kind} {low:g} to {high:g} {way}{left}"


def _target(weights: Sequence[float], combine: Combination | None) -> str:
    count = len(weights)
    if combine:
        return (
            f"the {combine.rule} combination of {count} fine-tuned model{'s' if count > 1 else ''}"
        )
    if count == 1:
        return (
            "the fine-tuned model"
            if weights[0] == 1
            else f"{weights[0]:g} times the fine-tuned change"
        )
    if all(weight == 1 / count for weight in weights):
        return f"the average of {count} fine-tuned models"
    return (
        f"the sum of {count} fine-tuned changes weighted"
        f" {', '.join(f'{weight:g}' for weight in weights)}"
    )
