"""Evaluate the alpha curve and recipes on ID and OOD images, in one run.

Nothing is evaluated twice: equal plans are one point, every image is decoded once, and no
checkpoint is written. Calibration never sees an OOD image: an OOD source that shares an image with
the calibration source is refused before anything is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from clipmerge import __version__
from clipmerge.api._data import open_data
from clipmerge.api._in_memory import CheckpointLike, as_sources, open_source
from clipmerge.api._merge_effect import broadcast_plan
from clipmerge.api._results import SweepResult
from clipmerge.api.merge import check_models_once, open_inputs, prepare
from clipmerge.checkpoint import Inputs, align_checkpoints
from clipmerge.checkpoint.converted import convert_checkpoint
from clipmerge.checks import check_shifts, check_sources, raise_errors
from clipmerge.config import Missing, SweepOptions, complete_options, with_options
from clipmerge.distributed import is_main_process
from clipmerge.errors import CheckpointError, DataError, UsageError
from clipmerge.evaluation.points import Point, weights_key
from clipmerge.evaluation.tradeoff import RESAMPLES, Correct, compare_with_curve
from clipmerge.files.paths import local_path
from clipmerge.files.staging import staged
from clipmerge.finding import Finding
from clipmerge.images import ImageSet
from clipmerge.images.dataset import open_images, require_labelled
from clipmerge.images.fingerprints import check_overlap
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.local_files import local_inputs
from clipmerge.images.prompts import source_templates, templates_for
from clipmerge.images.registry import RegistryRef
from clipmerge.images.split import held_out_count
from clipmerge.output.record import SWEEP_FORMAT
from clipmerge.planning.plan import Plan
from clipmerge.planning.recipe import load_limited_recipe
from clipmerge.progress import Progress, say_all
from clipmerge.report.decision import decision_sentence
from clipmerge.report.sweep import sweep_sentence
from clipmerge.report.text import texts_of
from clipmerge.request import (
    SweepRequest,
    as_list,
    check_sweep,
    command_line,
    parse_alphas,
    parse_named,
    recipe_files,
    request_fields,
)
from clipmerge.run import Run, RunCache
from clipmerge.stats import LEVEL
from clipmerge.types import Json, StrPath

#: The record in the output folder of a sweep, which identifies it.
SWEEP_RECORD = "sweep.json"


@with_options(SweepOptions)
def sweep(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    *,
    id: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    ood: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    output: StrPath | None = None,
    **options: Unpack[SweepOptions],
) -> SweepResult:
    """Evaluate the alpha curve and recipes on ID and OOD images; see `docs/how-to/sweep.md`.

    Args:
        zeroshot: theta_0; see `merge`.
        finetuned: theta_1 ... theta_K; see `merge`. With several the curve goes to their average.
        id: Images like those of the fine-tuning, by name, each in any form accepted for ``data`` of
            `merge`; or texts ``NAME=SOURCE`` or paths, one or several.
        ood: Images unlike those of the fine-tuning, likewise.
        output: Folder to write; ``None`` to write nothing.
        **options: See `SweepOptions`.

    Returns:
        The record, and the images recognised at each point.

    Raises:
        UsageError: If an OOD source shares images with ``data``, or two arguments contradict each
            other.
        ClipmergeError: If another argument cannot be used.
    """
    settings = complete_options(SweepOptions, options)
    target = None if output is None else local_path(output)
    reports = settings["progress"]
    recipes = settings["recipes"] or ()
    models = [zeroshot, *as_list(finetuned)]
    points = parse_named("points", settings["points"])
    with as_sources([*models, *points.values()], settings["processor"]) as sources:
        base, *others = sources[: len(models)]
        request = SweepRequest(
            **request_fields(base, others, command_line(), settings),
            id_sources=parse_named("id", id),
            ood_sources=parse_named("ood", ood),
            recipes=tuple(
                load_limited_recipe(recipe, settings["set"], settings["max_loss"])
                for recipe in recipes
            ),
            alphas=parse_alphas(settings["alphas"]),
            points=dict(zip(points, sources[len(models) :], strict=True)),
        )
        if settings["set"] and not recipes:
            raise UsageError("`set` changes recipes, and there are none; give `recipes` too")
        check_sweep(request)
        if target is not None:
            from clipmerge.output.checks import check_output

            check_output(
                target,
                overwrite=settings["overwrite"],
                inputs=local_inputs(*request.checkpoints),
                read=[*request.files, *recipe_files(*recipes)],
                record=SWEEP_RECORD,
            )
        record, correct = run_sweep(request, reports)
        if target is not None:
            record["output"] = target.name
            if is_main_process():
                reports.stage("draw")
                write_sweep(record, correct, target, overwrite=settings["overwrite"])
    return SweepResult(target, record, correct, tuple(record["warnings"]))


def run_sweep(
    request: SweepRequest, progress: Progress | None = None
) -> tuple[Json, dict[str, Correct]]:
    """Evaluate the curve and the recipes of a checked request."""
    progress = progress or Progress()
    begin = time.perf_counter()
    progress.stage("read")
    loaded = {name: load_source(name, request, progress) for name in request.sources}
    cache = RunCache()
    notes = overlap_notes(request, loaded, cache, progress)
    compared = request.checks_overlap and all(note.kind != "not-compared" for note in notes)
    notes += [
        images.recall_note(name)
        for name, images in loaded.items()
        if isinstance(images, CaptionedImages)
    ]
    say_all(progress, texts_of(notes))
    # keys that only one checkpoint has are an error unless a recipe allows them
    missing: Missing = next(
        (recipe.missing for recipe in request.recipes if recipe.missing != "error"), "error"
    )
    inputs, request = open_inputs(request, missing, cache)
    if inputs.keeps_head and not inputs.has_built_head:
        raise CheckpointError(
            f"{inputs.finetuned[0].source}: is a classifier with a head of its own, and a sweep"
            " scores prompts; evaluate the merges of `clipmerge merge` where it was trained"
        )
    say_all(progress, texts_of(inputs.notes))
    doubts = raise_errors(check_models_once(inputs, cache), allow=request.allow)
    say_all(progress, texts_of(doubts))
    progress.stage("check")
    findings = check_sources(inputs, loaded, request.calibration, progress, seed=request.seed)
    doubted = raise_errors(findings, allow=request.allow)
    say_all(progress, texts_of(doubted))
    doubts += doubted
    placed = {
        name: _align_point(source, inputs, cache, request)
        for name, source in request.points.items()
    }
    points, planned, runs = _plan_points(request, inputs, cache, progress)
    first = len(points)
    points += [Point(None, checkpoint=pair) for pair in placed.values()]
    planning = time.perf_counter()
    progress.stage("evaluate")
    correct = _score_points(request, inputs, points, loaded, progress)
    progress.stage("bootstrap")
    rows = _rows_of_points(request, correct)

    def describe_point(name: str, number: int, **about: Any) -> Json:
        alpha = points[number].alpha
        return {"name": name, "point": number, "alpha": alpha, **rows[number], **about}

    recipes = [
        describe_point(
            plan.recipe.name,
            number,
            decision=decision_sentence(plan, run.measured),
            calibration=run.calibration and run.calibration.model_dump(mode="json"),
            recipe=plan.recipe.model_dump(mode="json"),
        )
        for (plan, number), run in zip(planned, runs, strict=True)
    ]
    checkpoints = [
        describe_point(name, number, checkpoint=pair.finetuned[0].provenance())
        for number, (name, pair) in enumerate(placed.items(), first)
    ]
    doubtful: tuple[Finding, ...] = ()
    if {0.0, 1.0} <= set(request.alphas):
        ends = [request.alphas.index(end) for end in (0.0, 1.0)]
        gains = {name: right[ends[1]] * 1.0 - right[ends[0]] for name, right in correct.items()}
        doubtful = check_shifts(
            {name: gains[name] for name in request.id_sources},
            {name: gains[name] for name in request.ood_sources},
        )
    say_all(progress, texts_of(doubtful))
    record = _describe_sweep(
        request,
        inputs,
        loaded,
        [*inputs.notes, *doubts, *notes, *doubtful],
    ) | {
        "ood_checked": compared and request.calibration.source is not None,
        "curve": [
            {"alpha": alpha, **row} for alpha, row in zip(request.alphas, rows, strict=False)
        ],
        "recipes": recipes,
        "points": checkpoints,
        "seconds": {
            "plan": round(planning - begin, 3),
            "evaluate": round(time.perf_counter() - planning, 3),
        },
    }
    for run in runs:  # what was learned is saved until nothing more can fail
        run.finish()
    return record | {"answer": sweep_sentence(record)}, correct


def _align_point(source: Any, inputs: Inputs, cache: RunCache, request: SweepRequest) -> Inputs:
    """Align a checkpoint that is shown as it is with the zero-shot one, by the pair's names."""
    base = cache.checkpoints[0]
    opened = open_source(source, base, model=request.model)
    point = convert_checkpoint(opened, inputs.zeroshot)
    return align_checkpoints(inputs.zeroshot, [point], mixed_dtypes=True)


