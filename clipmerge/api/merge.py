"""The order of the stages, one function each; the Python API.

read -> measure -> decide -> apply and write -> report. Only the main process reads hashes, decides and writes;
under ``accelerate launch`` every process measures.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from clipmerge.checkpoint import Checkpoint, align_checkpoints, open_checkpoint
from clipmerge.checkpoint.preview import compare_before_download
from clipmerge.errors import PlanError, UsageError
from clipmerge.evaluation.zero_shot_head import build_zeroshot_head, head_classes, lacks_zeroshot_head
from clipmerge.files.paths import local_path
from clipmerge.layers import match_layers
from clipmerge.methods import Decision, Task
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.plan import CalibrationRecord, Plan, SourceRecord, TensorsRecord, read_plan
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.tensors import PlanTensors, check_coefficients, with_coefficients
from clipmerge.plugins import load_plugin, takes_several
from clipmerge.progress import Progress, Silent
from clipmerge.request import Calibration, MergeRequest, Run

Measured = tuple[Measurements, dict[str, Any]]
# a path may hold bytes that are no text
_NAMES = "backslashreplace"

__all__ = [
    "Calibration",
    "MergeRequest",
    "Progress",
    "Run",
    "Silent",
    "apply_overrides",
    "check_request",
    "load_plan",
    "make_plan",
    "write_merge",
    "write_plan",
]


def check_request(request: MergeRequest) -> None:
    """Refuse what contradicts itself, before anything is opened.

    Raises:
        UsageError: If a recipe that measures has no images to measure on.
    """
    if request.recipe.needs_data and not request.calibration.source:
        raise UsageError(
            f"recipe '{request.recipe.name}' measures, and needs labelled images of the target data: "
            "--data FOLDER with one subfolder a class (data-free recipes: wise-ft, lines, monosoup)"
        )


def make_plan(
    request: MergeRequest, progress: Progress | None = None, *, known: dict[str, Measured] | None = None
) -> Run:
    """Read, measure and decide.

    Args:
        request: What to merge and how.
        progress: Where to report.
        known: What requests that differ only in the recipe have measured so far; looked up, and added to.

    Returns:
        The run, its plan decided in the main process.

    Raises:
        ClipmergeError: If anything the user gave cannot be used.
    """
    check_request(request)
    run = _read(request, progress or Silent())
    _early_checks(run, request.recipe)
    measurements, calibration = None, None
    if request.recipe.measure:
        with run.timed("measure"):
            measurements, calibration = _measured(run, request, {} if known is None else known)
    if run.is_main:
        with run.timed("plan"):
            _decide(run, request, measurements, calibration)
    return run


def _measured(run: Run, request: MergeRequest, known: dict[str, Measured]) -> Measured:
    from clipmerge.api.measure import measure

    what = json.dumps([request.recipe.measure, request.recipe.missing], sort_keys=True)
    if what not in known:
        known[what] = measure(run, request)
    return known[what]


def _read(request: MergeRequest, progress: Progress) -> Run:
    progress.stage("read")
    begin = time.perf_counter()
    fit: dict[str, Any] = {"missing": request.recipe.missing, "mixed_dtypes": request.dtype != "keep"}
    compare_before_download(request.zeroshot, request.finetuned, **fit)
    zeroshot = open_checkpoint(request.zeroshot)
    finetuned = [open_checkpoint(source, base=zeroshot) for source in request.finetuned]
    inputs = align_checkpoints(zeroshot, finetuned, **fit)
    head = head_classes(inputs, request.calibration) if lacks_zeroshot_head(inputs) else None
    if head:
        inputs = build_zeroshot_head(inputs, head, mixed_dtypes=fit["mixed_dtypes"])
    run = Run(inputs, progress, command=request.command, head=head, hashed=request.hashed)
    for note in inputs.notes:
        progress.say(note)
    run.seconds["read"] = round(time.perf_counter() - begin, 3)
    return run


def _early_checks(run: Run, recipe: Recipe) -> None:
    """Find a wrong override before minutes of measuring, not after."""
    layers = Task(run.inputs).layers
    for override in recipe.overrides:
        match_layers(override.layers, layers)
    if recipe.measure and not takes_several("measures", recipe.measure["name"]):
        Task(run.inputs).need_one_finetuned(str(recipe.method["name"]))


def _decide(
    run: Run, request: MergeRequest, measurements: Measurements | None, calibration: dict[str, Any] | None
) -> None:
    task = Task(run.inputs, measurements, request.seed)
    options = {key: value for key, value in request.recipe.method.items() if key != "name"}
    decision: Decision = load_plugin("methods", request.recipe.method["name"])(task, **options)
    learned = {name: c.detach().float().cpu().contiguous() for name, c in decision.coefficients.items()}
    told = with_coefficients(decision.layers, learned, task.layers, task.shapes) if learned else decision.layers
    notes = measurements.notes if measurements else ()
    plan = Plan(
        recipe=request.recipe.model_dump(mode="json"),
        zeroshot=_source_record(run.inputs.zeroshot),
        finetuned=tuple(_source_record(each) for each in run.inputs.finetuned),
        weights=decision.weights,
        combine=decision.combine,
        dtype=request.dtype,
        missing=request.recipe.missing,
        head=run.head,
        layers=told,
        stragglers=decision.stragglers,
        straggler_statistic=decision.straggler_statistic,
        straggler_scores=decision.straggler_scores,
        verdict=decision.verdict,
        finding=decision.finding,
        measurements=measurements,
        calibration=CalibrationRecord(**calibration) if calibration else None,
        seed=request.seed,
        warnings=(*run.inputs.notes, *notes),
    )
    layers = apply_overrides(told, request.recipe)
    run.plan = plan.model_copy(update={"decided": plan.digest, "layers": layers}).checked(task.layers)
    # what an override gave one alpha needs no coefficients
    kept = {n: learned[n] for layer, e in layers.items() if e.alpha_range for n in task.layers[layer] if n in learned}
    run.tensors = PlanTensors(decision.scores, kept)
    for note in notes:
        run.progress.say(note)


def _source_record(checkpoint: Checkpoint) -> SourceRecord:
    return SourceRecord(source=checkpoint.source, revision=checkpoint.revision, files={})


def apply_overrides(layers: dict[str, LayerPlan], recipe: Recipe) -> dict[str, LayerPlan]:
    """Apply a recipe's overrides, the later over the earlier.

    Args:
        layers: Layer to what the method gave it.
        recipe: The recipe.

    Returns:
        Layer to what it gets.

    Raises:
        PlanError: If a glob matches no layer.
    """
    changed = dict(layers)
    for override in recipe.overrides:
        for name in match_layers(override.layers, layers):
            update: dict[str, Any] = {"reason": f"override '{override.layers}'"}
            if override.alpha is not None:
                update |= {"alpha": override.alpha, "alpha_range": None}
            if override.density is not None:
                mask = changed[name].mask or "magnitude"
                update |= {"density": override.density, "mask": mask if override.density < 1 else None}
            changed[name] = changed[name].model_copy(update=update)
    return changed


def write_plan(run: Run, path: Path) -> None:
    """Write the plan, and beside it the tensors that it needs.

    Args:
        run: A decided run.
        path: The JSON file; tensors go beside it, to ``NAME.tensors.safetensors``.

    Raises:
        OutputError: If the file cannot be written.
    """
    from clipmerge.output.folder import write_plan_files

    run.hash_inputs()
    plan = run.hashed_plan()
    run.plan = write_plan_files(path, plan, run.tensors)
    run.finish()


def load_plan(path: Path, progress: Progress | None = None) -> Run:
    """Open a plan and its inputs, and check that these are what the plan was made for.

    Args:
        path: The JSON file.
        progress: Where to report.

    Returns:
        A decided run.

    Raises:
        PlanError: If an input's hash differs, or the plan does not fit the inputs.
    """
    plan = read_plan(path)
    progress = progress or Silent()
    progress.stage("read")
    begin = time.perf_counter()
    zeroshot = _open_again(path, plan.zeroshot)
    finetuned = [_open_again(path, record, zeroshot) for record in plan.finetuned]
    inputs = align_checkpoints(zeroshot, finetuned, missing=plan.missing, mixed_dtypes=plan.dtype != "keep")
    if plan.head:
        if not lacks_zeroshot_head(inputs):
            raise PlanError(f"{path}: has the classes of a head, and these checkpoints lack none; remove 'head'")
        inputs = build_zeroshot_head(inputs, plan.head, mixed_dtypes=plan.dtype != "keep")
    for record, checkpoint in zip((plan.zeroshot, *plan.finetuned), (zeroshot, *finetuned), strict=True):
        _check_hashes(path, record, checkpoint, progress)
    task = Task(inputs)
    run = Run(inputs, progress, plan=plan.checked(task.layers), head=plan.head)
    if plan.tensors:
        run.tensors = _load_tensors(path, plan.tensors)
    check_coefficients(plan, run.tensors.coefficients, task.layers, task.shapes)
    run.seconds["read"] = round(time.perf_counter() - begin, 3)
    return run


def _open_again(path: Path, record: SourceRecord, base: Checkpoint | None = None) -> Checkpoint:
    source = record.source
    if record.revision:
        source = f"{source.partition('@')[0]}@{record.revision}"
    elif not (source.startswith("hf://") or local_path(source).is_absolute() or Path(source).exists()):
        beside = path.parent / source
        if not beside.exists():
            raise PlanError(
                f"{path}: {source} is neither here nor beside the plan; apply it in the folder where it was made, or "
                "write the whole path (or hf://ORG/NAME) into it"
            )
        source = str(beside)
    return open_checkpoint(source, base=base)


def _check_hashes(path: Path, record: SourceRecord, checkpoint: Checkpoint, progress: Progress) -> None:
    if record.files == checkpoint.provenance(hashed=False)["files"]:
        progress.say(f"{path} has no sha256 of {record.source} (merged with --no-hash): taken as it is")
    elif record.files != checkpoint.hashes:
        changed = [name for name, digest in checkpoint.hashes.items() if record.files.get(name) != digest]
        raise PlanError(
            f"{path}: {record.source} is not what the plan was made for: the sha256 of "
            f"{', '.join(changed) or 'its file list'} differs; plan again with `clipmerge plan`"
        )


def _load_tensors(path: Path, record: TensorsRecord) -> PlanTensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from clipmerge.files.hashes import sha256_of

    file = path.parent / record.file
    if not file.is_file() or sha256_of(file) != record.sha256:
        state = "is missing" if not file.is_file() else "has changed"
        raise PlanError(f"{file}: the tensors beside the plan: the file {state}; plan again with `clipmerge plan`")
    try:
        return PlanTensors.from_file(load_file(file))
    except SafetensorError as error:
        raise PlanError(f"{file}: the tensors beside the plan: {error}; plan again with `clipmerge plan`") from None


def write_merge(
    run: Run, output: Path, *, overwrite: bool = False, max_shard_size: int | None = None
) -> dict[str, Any]:
    """Apply a decided plan and write the output folder.

    Args:
        run: A decided run.
        output: The folder; there whole at the end, or not at all.
        overwrite: Whether an earlier output may be replaced.
        max_shard_size: Bytes a shard of the weights holds at most; ``None`` for shards as the fine-tuned
            checkpoint has them.

    Returns:
        The record, as also written to ``clipmerge.json``.

    Raises:
        OutputError: If the folder exists or cannot be written.
        CheckpointError: If an input turns out broken while it is read.
    """
    from clipmerge.files.staging import PLAN_FOLDER, RECORD, staged
    from clipmerge.output.checks import check_output

    inputs = run.inputs
    assert run.plan is not None  # decided before it is written
    check_output(output, overwrite=overwrite, inputs=inputs.folders)
    run.hash_inputs()  # first, so that it fills the second or two that importing torch takes
    from clipmerge.merging.stream import merged_tensors
    from clipmerge.output.folder import output_layout, write_plan_files, write_weights
    from clipmerge.output.record import merge_record
    from clipmerge.output.side_files import write_side_files
    from clipmerge.publish.card import PICTURE, model_card
    from clipmerge.report.page import html_page

    with staged(output, overwrite=overwrite) as folder:
        with run.timed("apply"):
            tensors = merged_tensors(inputs, run.plan, run.tensors)
            count = _ByteCount(run.progress, inputs.zeroshot.bytes)
            layout = output_layout(inputs, tensors, max_shard_size)
            files = write_weights(folder, tensors, layout, count, single=inputs.family.weights, hashed=run.hashed)
        with run.timed("write"):
            side_files, notes = write_side_files(folder, inputs, run.plan.dtype)
            for note in notes:
                run.progress.say(note)
            run.plan = run.plan.model_copy(update={"warnings": (*run.plan.warnings, *notes)})
            plan = run.hashed_plan()
            if run.tensors.coefficients:  # they cost minutes to learn: kept with what they made
                plan = write_plan_files(folder / PLAN_FOLDER / "plan.json", plan, run.tensors)
        # made when the stages are over, so that what is returned and what is written are one
        record = merge_record(run, plan, output, {**files, **side_files})
        (folder / "report.html").write_text(html_page(record), encoding="utf-8", errors=_NAMES)
        picture = _path_picture(record)
        if picture is not None:
            (folder / PICTURE).write_bytes(picture)
        card = model_card(record, repo_id=None, picture=picture is not None)
        (folder / "README.md").write_text(card, encoding="utf-8", errors=_NAMES)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    run.finish()
    return record


def _path_picture(record: dict[str, Any]) -> bytes | None:
    """Draw the path, where one was measured: matplotlib takes longer to import than a small merge takes."""
    if not record["path"]:
        return None
    from clipmerge.report.path_chart import path_png

    return path_png(record)


class _ByteCount:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._done, self._total)
