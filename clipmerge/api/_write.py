"""Write the output folder of a merge: weights, side files, record, report and card."""

from __future__ import annotations

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.api._call import CallJournal
from clipmerge.api._pair import Pair
from clipmerge.checkpoint import Checkpoint
from clipmerge.distributed import is_main_process
from clipmerge.files.staging import PLAN_FOLDER, RECORD, stage_output
from clipmerge.planning import Rows, Tabular
from clipmerge.planning.plan import Plan
from clipmerge.planning.record import Record
from clipmerge.types import Names

if TYPE_CHECKING:
    from clipmerge.options import ApplyOptions, MergeOptions
    from clipmerge.planning.record import Verdict
    from clipmerge.publish.push import PushResult
    from clipmerge.types import Recommendation

# For bytes in paths that are not UTF-8.
_NAMES = "backslashreplace"


@dataclass(frozen=True, repr=False)
class MergeResult(Tabular):
    """Result of `merge` and `apply`. If several processes run, only the main one has a record.

    Attributes:
        path: The output folder; ``None`` if nothing was written.
        plan: The settings of each layer.
        record: The content of ``clipmerge.json``; ``None`` if another process wrote it.
        warnings: Warnings, one line each.
        published: The repository that the output was pushed to, if any.
    """

    path: Path | None
    plan: Plan
    record: Record | None
    warnings: Names = ()
    published: PushResult | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Advice whether to use the merge, with its accuracies; ``None`` if it was not judged."""
        if self.record is None or self.record.verdict is None:
            return None
        from clipmerge.report.notebook import shown

        return shown(self.record.verdict)

    @property
    def recommendation(self) -> Recommendation | None:
        """The verdict in a word, such as ``use`` or ``too-few-images``."""
        return self.verdict.recommendation if self.verdict else None

    def _rows(self) -> Rows:
        measured = self.record.measurements if self.record else {}
        return [row | measured.get(row["layer"], {}) for row in self.plan._rows()]

    def _repr_html_(self) -> str:
        """Show the verdict, the accuracies and the picture in a notebook."""
        if self.record is None:
            return super()._repr_html_()
        from clipmerge.report.notebook import merge_html

        return merge_html(self.record)

    def _caption(self) -> str:
        return self.verdict.sentence if self.verdict else f"{self.path}: {self.plan._caption()}"


def write_merged(
    pair: Pair,
    record: Record,
    output: Path | None,
    options: MergeOptions | ApplyOptions,
    journal: CallJournal,
) -> MergeResult:
    """Merge as the record's plan says, and write the output folder in the main process. Without
    ``output``, nothing is written, and only the record is completed.
    """
    pair.free_model()
    if not is_main_process():
        return MergeResult(output, record.plan, None)
    if output is None:
        plan = record.plan.replace(**pair.sources(hashed=True))
        record = _complete(record, pair, plan, journal)
    else:
        plan, record = _write_output(pair, record, output, options, journal)
    return MergeResult(output, plan, record, record.warnings)


def _write_output(
    pair: Pair,
    record: Record,
    output: Path,
    options: MergeOptions | ApplyOptions,
    journal: CallJournal,
) -> tuple[Plan, Record]:
    inputs, plan = pair.inputs, record.plan
    # threads hash the checkpoints during the imports and the merge below
    pool = ThreadPoolExecutor(max_workers=2)
    hashing = pool.map(Checkpoint.provenance, inputs.checkpoints)
    pool.shutdown(wait=False)
    from clipmerge.merging.folder import assign_shards, write_side_files, write_weights
    from clipmerge.merging.stream import merged_tensors
    from clipmerge.report.pages import CARD, REPORT, html_page, model_card

    with stage_output(output, overwrite=options.overwrite) as folder:
        journal.stage("merge")
        tensors = merged_tensors(inputs, plan)
        shards = assign_shards(inputs, tensors, options.max_shard_size)
        files = write_weights(folder, tensors, shards, journal)
        journal.stage("write")
        files |= write_side_files(folder, inputs, plan.dtype, journal)
        list(hashing)  # waits for the hashes, and raises the error of a thread
        plan = plan.replace(**pair.sources(hashed=True))
        if plan.coefficients:  # kept, because learning them took minutes
            written = plan.public.save(folder / PLAN_FOLDER / "plan.json")
            plan = plan.replace(tensors=written.tensors)
        record = _complete(record, pair, plan, journal, output=output.name, files=files)
        texts = {REPORT: html_page(record), CARD: model_card(record)}
        texts[RECORD] = json.dumps(record.as_json(), indent=2) + "\n"
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors=_NAMES)
    return plan, record


def _complete(
    record: Record, pair: Pair, plan: Plan, journal: CallJournal, **written: Any
) -> Record:
    """Add the written files, warnings, command and times to a record."""
    journal.stage("draw")
    for source in plan.checkpoints:
        journal.cut(source.source)
    return record.replace(
        family=pair.inputs.family.name,
        kind=pair.inputs.kind,
        plan=plan.public,
        warnings=tuple(map(journal.without_folders, journal.warnings)),
        command=journal.command,
        date=datetime.date.today().isoformat(),
        seconds=journal.seconds,
        **written,
    )