def _rows_of_points(request: SweepRequest, correct: dict[str, Correct]) -> list[Json]:
    """The rows of the points, in order."""
    comparisons = compare_with_curve(
        [correct[name] for name in request.id_sources],
        [correct[name] for name in request.ood_sources],
        range(len(request.alphas)),
        seed=request.seed,
    )
    finetuned = comparisons[request.alphas.index(1.0)]["id"] if 1.0 in request.alphas else None
    return [
        {
            "accuracy": {name: float(right[number].mean()) for name, right in correct.items()},
            **comparison,
            "exceeds_max_loss": (
                None
                if finetuned is None
                else 100 * (finetuned - comparison["id"]) > request.max_loss + 1e-9
            ),
        }
        for number, comparison in enumerate(comparisons)
    ]


def _describe_sweep(
    request: SweepRequest,
    inputs: Inputs,
    loaded: dict[str, LabelledImages | CaptionedImages],
    notes: Sequence[Finding],
) -> Json:
    """The part of the record that describes the whole sweep."""
    source = request.calibration.source
    if source is not None and not isinstance(source, str):
        source = (
            source.address
            if isinstance(source, RegistryRef)
            else f"{type(source).__name__} in memory"
        )
    return {
        "format": SWEEP_FORMAT,
        "clipmerge": __version__,
        "output": None,
        "command": request.command,
        "zeroshot": inputs.zeroshot.provenance(),
        "finetuned": [model.provenance() for model in inputs.finetuned],
        "id": list(request.id_sources),
        "ood": list(request.ood_sources),
        "sources": {name: images.source for name, images in loaded.items()},
        "images": {name: len(images) for name, images in loaded.items()},
        "revisions": {name: images.revision for name, images in loaded.items() if images.revision},
        "calibration_source": source,
        "templates": list(templates_for(request.calibration.templates, ())),
        "source_templates": source_templates(
            request.calibration.templates,
            {
                name: image_set
                for name, image_set in loaded.items()
                if isinstance(image_set, LabelledImages)
            },
        ),
        "seed": request.seed,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "warnings": texts_of(notes),
    }


