"""A merge, or every point of a sweep, measured on tasks the model was not fine-tuned for; see `docs/keep.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipmerge.api._merge_effect import settings_for, shared_plan
from clipmerge.errors import CheckpointError, VerdictError
from clipmerge.progress import say_all

if TYPE_CHECKING:
    from clipmerge.checkpoint import Inputs
    from clipmerge.evaluation.other_tasks import Task
    from clipmerge.evaluation.points import Point
    from clipmerge.progress import Progress
    from clipmerge.request import MergeRequest, Run, SweepRequest


def load_tasks(
    named: Mapping[str, Any], progress: Progress, *, most: int | None = None, seed: int = 0
) -> dict[str, Task]:
    """Find the images of the tasks."""
    from clipmerge.evaluation.other_tasks import load_task

    tasks = {name: load_task(source, most=most, seed=seed) for name, source in named.items()}
    for task in tasks.values():
        say_all(progress, task.notes)
    return tasks


def add_other_task_scores(run: Run, request: MergeRequest) -> None:
    """Measure a decided plan on the tasks that were named, and keep the scores in the plan.

    Every process of ``accelerate launch`` takes part.
    """
    if not request.keep:
        return
    from clipmerge.evaluation.other_tasks import measure_other_tasks
    from clipmerge.images.overlap import Fingerprints, note_shared

    with run.timed("kept"):
        tasks = load_tasks(request.keep, run.progress, most=request.calibration.images, seed=request.seed)
        prints = {f"--keep {name}": Fingerprints(task) for name, task in tasks.items()}
        for images in (run.measured_on, run.held_back):
            if images is not None:
                say_all(run.progress, note_shared(prints, {f"--data {images.source}": Fingerprints(images)}))
        settings = replace(settings_for(request.calibration), templates=())  # a task has its own
        plan, tensors = shared_plan(run.plan, run.tensors)
        try:
            kept = measure_other_tasks(run.inputs, plan, tensors, tasks, settings, run.progress)
        except CheckpointError as error:
            text = f"the tasks of --keep could not be measured: {error}"
            if request.strict:
                raise VerdictError(f"{text}; nothing was written (--strict)") from None
            run.warn(text)
            return
    if run.plan is not None:
        run.plan = run.plan.model_copy(update={"kept": kept})


def score_other_tasks(
    request: SweepRequest,
    record: dict[str, Any],
    inputs: Inputs,
    points: Sequence[Point],
    tasks: dict[str, Task],
    progress: Progress,
) -> None:
    """Score every point on every task, and enter the scores."""
    if not tasks:
        return
    from clipmerge.evaluation.other_tasks import facts_of, score_tasks

    progress.stage("kept")
    moves = [point.move for point in points]
    settings = replace(settings_for(request.calibration, request.dtype), templates=())  # a task has its own
    scores = score_tasks(inputs, moves, tasks, settings, progress)
    record["kept"] = [facts_of(name, task) for name, task in tasks.items()]
    rows = [*enumerate(record["curve"]), *((row["point"], row) for row in (*record["recipes"], *record["points"]))]
    for point, row in rows:
        row["kept"] = {name: of[point].model_dump(mode="json", exclude_none=True) for name, of in scores.items()}
