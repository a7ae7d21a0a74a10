"""`clipmerge merge`: read, measure, decide, merge and write; `clipmerge plan` stops after deciding.

Every process of ``accelerate launch`` reads and measures; only the main one hashes, decides and
writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, Unpack

from clipmerge.api._data import open_data
from clipmerge.api._in_memory import CheckpointLike, as_sources, named_after_model
from clipmerge.api._merge_effect import (
    add_verdict,
    open_tasks,
    warn_or_raise,
)
from clipmerge.api._results import MergeResult
from clipmerge.api.apply import finish_merge
from clipmerge.api.push import check_push, push
from clipmerge.checkpoint import Inputs, open_checkpoints
from clipmerge.checkpoint.alignment import align, finetuned_dtype, refuse_mismatches
from clipmerge.checkpoint.inputs import HEAD_WEIGHT
from clipmerge.checks import check_images, check_limit, check_models, check_sources, raise_errors
from clipmerge.config import (
    MergeOptions,
    Missing,
    PlanOptions,
    complete_options,
    with_options,
)
from clipmerge.errors import RecipeError
from clipmerge.evaluation.zero_shot_head import build_zeroshot_head, lacks_zeroshot_head
from clipmerge.files.paths import local_path
from clipmerge.finding import Finding
from clipmerge.images.local_files import local_inputs
from clipmerge.images.prompts import templates_for
from clipmerge.layers import match_layers
from clipmerge.methods import Task, decide
from clipmerge.output.record import Measured
from clipmerge.planning.measurements import CalibrationRecord, Measurements
from clipmerge.planning.plan import (
    HeadRecord,
    Plan,
    extrapolation_note,
    named_tensors,
    with_coefficients,
    write_plan_files,
)
from clipmerge.planning.recipe import (
    Recipe,
    RecipeLike,
    load_limited_recipe,
    parse_assignments,
    refuse_set_twice,
)
from clipmerge.plugins import plugin_names, takes_several_finetuned
from clipmerge.progress import Progress, say_all
from clipmerge.report.text import texts_of
from clipmerge.request import (
    MergeRequest,
    Request,
    as_list,
    check_merge,
    command_line,
    default_recipe,
    parse_size,
    recipe_files,
    request_fields,
)
from clipmerge.run import Run, RunCache
from clipmerge.types import StrPath


@with_options(MergeOptions)
def merge(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: StrPath | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Merge a fine-tuned model with its zero-shot self, and write the result.

    Args:
        zeroshot: theta_0: a folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        finetuned: theta_1, likewise; a sequence for several fine-tuned from the same zero-shot
            model.
        recipe: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`;
            by default ``auto`` with ``data`` and without ``alpha``, else ``wise-ft``.
        output: Folder to write, completely or not at all; ``None`` to measure and decide only.
        **options: See `MergeOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    settings = complete_options(MergeOptions, options)
    target = None if output is None else local_path(output)
    progress = settings["progress"]
    limit = parse_size(settings["max_shard_size"])
    with merge_requested(zeroshot, finetuned, recipe, settings) as request:
        if target is not None:
            from clipmerge.output.checks import check_output

            check_output(
                target,
                overwrite=settings["overwrite"],
                inputs=local_inputs(*request.checkpoints),
                read=[*request.files, *recipe_files(recipe)],
            )
        if settings["push"] is not None:
            check_push(settings["push"], target)
        run = prepare(request, progress)
        result = finish_merge(run, target, overwrite=settings["overwrite"], max_shard_size=limit)
    if settings["push"] is None or target is None or not run.is_main:
        return result
    published = push(
        target,
        settings["push"],
        private=settings["private"],
        license=settings["license"],
        progress=progress,
    )
    return replace(result, published=published)


@with_options(PlanOptions)
def plan(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: StrPath | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Measure and decide like `merge`, without merging.

    Args:
        zeroshot: theta_0; see `merge`.
        finetuned: theta_1 ... theta_K; see `merge`.
        recipe: See `merge`.
        output: JSON file to write the plan to; `Plan.save` can write it later.
        **options: See `PlanOptions`.

    Returns:
        The plan. In the other processes of ``accelerate launch`` it has no layers.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    return plan_run(zeroshot, finetuned, recipe, output, **options).decided_plan


def plan_run(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None,
    output: StrPath | None,
    **options: Unpack[PlanOptions],
) -> Run:
    """Work like `plan`, with the same arguments, but return the whole run."""
    from clipmerge.output.checks import check_output_file

    settings = complete_options(PlanOptions, options)
    target = None if output is None else local_path(output)
    with merge_requested(zeroshot, finetuned, recipe, settings) as request:
        if target is not None:
            check_output_file(target, overwrite=settings["overwrite"])
        run = prepare(request, settings["progress"])
        if run.is_main:
            if target is not None:  # it may have appeared meanwhile
                check_output_file(target, overwrite=settings["overwrite"])
            write_plan(run, target)
    return run


@contextmanager
def merge_requested(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None,
    settings: Mapping[str, Any],
) -> Iterator[MergeRequest]:
    """The checked request of a call, from its complete options; models in
    memory lie on the disk in this block.
    """
    if recipe is None:
        recipe = default_recipe(settings)
    with as_sources([zeroshot, *as_list(finetuned)], settings["processor"]) as (base, *others):
        yield merge_request(base, others, recipe, settings, command=command_line())


def merge_request(
    zeroshot: str,
    finetuned: Sequence[str],
    recipe: RecipeLike,
    settings: Mapping[str, Any],
    *,
    command: str = "",
) -> MergeRequest:
    """Build the request of a merge from complete options, and check it."""
    fields = request_fields(zeroshot, finetuned, command, settings)
    changes = dict(parse_assignments(settings["set"]))
    if settings["alpha"] is not None:
        refuse_set_twice("alpha", "method.alpha", changes)
        changes["method.alpha"] = settings["alpha"]
    chosen = load_limited_recipe(recipe, changes, settings["max_loss"])
    if settings["max_loss"] is None:
        fields["max_loss"] = chosen.max_loss
    request = MergeRequest(recipe=chosen, **fields)
    check_merge(request)
    return request


def prepare(
    request: MergeRequest,
    progress: Progress | None = None,
    *,
    cache: RunCache | None = None,
    with_verdict: bool = True,
) -> Run:
    """Read, measure, decide, and measure the effect of the decision."""
    with ExitStack() as settings:
        if request.recipe.measure:
            from clipmerge.models.precision import own_settings

            settings.enter_context(own_settings())
        return _prepare(request, progress, cache=cache, with_verdict=with_verdict)


def _prepare(
    request: MergeRequest,
    progress: Progress | None,
    *,
    cache: RunCache | None,
    with_verdict: bool,
) -> Run:
    cache = cache or RunCache()
    run, request = _open_run(request, progress or Progress(), cache)
    _check_recipe_fits(run, request.recipe)
    tasks = open_tasks(run, request) if with_verdict else {}
    measurements = None
    calibration = None
    if with_verdict and request.calibration.source is not None:
        doubts = _check_images(run, request)
        run.findings += doubts
        say_all(run.progress, texts_of(doubts))
    if request.recipe.measure:
        title = f"{request.recipe.name}: {'learning' if request.recipe.learns else 'measuring'}"
        with run.timed("measure", title):
            measurements, calibration = _measure_once(run, request, cache)
        run.learned = measurements.coefficients
    if run.is_main:
        with run.timed("plan", f"{request.recipe.name}: deciding"):
            _decide(run, request, measurements, calibration)
    if with_verdict:
        add_verdict(run, request, tasks)
    return run


def _measure_once(
    run: Run, request: MergeRequest, cache: RunCache
) -> tuple[Measurements, CalibrationRecord]:
    from clipmerge.api.measure import measure, ranks_by_gradients

    key = json.dumps([request.recipe.measure, request.recipe.missing], sort_keys=True)
    result = cache.measured.get(key)
    if result is None or (ranks_by_gradients(request.recipe) and not result[0].gradients):
        result = cache.measured[key] = measure(run, request)
    return result


def _open_run(
    request: MergeRequest, progress: Progress, cache: RunCache
) -> tuple[Run, MergeRequest]:
    progress.stage("read")
    begin = time.perf_counter()
    inputs, request = open_inputs(request, request.recipe.missing, cache)
    run = Run(inputs, progress, command=request.command, cache=cache)
    if lacks_zeroshot_head(inputs):
        run.head = _head_classes(run, request)
    if run.head:
        mixed = request.dtype != "keep"
        run.inputs = inputs = build_zeroshot_head(inputs, run.head, mixed_dtypes=mixed)
    say_all(progress, texts_of(inputs.notes))
    run.findings += raise_errors(check_models_once(inputs, cache), allow=request.allow)
    say_all(progress, texts_of(run.findings))
    run.seconds["read"] = round(time.perf_counter() - begin, 3)
    return run, request


def _head_classes(run: Run, request: MergeRequest) -> HeadRecord | None:
    """The classes of the rows of a head; ``None`` if neither images nor class names were given."""
    from clipmerge.images.classes import read_class_names
    from clipmerge.images.dataset import require_labelled

    calibration = request.calibration
    inputs = run.inputs
    if calibration.source is not None:
        images = require_labelled(open_data(request, run.cache, run.progress))
        return HeadRecord(
            classes=images.class_names,
            templates=templates_for(calibration.templates, images.templates),
        )
    if calibration.classes:
        rows = inputs.finetuned[0].entries[inputs.finetuned_keys[0][HEAD_WEIGHT]].shape[0]
        names = read_class_names(calibration.classes, [str(row) for row in range(rows)])
        return HeadRecord(classes=names, templates=templates_for(calibration.templates, ()))
    return None


SomeRequest = TypeVar("SomeRequest", bound=Request)


def open_inputs(
    request: SomeRequest, missing: Missing, cache: RunCache
) -> tuple[Inputs, SomeRequest]:
    """Open the checkpoints once, and align them once per ``missing``.

    Returns:
        The aligned checkpoints, and the request with the fine-tuned dtype if the zero-shot weights
        have another one and the user named none.
    """
    if not cache.checkpoints:
        opened = open_checkpoints(request.checkpoints, model=request.model)
        cache.checkpoints = tuple(map(named_after_model, opened))
    is_new = missing not in cache.inputs
    if is_new:
        zeroshot, *finetuned = cache.checkpoints
        cache.inputs[missing] = align(zeroshot, finetuned, missing=missing)
    inputs = cache.inputs[missing]
    dtype = finetuned_dtype(inputs) if request.dtype == "keep" else None
    if dtype is not None:
        request = replace(request, dtype=dtype)
    if is_new:
        refuse_mismatches(inputs, mixed_dtypes=request.dtype != "keep")
        if dtype is not None:
            inputs.notes.append(
                "the zero-shot and the fine-tuned weights differ in dtype; the output has the"
                f" fine-tuned one, {dtype} (`dtype` names another)"
            )
    return inputs, request


def check_models_once(inputs: Inputs, cache: RunCache) -> list[Finding]:
    """Check once whether the fine-tuned checkpoints started from the zero-shot one."""
    if cache.doubts is None:
        cache.doubts = list(check_models(inputs))
    return cache.doubts


def _check_images(run: Run, request: MergeRequest) -> list[Finding]:
    """Check on a few images, before measuring, whether they and the class names can be right."""
    calibration = request.calibration
    images = open_data(request, run.cache, run.progress)
    images.require_classes()
    if request.recipe.measure or calibration.held_back:
        findings = check_sources(
            run.inputs,
            {"": images},
            calibration,
            run.progress,
            max_images=calibration.images,
            seed=request.seed,
        )
    else:
        findings = check_images(images)
    is_judged_only = not request.recipe.measure
    with (
        run.timed("check", "checking images and class names"),
        warn_or_raise(run, request, "the verdict") if is_judged_only else nullcontext(),
    ):
        doubts = chain(check_limit(request.max_loss), findings)
        return raise_errors(doubts, allow=request.allow)


def _check_recipe_fits(run: Run, recipe: Recipe) -> None:
    """Find a wrong override before measuring, which takes minutes."""
    layers = Task(run.inputs).layers
    for override in recipe.overrides:
        match_layers(override.layers, layers)
    inputs = run.inputs
    # a head that was built from prompts, as WiSE-FT's, is close to them; another may be anything
    if recipe.learns and inputs.keeps_head and not inputs.has_built_head:
        raise RecipeError(
            f"recipe '{recipe.name}' learns by class prompts, and the output is a classifier,"
            " which has none; use 'wise-ft' without images, and compare its alphas by your own"
            " evaluation, or merge the tower alone into the whole zero-shot model with"
            " `set=missing=keep-zeroshot`"
        )
    count = len(run.inputs.finetuned)
    if count > 1 and recipe.measure and not takes_several_finetuned(recipe.measure["name"]):
        several = [name for name in plugin_names("measures") if takes_several_finetuned(name)]
        raise RecipeError(
            f"measure {recipe.measure['name']}: takes one fine-tuned checkpoint, but {count} were"
            " given; for several use a recipe without a measure, such as 'wise-ft' or 'ties', or"
            f" one of these measures: {', '.join(several)}"
        )


def _decide(
    run: Run,
    request: MergeRequest,
    measurements: Measurements | None,
    calibration: CalibrationRecord | None,
) -> None:
    task = Task(run.inputs, measurements, request.seed)
    options = request.recipe.method_options
    decision = decide(task, request.recipe.method["name"], options)
    learned = decision.coefficients
    layers = with_coefficients(decision.layers, learned, task.layers, task.shapes)
    reasons = dict(decision.reasons)
    for name, (absent, total) in run.inputs.partly_zeroshot.items():
        reasons[name] = (
            f"{absent} of {total} parameters stay zero-shot: fine-tuned ones are missing"
        )
    for override in request.recipe.overrides:
        for name in match_layers(override.layers, layers):
            layers[name] = override.apply_to(layers[name])
            reasons[name] = f"override '{override.layers}'"
    # a layer whose alpha is overridden needs no coefficients
    used = {
        name: learned[name]
        for layer, entry in layers.items()
        if entry.alpha_range
        for name in task.layers[layer]
        if name in learned
    }
    plan = Plan(
        recipe=request.recipe,
        **run.sources(hashed=False),
        weights=decision.weights,
        combine=decision.combine,
        dtype=request.dtype,
        missing=request.recipe.missing,
        head=run.head,
        seed=request.seed,
        layers=layers,
        stragglers=decision.stragglers,
    )
    plan.check(task.layers)
    run.plan = plan.with_tensors(named_tensors(decision.scores, used))
    run.measured = Measured(
        decision=decision.found,
        reasons=reasons,
        straggler_statistic=decision.straggler_statistic,
        straggler_scores=decision.straggler_scores,
    )
    run.calibration = calibration
    notes = texts_of(measurements.notes) if measurements else []
    notes += filter(None, [extrapolation_note(plan)])
    if measurements:
        run.measurements = measurements
        run.measured = run.measured.replace(
            statistics={value.name: value.reading for value in measurements.statistics},
            **{name: getattr(measurements, name) for name in ("path", "trace", "choice", "checks")},
        )
    run.warnings = [*texts_of((*run.inputs.notes, *run.findings)), *notes]
    say_all(run.progress, notes)


def write_plan(run: Run, path: Path | None) -> None:
    """Complete the plan with the hashes of its inputs, and write it, with its tensors beside it, if
    there is a path.
    """
    run.hash_inputs()
    plan = run.hashed_plan()
    run.plan = plan if path is None else write_plan_files(path, plan)
    run.finish()
