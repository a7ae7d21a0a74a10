"""`clipmerge apply`: open a plan and write the merged checkpoint; `merge` ends with the same
function.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from clipmerge.api._in_memory import CheckpointLike, as_sources, open_source
from clipmerge.api._results import MergeResult
from clipmerge.checkpoint import Checkpoint, align_checkpoints
from clipmerge.checks import check_models
from clipmerge.config import ApplyOptions, complete_options, with_options
from clipmerge.errors import PlanError, UsageError, counted, shorten
from clipmerge.evaluation.zero_shot_head import build_zeroshot_head, lacks_zeroshot_head
from clipmerge.files.paths import local_path, source_exists
from clipmerge.files.staging import PLAN_FOLDER, RECORD, staged
from clipmerge.methods import Task
from clipmerge.output.record import Record, merge_record
from clipmerge.planning.plan import (
    Plan,
    SourceRecord,
    check_coefficients,
    extrapolation_note,
    tensors_path,
    write_plan_files,
)
from clipmerge.progress import Progress, say_all
from clipmerge.report.text import texts_of
from clipmerge.request import as_list, command_line, local_files, parse_size, refuse_duplicates
from clipmerge.run import Run
from clipmerge.types import StrPath

# a path may hold bytes that are not valid text
_NAMES = "backslashreplace"


@with_options(ApplyOptions)
def apply(
    plan: Plan | StrPath,
    *,
    output: StrPath,
    zeroshot: CheckpointLike | None = None,
    finetuned: CheckpointLike | Sequence[CheckpointLike] | None = None,
    **options: Unpack[ApplyOptions],
) -> MergeResult:
    """Apply a plan: writes the same bytes as `merge`.

    Args:
        plan: A plan, or its JSON file.
        output: Folder to write, whole or not at all.
        zeroshot: theta_0, if it is not at the place named in the plan; it must hold the same bytes.
        finetuned: theta_1 ... theta_K, likewise.
        **options: See `ApplyOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        PlanError: If the plan does not fit the checkpoints, or was made for others.
        OutputError: If the folder exists or cannot be written.
        ClipmergeError: If another argument cannot be used.
    """
    from clipmerge.output.checks import check_output

    settings = complete_options(ApplyOptions, options)
    limit = parse_size(settings["max_shard_size"])
    if not isinstance(plan, (Plan, str, os.PathLike)):
        raise UsageError(
            f"{type(plan).__name__} is not a plan; give a Plan, or a file that `clipmerge plan`"
            " wrote"
        )
    file = None if isinstance(plan, Plan) else local_path(plan)
    read = [] if file is None else local_files(file, tensors_path(file))
    target = local_path(output)
    check_output(target, overwrite=settings["overwrite"], read=read)
    if (zeroshot is None) != (finetuned is None):
        raise UsageError(
            "zeroshot and finetuned: give both, or neither if they are at the places named in the"
            " plan"
        )
    opened = plan if isinstance(plan, Plan) else Plan.load(local_path(plan))
    checkpoints = [] if zeroshot is None or finetuned is None else [zeroshot, *as_list(finetuned)]
    with as_sources(checkpoints, settings["processor"]) as sources:
        run = open_plan(
            opened,
            settings["progress"],
            name=str(file or "the plan"),
            sources=sources,
            model=settings["model"],
        )
        run.command = command_line()
        return finish_merge(run, target, overwrite=settings["overwrite"], max_shard_size=limit)


def open_plan(
    plan: Plan,
    progress: Progress,
    *,
    name: str,
    sources: Sequence[str] = (),
    model: str | None = None,
) -> Run:
    """Open a plan's inputs, and check that the plan was made for them."""
    progress.stage("read")
    begin = time.perf_counter()
    zeroshot, *finetuned = _open_checkpoints(name, plan, sources, model)
    plan = _replace_sources(plan, (zeroshot, *finetuned)) if sources else plan
    inputs = align_checkpoints(
        zeroshot, finetuned, missing=plan.missing, mixed_dtypes=plan.dtype != "keep"
    )
    if plan.head:
        if not lacks_zeroshot_head(inputs):
            raise PlanError(
                f"{name}: has the classes of a head, but these checkpoints do not lack one; remove"
                " 'head'"
            )
        inputs = build_zeroshot_head(inputs, plan.head, mixed_dtypes=plan.dtype != "keep")
    unchecked = [
        finding
        for record, checkpoint in zip(
            (plan.zeroshot, *plan.finetuned), (zeroshot, *finetuned), strict=True
        )
        for finding in _check_hashes(name, record, checkpoint)
    ]
    task = Task(inputs)
    plan.check(task.layers)
    check_coefficients(plan, task.layers, task.shapes)
    warnings = [*texts_of((*inputs.notes, *check_models(inputs))), *unchecked]
    warnings += filter(None, [extrapolation_note(plan)])
    if left_out := [layer for layer in task.layers if layer not in plan.layers]:
        warnings.append(
            f"{name}: does not name {counted(len(left_out), 'layer', 'layers')}, which will stay"
            f" zero-shot: {shorten(left_out, 3)}"
        )
    say_all(progress, warnings)
    run = Run(inputs, progress, plan=plan, head=plan.head, warnings=warnings)
    run.seconds["read"] = round(time.perf_counter() - begin, 3)
    return run


def _open_checkpoints(
    name: str, plan: Plan, sources: Sequence[str], model: str | None
) -> list[Checkpoint]:
    records = (plan.zeroshot, *plan.finetuned)
    if sources and len(sources) != len(records):
        raise PlanError(
            f"{name}: is for {len(records) - 1} fine-tuned checkpoints, but {len(sources) - 1} were"
            " given"
        )
    addresses = sources or [_locate(name, plan, record) for record in records]
    refuse_duplicates(addresses)
    models = [model or record.model for record in records]
    base = open_source(addresses[0], model=models[0])
    others = zip(addresses[1:], models[1:], strict=True)
    return [base, *(open_source(address, base, model=name) for address, name in others)]


def _replace_sources(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Plan:
    """A plan without hashes for the checkpoints that it is applied to; hashes are compared
    instead.
    """
    records = (plan.zeroshot, *plan.finetuned)
    zeroshot, *finetuned = (
        (
            record
            if all(record.files.values())
            else record.replace(source=checkpoint.source, revision=checkpoint.revision)
        )
        for record, checkpoint in zip(records, checkpoints, strict=True)
    )
    return plan.replace(zeroshot=zeroshot, finetuned=tuple(finetuned))


def _locate(name: str, plan: Plan, record: SourceRecord) -> str:
    """Current place of one of the plan's checkpoints."""
    source = record.source
    if record.revision:
        return record.pinned
    if source.startswith("hf://") or local_path(source).is_absolute() or source_exists(source):
        return source
    beside = str((plan.folder or Path()) / source)
    if source_exists(beside):
        return beside
    if source.endswith(" in memory"):
        raise PlanError(
            f"{name}: was made for models in memory; give them as zeroshot= and finetuned="
        )
    raise PlanError(
        f"{name}: {source} is not in the working folder or beside the plan; apply the plan in the"
        " folder where it was made, or write the absolute path (or hf://ORG/NAME) into it"
    )


def _check_hashes(name: str, record: SourceRecord, checkpoint: Checkpoint) -> list[str]:
    """Refuse another checkpoint than the plan's; a warning if that cannot be told."""
    names = checkpoint.provenance(hashed=False)["files"]
    if record.files == names:
        return [f"{name} has no sha256 of {record.source}: used unchecked"]
    hashes = checkpoint.hashes
    if record.files != hashes:
        changed = [file for file, digest in hashes.items() if record.files.get(file) != digest]
        raise PlanError(
            f"{name}: {record.source} is not the checkpoint that the plan was made for: the sha256"
            f" of {', '.join(changed) or 'its file list'} differs; plan again with `clipmerge plan`"
        )
    return []


def finish_merge(
    run: Run, output: Path | None, *, overwrite: bool = False, max_shard_size: int | None = None
) -> MergeResult:
    """Write a decided run in the main process, and return the result."""
    if not run.is_main:
        return MergeResult(output, run.decided_plan, None)

    if output is None:
        run.hash_inputs()
        run.plan = run.hashed_plan()
        record = merge_record(run, run.plan)
        run.finish()
    else:
        record = write_merge(run, output, overwrite=overwrite, max_shard_size=max_shard_size)
    return MergeResult(output, run.decided_plan, record, record.warnings)


def write_merge(
    run: Run, output: Path, *, overwrite: bool = False, max_shard_size: int | None = None
) -> Record:
    """Apply a decided plan and write the output folder."""
    from clipmerge.output.checks import check_output

    inputs = run.inputs
    assert run.plan is not None  # decided before it is written
    check_output(output, overwrite=overwrite, inputs=inputs.folders)
    # first, so that hashing overlaps with the import of torch, which takes a second or two
    run.hash_inputs()
    from clipmerge.merging.stream import plan_tensors
    from clipmerge.output.folder import assign_shards, write_weights
    from clipmerge.output.side_files import write_side_files
    from clipmerge.publish.card import CARD, model_card
    from clipmerge.report.page import html_page

    with staged(output, overwrite=overwrite) as folder:
        with run.timed("apply"):
            tensors = plan_tensors(inputs, run.plan)
            layout = assign_shards(inputs, tensors, max_shard_size)
            single = inputs.family.weights
            files = write_weights(folder, tensors, layout, run.progress, single=single)
        with run.timed("write"):
            side_files, notes = write_side_files(folder, inputs, run.plan.dtype)
            run.warnings += texts_of(notes)
            say_all(run.progress, texts_of(notes))
            plan = run.hashed_plan()
            if plan.coefficients:  # kept with the output, because learning them takes minutes
                written = write_plan_files(folder / PLAN_FOLDER / "plan.json", plan.public)
                plan = plan.replace(tensors=written.tensors)
        run.plan = plan
        # made after the stages, so that the returned and the written record are the same
        record = merge_record(run, plan, output=output, files={**files, **side_files})
        run.progress.stage("draw")
        (folder / "report.html").write_text(html_page(record), encoding="utf-8", errors=_NAMES)
        (folder / CARD).write_text(model_card(record), encoding="utf-8", errors=_NAMES)
        text = json.dumps(record.as_json(), indent=2) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")
    run.finish()
    return record
