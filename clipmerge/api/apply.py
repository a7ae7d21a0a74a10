"""`clipmerge apply`: open a plan and write what it says; `merge` ends with the same function."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.api._arguments import CheckpointLike, byte_count, files_read, several
from clipmerge.api._bought import without_stale
from clipmerge.api._commands import spelled_out
from clipmerge.api._in_memory import as_sources, open_source
from clipmerge.api._results import MergeResult
from clipmerge.checkpoint import Checkpoint, align_checkpoints
from clipmerge.errors import PlanError, UsageError
from clipmerge.evaluation.zero_shot_head import build_zeroshot_head, lacks_zeroshot_head
from clipmerge.files.paths import local_path
from clipmerge.methods import Task
from clipmerge.planning.plan import Plan, tensors_path, write_plan_files
from clipmerge.planning.provenance import SourceRecord
from clipmerge.planning.tensors import PlanTensors, check_coefficients
from clipmerge.progress import ByteCount, Logged, Progress, Silent
from clipmerge.request import Run

if TYPE_CHECKING:
    from clipmerge.output.record import MergeRecord

# a path may hold bytes that are no text
_NAMES = "backslashreplace"


def apply(
    plan: Plan | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
    hash: bool = True,
    zeroshot: CheckpointLike | None = None,
    finetuned: CheckpointLike | Sequence[CheckpointLike] | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> MergeResult:
    """Carry out a plan: the same bytes as `merge`.

    Args:
        plan: A plan, or its JSON file.
        output: Folder to write, whole or not at all.
        overwrite: Whether an earlier output may be replaced.
        max_shard_size: Size of a shard at most, such as ``5GB`` or a number of bytes; ``None`` for shards as the
            fine-tuned checkpoint has them.
        hash: Whether to check the inputs against the plan's sha256, and record those of the output.
        zeroshot: theta_0 where it is not at the place that the plan names; it must hold the same bytes.
        finetuned: theta_1 ... theta_K, likewise.
        processor: For models in memory: their processor, or open_clip's name of the model.
        progress: Where to report; by default Python's logger ``clipmerge``.
        command: How to run this again, for the record; by default spelled out from the arguments.

    Returns:
        The folder, the plan and the record.

    Raises:
        PlanError: If the plan does not fit the checkpoints, or they are not those that it was made for.
        OutputError: If the folder exists or cannot be written.
        ClipmergeError: If anything else that was given cannot be used.
    """
    from clipmerge.output.checks import check_output

    limit = byte_count("--max-shard-size", max_shard_size)
    file = None if isinstance(plan, Plan) else Path(plan)
    read = [] if file is None else files_read(file, tensors_path(file))
    check_output(Path(output), overwrite=overwrite, read=read)
    if (zeroshot is None) != (finetuned is None):
        raise UsageError("zeroshot and finetuned: give both, or neither where they are at the places the plan names")
    opened = plan if isinstance(plan, Plan) else Plan.load(plan)
    with as_sources(zeroshot, [] if finetuned is None else several(finetuned), processor) as (base, others):
        sources = (base, *others) if base else ()
        run = open_plan(opened, progress or Logged(), name=str(file or "the plan"), hashed=hash, sources=sources)
        words = {"output": output, "overwrite": overwrite, "max_shard_size": max_shard_size, "no_hash": not hash}
        run.command = command if command is not None else spelled_out("apply", file or opened, **words)
        return finished(run, Path(output), overwrite=overwrite, max_shard_size=limit)


def open_plan(
    plan: Plan | Path,
    progress: Progress | None = None,
    *,
    name: str = "the plan",
    hashed: bool = True,
    sources: Sequence[str] = (),
) -> Run:
    """Open a plan's inputs, and check that these are what the plan was made for.

    Args:
        plan: The plan, or its JSON file.
        progress: Where to report.
        name: Name of a plan that is not a file, for messages.
        hashed: Whether to compare hashes, which reads all weights.
        sources: Where theta_0, theta_1 ... theta_K are; empty where they are at the places that the plan names.

    Returns:
        A decided run.

    Raises:
        PlanError: If an input's hash differs, or the plan does not fit the inputs.
    """
    if isinstance(plan, Path):
        plan, name = Plan.load(plan), str(plan)
    plan = without_stale(plan)
    progress = progress or Silent()
    progress.stage("read")
    begin = time.perf_counter()
    zeroshot, *finetuned = _open_all(name, plan, sources)
    inputs = align_checkpoints(zeroshot, finetuned, missing=plan.missing, mixed_dtypes=plan.dtype != "keep")
    if plan.head:
        if not lacks_zeroshot_head(inputs):
            raise PlanError(f"{name}: has the classes of a head, and these checkpoints lack none; remove 'head'")
        inputs = build_zeroshot_head(inputs, plan.head, mixed_dtypes=plan.dtype != "keep")
    for record, checkpoint in zip((plan.zeroshot, *plan.finetuned), (zeroshot, *finetuned), strict=True):
        _check_hashes(name, record, checkpoint, progress, hashed=hashed)
    task = Task(inputs)
    run = Run(inputs, progress, plan=plan.checked(task.layers), head=plan.head, hashed=hashed)
    run.tensors = PlanTensors.from_file(plan.held_tensors)
    check_coefficients(plan, run.tensors.coefficients, task.layers, task.shapes)
    run.seconds["read"] = round(time.perf_counter() - begin, 3)
    return run


def _open_all(name: str, plan: Plan, sources: Sequence[str]) -> list[Checkpoint]:
    records = (plan.zeroshot, *plan.finetuned)
    if sources and len(sources) != len(records):
        raise PlanError(f"{name}: is for {len(records) - 1} fine-tuned checkpoints, {len(sources) - 1} were given")
    places = sources or [_place(name, plan, record) for record in records]
    base = open_source(places[0])
    return [base, *(open_source(place, base) for place in places[1:])]


def _place(name: str, plan: Plan, record: SourceRecord) -> str:
    """Where one of the plan's checkpoints is now."""
    source = record.source
    if record.revision:
        source = f"{source.partition('@')[0]}@{record.revision}"
    elif not (source.startswith("hf://") or local_path(source).is_absolute() or Path(source).exists()):
        beside = (plan.folder or Path()) / source
        if not beside.exists():
            if source.endswith(" in memory"):
                raise PlanError(f"{name}: was made for models in memory; give them as zeroshot= and finetuned=")
            raise PlanError(
                f"{name}: {source} is neither here nor beside the plan; apply it in the folder where it was made, or "
                "write the whole path (or hf://ORG/NAME) into it"
            )
        source = str(beside)
    return source


