"""The alpha curve and recipes as points on ID and OOD images, in one run.

Nothing is evaluated twice: points with one plan are one point, every image is decoded once, and no checkpoint is
written. Calibration never sees an OOD image: an OOD source that shares one with the calibration source is refused
before anything is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge import __version__
from clipmerge.api.merge import MergeRequest, check_request, make_plan
from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.checkpoint.preview import compare_before_download
from clipmerge.errors import UsageError
from clipmerge.evaluation.tradeoff import LEVEL, RESAMPLES, Standing, standings
from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.overlap import check_overlap
from clipmerge.images.places import local_inputs
from clipmerge.images.prompts import check_templates
from clipmerge.planning.choices import OutputDtype
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.plan import Plan
from clipmerge.planning.tensors import PlanTensors
from clipmerge.progress import Progress, Silent
from clipmerge.request import Calibration

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipmerge.api.merge import Measured
    from clipmerge.checkpoint import Checkpoint
    from clipmerge.evaluation.moving_model import MovingModel
    from clipmerge.evaluation.scorer import Correct
    from clipmerge.planning.recipe import Recipe

#: The record that the output folder of a sweep holds, and by which one is known.
SWEEP_RECORD = "sweep.json"
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class SweepRequest:
    """Everything that determines a sweep.

    Attributes:
        zeroshot: Source of theta_0.
        finetuned: Source of theta_1.
        id_sources: Name to source of images like those it was fine-tuned on.
        ood_sources: Name to source of images unlike them.
        further: Sources of more fine-tuned checkpoints of the same base; the curve then goes to their average.
        recipes: What to put beside the curve.
        alphas: Points of the curve, ascending.
        calibration: The images that recipes measure on, and what holds for every source: class names, templates,
            batch size and device.
        seed: Seed of the calibration sample, of random masks and of the resampling.
        dtype: What the points are rounded to, as a merge would be written.
        command: How to run this again, for the record.
    """

    zeroshot: str
    finetuned: str
    id_sources: dict[str, str]
    ood_sources: dict[str, str]
    recipes: tuple[Recipe, ...] = ()
    alphas: tuple[float, ...] = ALPHAS
    calibration: Calibration = field(default_factory=Calibration)
    seed: int = 0
    dtype: OutputDtype = "keep"
    command: str = ""
    further: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Sources of theta_0, theta_1 ... theta_K."""
        return (self.zeroshot, self.finetuned, *self.further)

    def merge_request(self, recipe: Recipe, inputs: Inputs | None = None) -> MergeRequest:
        """The merge that one of the recipes asks for, by the commits that a pair was read at."""
        pinned = [_pinned(each) for each in (inputs.zeroshot, *inputs.finetuned)] if inputs else self.checkpoints
        zeroshot, *finetuned = pinned
        return MergeRequest(
            zeroshot, tuple(finetuned), recipe, self.calibration, self.seed, self.dtype, command=self.command
        )


@dataclass(frozen=True)
class Point:
    """A place to evaluate.

    Attributes:
        alpha: Place on the curve; ``None`` off it.
        plan: What each layer gets, off the curve.
        tensors: The scores and coefficients that the plan needs.
    """

    alpha: float | None
    plan: Plan | None = None
    tensors: PlanTensors = field(default_factory=PlanTensors)

    def move(self, model: MovingModel) -> None:
        """Set a model's weights to those of this point."""
        if self.plan is not None:
            model.follow(self.plan, self.tensors)
        elif self.alpha is not None:
            model.interpolate(self.alpha)


@dataclass(frozen=True)
class _Planned:
    """A recipe, decided: which point it is, what the record says of it, and what to do when it has been evaluated."""

    recipe: Recipe
    point: int
    plan: Plan
    finish: Callable[[], None]