def write_sweep(
    record: Json, correct: dict[str, Correct], output: Path, *, overwrite: bool = False
) -> None:
    """Write the output folder."""
    from clipmerge.evaluation.scorer import write_correct
    from clipmerge.report.figures import png, sweep_figure
    from clipmerge.report.page import sweep_page

    picture = png(sweep_figure(record))
    page = sweep_page(record, picture)
    with staged(output, SWEEP_RECORD, overwrite=overwrite) as folder:
        (folder / "sweep.png").write_bytes(picture)
        (folder / "sweep.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        write_correct(folder / "correct.safetensors", correct)
        (folder / SWEEP_RECORD).write_text(
            json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def load_source(
    name: str, request: SweepRequest, progress: Progress
) -> LabelledImages | CaptionedImages:
    """Load the images of one source."""
    source = request.sources[name]
    data = request.calibration
    limit = request.limit
    whole = limit is None
    try:
        images = open_images(
            source,
            data.classes,
            columns=data.columns,
            whole=whole,
            max_images=limit,
            seed=request.seed,
        )
    except DataError as error:
        raise DataError(
            f"`{'ood' if name in request.ood_sources else 'id'}` {name}: {error}"
        ) from None
    say_all(progress, texts_of(images.notes))
    if limit is None:
        return images
    images.require_classes()
    return images.sample(limit, request.seed)


def overlap_notes(
    request: SweepRequest,
    loaded: Mapping[str, ImageSet],
    cache: RunCache,
    progress: Progress,
) -> list[Finding]:
    """Notes about images that sources share; of a Hub source for recipes only the images that they
    use count.
    """
    if not request.checks_overlap:
        return []
    data = request.calibration
    seed = request.seed
    labelled: ImageSet | None = None
    if data.source is not None:
        max_images = data.images + held_out_count(data.images, data.held_back)
        labelled = open_data(request, cache, progress)
        labelled = labelled.sample(max_images, seed) if labelled.revision else labelled
    id, ood = (
        {name: loaded[name] for name in names}
        for names in (request.id_sources, request.ood_sources)
    )
    return check_overlap(labelled, id, ood, None, None)


def _plan_points(
    request: SweepRequest,
    inputs: Inputs,
    cache: RunCache,
    progress: Progress,
) -> tuple[list[Point], list[tuple[Plan, int]], list[Run]]:
    """The distinct points, those of the curve first; the recipes' plans with the index of their
    point; and new runs.
    """
    # equal weights are one point
    points: dict[Any, Point] = {float(alpha): Point(alpha) for alpha in request.alphas}
    planned = []
    runs = []
    for recipe in request.recipes:
        run = prepare(request.merge_request(recipe), progress, cache=cache, with_verdict=False)
        runs.append(run)
        plan = broadcast_plan(run, request.calibration)
        key = weights_key(plan, inputs)
        points.setdefault(key, Point(None, plan))
        planned.append((plan, list(points).index(key)))
    return list(points.values()), planned, runs


def _score_points(
    request: SweepRequest,
    inputs: Inputs,
    points: list[Point],
    loaded: dict[str, LabelledImages | CaptionedImages],
    progress: Progress,
) -> dict[str, Correct]:
    from clipmerge.evaluation.scorer import Scorer, stack_correct
    from clipmerge.models.building import build_headed, build_model

    moves = [point.move for point in points]
    if inputs.have_heads_only:
        loaded = {name: require_labelled(images) for name, images in loaded.items()}
    model = build_headed(inputs) if inputs.have_heads_only else build_model(inputs)
    scorer = Scorer(model, inputs, request.calibration, dtype=request.dtype)
    outcomes_by_source = scorer.score(moves, loaded, scorer.pace(moves, loaded, progress))
    return {name: stack_correct(outcomes) for name, outcomes in outcomes_by_source.items()}