def _check_hashes(name: str, record: SourceRecord, checkpoint: Checkpoint, progress: Progress, *, hashed: bool) -> None:
    names = checkpoint.provenance(hashed=False)["files"]
    if record.files == names:
        progress.say(f"{name} has no sha256 of {record.source} (made with --no-hash): taken as it is")
        return
    if not hashed and record.files.keys() == names.keys():
        progress.say(f"{record.source} was not compared with the sha256 in {name} (--no-hash): taken as it is")
        return
    found = checkpoint.hashes if hashed else names
    if record.files != found:
        changed = [file for file, digest in found.items() if record.files.get(file) != digest]
        raise PlanError(
            f"{name}: {record.source} is not what the plan was made for: the sha256 of "
            f"{', '.join(changed) or 'its file list'} differs; plan again with `clipmerge plan`"
        )


def finished(
    run: Run, output: Path | None, *, overwrite: bool = False, max_shard_size: int | None = None
) -> MergeResult:
    """Write a decided run in the main process, and put its result together.

    Args:
        run: A run; decided in the main process.
        output: The folder; ``None`` to write nothing.
        overwrite: As in `write_merge`.
        max_shard_size: As in `write_merge`.
    """
    from clipmerge.output.record import merge_record

    if not run.is_main:
        return MergeResult(output, run.decided, None)
    if output is None:
        run.hash_inputs()
        run.plan = run.hashed_plan()
        record = merge_record(run.inputs, run.plan, seconds=run.seconds, command=run.command)
        run.finish()
    else:
        record = write_merge(run, output, overwrite=overwrite, max_shard_size=max_shard_size)
    return MergeResult(output, run.decided, record, record.warnings)


def write_merge(run: Run, output: Path, *, overwrite: bool = False, max_shard_size: int | None = None) -> MergeRecord:
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
    from clipmerge.output.folder import output_layout, write_weights
    from clipmerge.output.record import merge_record
    from clipmerge.output.side_files import write_side_files
    from clipmerge.publish.card import PICTURE, model_card
    from clipmerge.report.page import html_page

    with staged(output, overwrite=overwrite) as folder:
        with run.timed("apply"):
            tensors = merged_tensors(inputs, run.plan, run.tensors)
            count = ByteCount(run.progress, sum(tensor.nbytes for tensor in tensors))
            layout = output_layout(inputs, tensors, max_shard_size)
            files = write_weights(folder, tensors, layout, count, single=inputs.family.weights, hashed=run.hashed)
        with run.timed("write"):
            side_files, notes = write_side_files(folder, inputs, run.plan.dtype)
            for note in notes:
                run.progress.say(note)
            run.plan = run.plan.model_copy(update={"warnings": (*run.plan.warnings, *notes)})
            plan = run.hashed_plan()
            if run.tensors.coefficients:  # they cost minutes to learn: kept with what they made
                plan = write_plan_files(folder / PLAN_FOLDER / "plan.json", plan.with_tensors(run.tensors.to_file()))
        run.plan = plan
        # made when the stages are over, so that what is returned and what is written are one
        record = merge_record(
            inputs, plan, output=output, files={**files, **side_files}, seconds=run.seconds, command=run.command
        )
        (folder / "report.html").write_text(html_page(record), encoding="utf-8", errors=_NAMES)
        picture = _path_picture(record)
        if picture is not None:
            (folder / PICTURE).write_bytes(picture)
        card = model_card(record, repo_id=None, picture=picture is not None)
        (folder / "README.md").write_text(card, encoding="utf-8", errors=_NAMES)
        (folder / RECORD).write_text(record.to_text(), encoding="utf-8")
    run.finish()
    return record


def _path_picture(record: MergeRecord) -> bytes | None:
    """Draw the path, where one was measured: matplotlib takes longer to import than a small merge takes."""
    if record.path is None:
        return None
    from clipmerge.report.path_picture import path_png

    return path_png(record.path)