def check_sweep(request: SweepRequest) -> None:
    """Refuse what contradicts itself, before anything is opened.

    Args:
        request: What to sweep.

    Raises:
        UsageError: If a source or recipe is there twice, or a name cannot be written, or images to measure on lack.
    """
    shared = sorted(request.id_sources.keys() & request.ood_sources.keys())
    if shared:
        raise UsageError(f"--id and --ood: both have a source named '{shared[0]}'; write NAME=SOURCE, each name once")
    if not request.id_sources or not request.ood_sources:
        raise UsageError("a sweep needs at least one --id and one --ood source")
    from clipmerge.evaluation.scorer import check_source_name

    for name in _sources(request):
        check_source_name(name)
    if len(request.alphas) < 2 or list(request.alphas) != sorted(set(request.alphas)):
        raise UsageError("--alphas: a curve needs at least two different values, in ascending order")
    names = [recipe.name for recipe in request.recipes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recipes are named '{name}'; give one another `name:` in its file")
    for recipe in request.recipes:
        check_request(request.merge_request(recipe))


def sweep(request: SweepRequest, progress: Progress | None = None) -> tuple[dict[str, Any], dict[str, Correct]]:
    """Evaluate the curve and the recipes.

    Args:
        request: What to sweep.
        progress: Where to report.

    Returns:
        A JSON-ready record, see `docs/sweep.md`; and source to whether each image was recognised, shape (points,
        images), the points being the curve's in order and then those of ``recipes`` that are not on it.

    Raises:
        UsageError: If an OOD source shares images with the calibration source.
        ClipmergeError: If anything the user gave cannot be used.
    """
    from clipmerge.distributed import accelerator_for

    check_sweep(request)
    progress = progress or Silent()
    begin = time.perf_counter()
    progress.stage("read")
    loaded = {name: _load(source, request, progress) for name, source in _sources(request).items()}
    notes = _check_overlap(request, loaded)
    for note in notes:
        progress.say(note)
    accelerator = accelerator_for(request.calibration.device)
    inputs = _open(request, progress)
    points, planned = _plan_points(request, inputs, progress)
    planning = time.perf_counter()
    progress.stage("evaluate")
    correct = _score(request, inputs, points, loaded, accelerator, progress)
    for each in planned:
        each.finish()
    places = standings(
        [correct[name] for name in request.id_sources],
        [correct[name] for name in request.ood_sources],
        range(len(request.alphas)),
        seed=request.seed,
    )
    rows = [_row(place, correct, number) for number, place in enumerate(places)]
    seconds = {"plan": round(planning - begin, 3), "evaluate": round(time.perf_counter() - planning, 3)}
    record = _record(request, inputs, loaded, [*inputs.notes, *notes]) | {
        "curve": [{"alpha": alpha, **row} for alpha, row in zip(request.alphas, rows, strict=False)],
        "recipes": [_recipe_row(each, points[each.point], rows[each.point]) for each in planned],
        "seconds": seconds,
    }
    return record, correct


def write_sweep(
    request: SweepRequest,
    output: Path,
    *,
    overwrite: bool = False,
    read: Iterable[Path] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate the curve and the recipes, and write the output folder.

    Args:
        request: What to sweep.
        output: The folder; there whole at the end, or not at all.
        overwrite: Whether an earlier sweep may be replaced.
        read: Files that the request was made from.
        progress: Where to report.

    Returns:
        The record, as also written to ``sweep.json``.

    Raises:
        OutputError: If the folder exists or cannot be written.
        ClipmergeError: If anything the user gave cannot be used.
    """
    from clipmerge.distributed import is_main_process
    from clipmerge.evaluation.scorer import write_correct
    from clipmerge.files.staging import staged
    from clipmerge.output.checks import check_output
    from clipmerge.report.sweep_page import curve_png, sweep_page

    images = local_inputs(*_sources(request).values(), request.calibration.source, request.calibration.classes)
    inputs = local_inputs(*request.checkpoints)
    check_output(output, overwrite=overwrite, inputs=inputs, read=[*images, *read], record=SWEEP_RECORD)
    record, correct = sweep(request, progress)
    record["output"] = str(output)
    if is_main_process():
        picture = curve_png(record)
        with staged(output, overwrite=overwrite) as folder:
            (folder / "curve.png").write_bytes(picture)
            (folder / "sweep.html").write_text(sweep_page(record, picture), encoding="utf-8", errors="backslashreplace")
            write_correct(folder / "correct.safetensors", correct)
            (folder / SWEEP_RECORD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return record


def _sources(request: SweepRequest) -> dict[str, str]:
    return {**request.id_sources, **request.ood_sources}


def _load(source: str, request: SweepRequest, progress: Progress) -> LabelledImages:
    images = load_images(source, request.calibration.classes, columns=request.calibration.columns, whole=True)
    for note in images.notes:
        progress.say(note)
    return images


def _check_overlap(request: SweepRequest, loaded: dict[str, LabelledImages]) -> list[str]:
    return check_overlap(
        _calibration_images(request),
        {name: loaded[name] for name in request.id_sources},
        {name: loaded[name] for name in request.ood_sources},
    )


def _calibration_images(request: SweepRequest) -> LabelledImages | None:
    """All images of the calibration source; of one on the Hub, those that recipes will measure on."""
    asked = request.calibration
    if not asked.source:
        return None
    images = load_images(asked.source, asked.classes, columns=asked.columns)
    return images.sample(asked.images, request.seed) if images.revision else images


def _open(request: SweepRequest, progress: Progress) -> Inputs:
    """Read the checkpoints; keys that only one of them has are an error unless a recipe provides for them."""
    provided = [recipe.missing for recipe in request.recipes if recipe.missing != "error"]
    missing = provided[0] if provided else "error"
    mixed = request.dtype != "keep"
    compare_before_download(request.zeroshot, request.checkpoints[1:], missing=missing, mixed_dtypes=mixed)
    zeroshot = open_checkpoint(request.zeroshot)
    finetuned = [open_checkpoint(source, base=zeroshot) for source in request.checkpoints[1:]]
    inputs = align_checkpoints(zeroshot, finetuned, missing=missing, mixed_dtypes=mixed)
    for note in inputs.notes:
        progress.say(note)
    return inputs


def _pinned(checkpoint: Checkpoint) -> str:
    if checkpoint.revision:
        return f"{checkpoint.source.partition('@')[0]}@{checkpoint.revision}"
    return checkpoint.source


def _plan_points(request: SweepRequest, inputs: Inputs, progress: Progress) -> tuple[list[Point], list[_Planned]]:
    """The distinct points, those of the curve first, and which of them each recipe is."""
    points = [Point(alpha) for alpha in request.alphas]
    keys: list[Any] = [_key_of_alpha(alpha) for alpha in request.alphas]
    planned = []
    known: dict[str, Measured] = {}
    for recipe in request.recipes:
        run = make_plan(request.merge_request(recipe, inputs), progress, known=known)
        plan, tensors = _shared(run.plan, run.tensors)
        key = _key(plan, [layer for layer, names in inputs.layers.items() if any(map(inputs.merges, names))])
        if key not in keys:
            keys.append(key)
            points.append(Point(None, plan, tensors))
        planned.append(_Planned(recipe, keys.index(key), plan, run.finish))
    return points, planned


def _shared(plan: Plan | None, tensors: PlanTensors) -> tuple[Plan, PlanTensors]:
    """What the main process decided, in every process; measurements stay behind, they can be as large as the model."""
    from accelerate.utils import broadcast_object_list

    decided: list[Any] = [plan and plan.model_copy(update={"measurements": None}), tensors]
    broadcast_object_list(decided)
    return decided[0], decided[1]


def _key_of_alpha(alpha: float) -> tuple[str, float]:
    return ("alpha", float(alpha))


def _key(plan: Plan, layers: Iterable[str]) -> Any:
    """What two plans for one pair have in common exactly when they merge to the same weights."""
    entries = [plan.layers.get(layer, LayerPlan(alpha=0.0)) for layer in layers]
    learned = any(entry.alpha_range for entry in entries)
    average = (1.0 / len(plan.weights),) * len(plan.weights)
    if plan.weights == average and not plan.combine and not learned and all(entry.mask is None for entry in entries):
        alphas = {float(entry.alpha) for entry in entries}
        if len(alphas) == 1:
            return _key_of_alpha(alphas.pop())
    told = [entry.model_dump(mode="json", exclude={"reason"}) for entry in entries]
    # coefficients are those that one method made of one measurement
    origin = [plan.recipe["measure"], plan.recipe["method"] if learned else None]
    combine = plan.combine and plan.combine.model_dump(mode="json")
    return json.dumps([plan.weights, combine, plan.missing, plan.seed, origin, told], sort_keys=True)


def _score(
    request: SweepRequest,
    inputs: Inputs,
    points: list[Point],
    loaded: dict[str, LabelledImages],
    accelerator: Accelerator,
    progress: Progress,
) -> dict[str, Correct]:
    from clipmerge.evaluation.scorer import Scorer
    from clipmerge.models.building import build_model

    scorer = Scorer(
        build_model(inputs),
        inputs,
        accelerator,
        templates=check_templates(list(request.calibration.templates)),
        batch_size=request.calibration.batch_size,
        dtype=request.dtype,
    )
    return scorer.score([point.move for point in points], loaded, progress)


def _row(place: Standing, correct: dict[str, Correct], number: int) -> dict[str, Any]:
    return {
        "accuracy": {name: float(right[number].mean()) for name, right in correct.items()},
        "id": place.id_accuracy,
        "ood": place.ood_accuracy,
        "ood_interval": list(place.ood_interval),
        "gain": place.gain,
        "gain_interval": list(place.gain_interval) if place.gain_interval else None,
    }


def _recipe_row(planned: _Planned, point: Point, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": planned.recipe.name,
        "point": planned.point,
        "alpha": point.alpha,
        **row,
        "verdict": planned.plan.verdict,
        "calibration": planned.plan.model_dump(mode="json")["calibration"],
        "recipe": planned.plan.recipe,
    }


def _record(
    request: SweepRequest, inputs: Inputs, loaded: dict[str, LabelledImages], notes: Sequence[str]
) -> dict[str, Any]:
    """What holds for the whole sweep."""
    finetuned = [each.provenance() for each in inputs.finetuned]
    return {
        "clipmerge": __version__,
        "output": None,
        "command": request.command,
        "zeroshot": inputs.zeroshot.provenance(),
        "finetuned": finetuned[0] if len(finetuned) == 1 else finetuned,
        "id": list(request.id_sources),
        "ood": list(request.ood_sources),
        "sources": _sources(request),
        "images": {name: len(images) for name, images in loaded.items()},
        "revisions": {name: images.revision for name, images in loaded.items() if images.revision},
        "calibration_source": request.calibration.source,
        "templates": list(check_templates(list(request.calibration.templates))),
        "seed": request.seed,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "warnings": list(notes),
    }
