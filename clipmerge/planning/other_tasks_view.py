"""Scores on tasks that a model was not fine-tuned for, in readable form: the same for page, card and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clipmerge.planning.other_tasks import OtherTaskScores, measures_of


@dataclass(frozen=True)
class OtherTaskRow:
    """One number of one task, for all models, in per cent or points."""

    task: str  # empty in all but the first row of a task
    cells: tuple[str, ...]  # the name of the number, such as ``image to text R@5``, and its values, as in `HEADS`


#: Headings of the columns after the task.
HEADS = ("measure", "zero-shot", "fine-tuned", "merged", "change", "back")
#: Explanation of the last two columns.
EXPLANATION = (
    "Tasks that the model was not fine-tuned for. In points: the change by fine-tuning against zero-shot, and what the "
    "merge gives back against fine-tuned."
)


def other_task_rows(kept: Sequence[OtherTaskScores]) -> tuple[OtherTaskRow, ...]:
    """Lay out the tasks, one row per number."""
    rows = []
    for task in kept:
        finetuned = [measures_of(score) for score in task.finetuned]
        merged = measures_of(task.merged)
        for index, (measure, zeroshot) in enumerate(measures_of(task.zeroshot).items()):
            middle = fmean(score[measure] for score in finetuned)
            values = [f"{100 * value:.1f}" for value in (zeroshot, middle, merged[measure])]
            changes = [f"{100 * change:+.1f}" for change in (middle - zeroshot, merged[measure] - middle)]
            rows.append(OtherTaskRow("" if index else task.name, (measure, *values, *changes)))
    return tuple(rows)


def other_task_facts(kept: Sequence[OtherTaskScores]) -> str:
    """Say how many images each task has, in one sentence."""
    counts = [
        f"{task.name}: {task.images:,} images"
        + (f" with {task.captions:,} captions" if task.captions else f" of {task.classes:,} classes")
        for task in kept
    ]
    return "; ".join(counts) + "."
