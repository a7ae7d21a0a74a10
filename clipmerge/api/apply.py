"""`clipmerge apply`: write the merge that a plan describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.api._call import CallJournal
from clipmerge.api._pair import CheckpointLike, Pair, as_addresses, list_checkpoints
from clipmerge.api._write import MergeResult, write_merged
from clipmerge.checkpoint import Checkpoint, align_checkpoints, open_checkpoints
from clipmerge.checks import check_models, raise_unless_allowed
from clipmerge.distributed import is_main_process
from clipmerge.errors import UsageError, shorten
from clipmerge.evaluation.zero_shot_head import add_zeroshot_head, lacks_zeroshot_head
from clipmerge.files import local_path, source_exists
from clipmerge.files.staging import check_output
from clipmerge.methods import Task
from clipmerge.options import ApplyOptions
from clipmerge.planning.plan import Plan, SourceRecord
from clipmerge.planning.record import Record
from clipmerge.progress import Journal, Progress
from clipmerge.types import StrPath


def apply(
    plan: Plan | StrPath,
    *,
    output: StrPath,
    zeroshot: CheckpointLike | None = None,
    finetuned: CheckpointLike | Sequence[CheckpointLike] | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> MergeResult:
    """Write the merge that a plan describes, with the same bytes as `merge`.

    Args:
        plan: A plan, or its JSON file.
        output: Folder to write, completely or not at all.
        zeroshot: theta_0, if it is not where the plan says. Its files must have the same bytes, but
            may have other names.
        finetuned: theta_1 ... theta_K, likewise. Give both ``zeroshot`` and ``finetuned``, or
            neither.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.ApplyOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        UsageError: If the plan does not fit the checkpoints, or was made for other checkpoints.
        OutputError: If the folder exists or cannot be written.
        ClipmergeError: If another argument cannot be used.
    """
    opts = ApplyOptions.of(options)
    given = {"zeroshot": zeroshot, "finetuned": finetuned}
    journal = CallJournal(progress, "apply", plan, **given, **options, output=output)
    if (zeroshot is None) != (finetuned is None):
        raise UsageError(
            "zeroshot and finetuned: give both, or neither if they are at the places named in the"
            " plan"
        )
    opened = plan if isinstance(plan, Plan) else Plan.load(local_path(plan))
    name = str(opened.files[0]) if opened.files else "the plan"
    checkpoints: list[CheckpointLike]
    if zeroshot is None:
        checkpoints = [_locate_checkpoint(name, opened, record) for record in opened.checkpoints]
    else:
        checkpoints = list_checkpoints(zeroshot, finetuned)
    target = local_path(output)
    if is_main_process():
        check_output(target, overwrite=opts.overwrite, read=(*opened.files, *checkpoints))
    with as_addresses(checkpoints, processor) as sources:
        pair = open_planned(opened, name, sources, opts, journal)
        return write_merged(pair, Record(plan=opened), target, opts, journal)


def open_planned(
    plan: Plan, name: str, sources: Sequence[str], options: ApplyOptions, journal: Journal
) -> Pair:
    """Open a plan's checkpoints, and check that the plan was made for them."""
    records = plan.checkpoints
    if len(sources) != len(records):
        raise UsageError(
            f"{name}: is for {len(records) - 1} fine-tuned checkpoints, but {len(sources) - 1} were"
            " given"
        )
    models = [options.model or record.model for record in records]
    zeroshot, *finetuned = open_checkpoints(sources, models)
    inputs = align_checkpoints(zeroshot, finetuned, missing=plan.missing, dtype=plan.dtype)
    if plan.head and lacks_zeroshot_head(inputs):
        inputs = add_zeroshot_head(inputs, plan.head)
    for record, checkpoint in zip(records, (zeroshot, *finetuned), strict=True):
        _check_hashes(name, record, checkpoint, journal)
    task = Task(inputs)
    journal.warn(*plan.check(task.layers, task.shapes), *inputs.notes)
    raise_unless_allowed(check_models(inputs), options.allow, journal)
    left_out = [layer for layer in task.layers if layer not in plan.layers]
    if left_out:
        journal.warn(f"{name}: layers without a setting stay zero-shot: {shorten(left_out, 3)}")
    return Pair(inputs, head=plan.head)


def _locate_checkpoint(name: str, plan: Plan, record: SourceRecord) -> str:
    """Return the place of a checkpoint: on the Hub, in the working folder, or beside the plan."""
    if record.revision or record.source.startswith("hf://"):
        return record.pinned
    beside = [str(file.parent / record.source) for file in plan.files[:1]]
    for place in (record.source, *beside):
        if source_exists(place):
            return place
    raise UsageError(
        f"{name}: {record.source} is not in the working folder or beside the plan; apply the plan"
        " where it was made, write the absolute path into it, or in Python give zeroshot= and"
        " finetuned="
    )


def _check_hashes(
    name: str, record: SourceRecord, checkpoint: Checkpoint, journal: Journal
) -> None:
    """Raise an error if a checkpoint's hashes differ from the plan's; warn if the plan has none."""
    if not any(record.files.values()):
        journal.warn(f"{name} has no sha256 of {record.source}: used unchecked")
        return
    hashes = checkpoint.provenance()["files"]
    if set(record.files.values()) != set(hashes.values()):  # the files may have other names now
        raise UsageError(
            f"{name}: {record.source} is not the checkpoint that the plan was made for, because its"
            " sha256 differs; plan again with `clipmerge plan`"
        )
