"""What a merge will do: a frozen model, JSON both ways.

A plan holds numbers and rules, never bits: it can be read, diffed, edited by hand and applied again. The
tensors that it needs (saliency scores, learned coefficients) lie in a safetensors file beside it, named in it by hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from clipmerge.errors import PlanError, RecipeError, did_you_mean
from clipmerge.planning.bought import Bought
from clipmerge.planning.choices import Missing, OutputDtype
from clipmerge.planning.frozen import Frozen
from clipmerge.planning.layer_plan import Combination, LayerPlan
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.verdict import verdict_on
from clipmerge.plugins import Alpha, check_options, plugin_names, plugin_options


class SourceRecord(Frozen):
    """One input: what the user wrote, the commit it resolved to, and the sha256 of its weight files, if hashed."""

    source: str
    revision: str | None = None
    files: dict[str, str | None]


class TensorsRecord(Frozen):
    """The safetensors file beside a plan: its name and sha256."""

    file: str
    sha256: str


class CalibrationRecord(Frozen):
    """The images that were measured on.

    Attributes:
        source: What the user wrote.
        revision: The commit that a data set of the Hub resolved to.
        images: How many were drawn.
        requested: How many were asked for; ``None`` in plans that do not say.
        classes: How many classes they have.
        batch_size: Images a batch.
        templates: Prompt templates.
        seed: Of the draw.
    """

    source: str
    revision: str | None = None
    images: int
    requested: int | None = None
    classes: int
    batch_size: int
    templates: tuple[str, ...]
    seed: int


class HeadRecord(Frozen):
    """What a classification head's rows stand for, where its zero-shot side is built from class prompts.

    Attributes:
        classes: Class names, in the order of the rows.
        templates: Prompt templates.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]


