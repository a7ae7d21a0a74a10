"""The record of a sweep, as printed by ``--format json`` and kept in ``sweep.json``; see `docs/sweep.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmerge import __version__
from clipmerge.checkpoint import Inputs
from clipmerge.evaluation.conclusion import loss_warnings
from clipmerge.evaluation.points import Point
from clipmerge.evaluation.tradeoff import RESAMPLES, Standing
from clipmerge.images.dataset import LabelledImages
from clipmerge.images.known import Named
from clipmerge.images.prompts import own_templates, templates_for
from clipmerge.output.record import SWEEP_FORMAT
from clipmerge.planning.merge_effect import LEVEL
from clipmerge.planning.plan import Plan
from clipmerge.planning.recipe import Recipe
from clipmerge.request import SweepRequest

if TYPE_CHECKING:
    from clipmerge.evaluation.scorer import Correct


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe with its decided plan.

    Attributes:
        recipe: The recipe.
        point: Index of its point.
        plan: The settings of each layer, without measurements.
        finish: Function to call after its evaluation.
    """

    recipe: Recipe
    point: int
    plan: Plan
    finish: Callable[[], None]


def row_of(place: Standing, correct: dict[str, Correct], number: int) -> dict[str, Any]:
    """Make the row of one point."""
    return {
        "accuracy": {name: float(right[number].mean()) for name, right in correct.items()},
        "id": place.id_accuracy,
        "id_interval": list(place.id_interval),
        "ood": place.ood_accuracy,
        "ood_interval": list(place.ood_interval),
        "gain": place.gain,
        "gain_interval": list(place.gain_interval) if place.gain_interval else None,
        "gain_note": place.gain_note,
    }


def recipe_row(planned: PlannedRecipe, point: Point, row: dict[str, Any]) -> dict[str, Any]:
    """Make the row of a recipe."""
    return {
        "name": planned.recipe.name,
        "point": planned.point,
        "alpha": point.alpha,
        **row,
        "verdict": planned.plan.verdict,
        "calibration": planned.plan.model_dump(mode="json")["calibration"],
        "recipe": planned.plan.recipe,
    }


def checkpoint_row(name: str, number: int, placed: Inputs, row: dict[str, Any], *, hashed: bool) -> dict[str, Any]:
    """Make the row of a checkpoint shown beside the curve as it is."""
    provenance = placed.finetuned[0].provenance(hashed=hashed)
    return {"name": name, "point": number, "alpha": None, **row, "checkpoint": provenance}


def record_of(
    request: SweepRequest, inputs: Inputs, loaded: dict[str, LabelledImages], notes: Sequence[str]
) -> dict[str, Any]:
    """Make the part of the record that describes the whole sweep."""
    return {
        "format": SWEEP_FORMAT,
        "clipmerge": __version__,
        "output": None,
        "command": request.command,
        "zeroshot": inputs.zeroshot.provenance(hashed=request.hashed),
        "finetuned": [each.provenance(hashed=request.hashed) for each in inputs.finetuned],
        "id": list(request.id_sources),
        "ood": list(request.ood_sources),
        "sources": {name: images.source for name, images in loaded.items()},
        "images": {name: len(images) for name, images in loaded.items()},
        "revisions": {name: images.revision for name, images in loaded.items() if images.revision},
        "calibration_source": _name_of(request.calibration.source),
        "templates": list(templates_for(request.calibration.templates, ())),
        "own_templates": own_templates(request.calibration.templates, loaded),
        "ood_checked": request.checks_overlap and request.calibration.source not in (None, ""),
        "seed": request.seed,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "warnings": list(notes),
    }


def loss_notes(request: SweepRequest, planned: list[PlannedRecipe], rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Warn of recipes that lose more ID accuracy than allowed, if the curve includes the fine-tuned model."""
    if 1.0 not in request.alphas:
        return ()
    accuracies = {f"recipe {each.recipe.name}": float(rows[each.point]["id"]) for each in planned}
    return loss_warnings(accuracies, "ID accuracy", rows[request.alphas.index(1.0)]["id"], request.max_loss)


def _name_of(data: Any) -> str | None:
    """The calibration source, or the type of an object in memory."""
    if data is None or isinstance(data, str):
        return data
    return data.address if isinstance(data, Named) else f"{type(data).__name__} in memory"