class Plan(Frozen):
    """What a merge will do, complete: the inputs by hash and what each layer gets.

    Attributes:
        format: Version of this format.
        recipe: The recipe that made it.
        zeroshot: theta_0.
        finetuned: theta_1 ... theta_K.
        weights: One factor a fine-tuned checkpoint; checkpoint i enters layer l with ``weights[i] * alpha[l]``.
        combine: What takes the place of the weighted sum, if anything does.
        dtype: Output dtype, or ``keep``.
        missing: What happens to keys that only one checkpoint has.
        head: The head whose zero-shot side is built, if one is.
        layers: Layer to what it gets; a layer that is not named stays zero-shot.
        tensors: File with the scores that masks need and with learned coefficients.
        stragglers: Layers found to be stragglers.
        straggler_statistic: Statistic by which stragglers were looked for; ``None`` if nobody looked.
        straggler_scores: ``{"z": ..., "stability": ...}`` by layer.
        verdict: The plan in a sentence; `checked` words it anew where it is not true of the settings.
        finding: The part of the verdict that does not depend on the settings.
        decided: `digest` of the plan that the method worded its verdict for.
        bought: What the merge bought, measured on images that the decision did not see.
        measurements: What the decision rests on.
        calibration: The images that were measured on.
        seed: Seed of the sample, the bootstrap and the random masks.
        warnings: What the user should know.
    """

    format: Literal["clipmerge-plan/1"] = "clipmerge-plan/1"
    recipe: dict[str, Any]
    zeroshot: SourceRecord
    finetuned: tuple[SourceRecord, ...] = Field(min_length=1)
    weights: tuple[Alpha, ...]
    combine: Combination | None = None
    dtype: OutputDtype = "keep"
    missing: Missing = "error"
    head: HeadRecord | None = None
    layers: dict[str, LayerPlan]
    tensors: TensorsRecord | None = None
    stragglers: tuple[str, ...] = ()
    straggler_statistic: str | None = None
    straggler_scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    verdict: str = ""
    finding: str = ""
    decided: str = ""
    bought: Bought | None = None
    measurements: Measurements | None = None
    calibration: CalibrationRecord | None = None
    seed: int = 0
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write the plan as indented JSON, one key order always."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """Hash of all that decides the merged weights, given the same inputs and tensors."""
        what = self.model_dump(mode="json", include={"weights", "combine", "dtype", "missing", "head", "seed"})
        layers = {name: layer.model_dump(mode="json", exclude={"reason"}) for name, layer in self.layers.items()}
        return hashlib.sha256(json.dumps([what, layers], sort_keys=True).encode()).hexdigest()

    def checked(self, layers: dict[str, tuple[str, ...]]) -> Plan:
        """Check the plan against the layers there are, and its mask rules against the masks.

        Args:
            layers: Layer to parameter names.

        Returns:
            The plan, with a verdict that is true of its settings.

        Raises:
            PlanError: If the plan names a layer or a parameter there is not, or a mask or option there is not.
        """
        if len(self.weights) != len(self.finetuned):
            raise PlanError(
                f"the plan has {len(self.weights)} weights for {len(self.finetuned)} fine-tuned checkpoints"
            )
        if self.combine:
            try:
                check_options("combinations", self.combine.rule, self.combine.options)
            except RecipeError as error:
                raise PlanError(f"combine: {error}") from None
        for name, layer in self.layers.items():
            if name not in layers:
                raise PlanError(f"the plan names layer '{name}', which there is not.{did_you_mean(name, layers)}")
            _check_mask(name, layer, layers[name])
        return self if self.decided == self.digest else self._with_verdict_on_settings(layers)

    def _with_verdict_on_settings(self, names: Collection[str]) -> Plan:
        verdict = verdict_on(self.layers, names, self.weights, self.combine, finding=self.finding)
        return self.model_copy(update={"verdict": verdict})


def _check_mask(name: str, layer: LayerPlan, parameters: tuple[str, ...]) -> None:
    if layer.mask is None:
        if layer.density != 1.0:
            raise PlanError(f"layer '{name}' has density {layer.density} and no mask; name one, such as 'magnitude'")
        return
    masks = plugin_names("masks")
    if layer.mask not in masks:
        raise PlanError(
            f"layer '{name}' has the unknown mask '{layer.mask}' (masks: {', '.join(masks)})."
            f"{did_you_mean(layer.mask, masks)}"
        )
    if layer.density != 1.0 and "density" not in plugin_options("masks", layer.mask):
        raise PlanError(
            f"layer '{name}' has density {layer.density}, which the mask '{layer.mask}' does not know; "
            "set its mask_options, or name another mask"
        )
    for parameter, options in {"": {}, **layer.parameters}.items():
        if parameter and parameter not in parameters:
            raise PlanError(
                f"layer '{name}' names parameter '{parameter}', which it has not.{did_you_mean(parameter, parameters)}"
            )
        try:
            check_options("masks", layer.mask, {**layer.mask_options, **options})
        except RecipeError as error:
            raise PlanError(f"layer '{name}': {error}") from None


def read_plan(path: Path) -> Plan:
    """Read a plan that was written, or edited, by hand or by `Plan.to_json`.

    Args:
        path: The JSON file.

    Returns:
        The plan.

    Raises:
        PlanError: If it cannot be read or says something unknown.
    """
    try:
        plan = Plan.model_validate_json(path.read_text(encoding="utf-8"))
        # a plan written by hand need not say by what recipe
        Recipe.model_validate({"name": "none", "method": {}, **plan.recipe})
        return plan
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read ({error}); make one with `clipmerge plan`") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        where = f"recipe.{where}" if error.title == Recipe.__name__ else where
        known = LayerPlan.model_fields if "layers" in first["loc"] else Plan.model_fields
        hint = did_you_mean(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        raise PlanError(f"{path}: {where}: {first['msg']}.{hint}") from None


def tensors_path(plan: Path) -> Path:
    """Where the tensors that a plan needs go: ``plan.tensors.safetensors`` beside ``plan.json``."""
    return plan.with_suffix(".tensors.safetensors")
