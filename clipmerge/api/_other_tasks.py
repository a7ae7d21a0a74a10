"""The stage that measures a decided merge on tasks that the model was not fine-tuned for; see `docs/keep.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipmerge.api._merge_effect import settings_for, shared_plan
from clipmerge.errors import CheckpointError, VerdictError

if TYPE_CHECKING:
    from clipmerge.evaluation.other_tasks import Task
    from clipmerge.progress import Progress
    from clipmerge.request import MergeRequest, Run


def load_tasks(
    named: Mapping[str, Any], progress: Progress, *, most: int | None = None, seed: int = 0
) -> dict[str, Task]:
    """Find the images of the tasks.

    Args:
        named: Sources by name.
        progress: Receiver of progress reports.
        most: Images per task at most; ``None`` for all.
        seed: Seed of the samples.

    Raises:
        DataError: If images cannot be used.
        HubError: If the Hub refuses or cannot be reached.
    """
    from clipmerge.evaluation.other_tasks import load_task

    tasks = {name: load_task(source, most=most, seed=seed) for name, source in named.items()}
    for task in tasks.values():
        for note in task.notes:
            progress.say(note)
    return tasks


def add_other_task_scores(run: Run, request: MergeRequest) -> None:
    """Measure a decided plan on the tasks that were named, and keep the scores in the plan.

    Every process of ``accelerate launch`` takes part.

    Args:
        run: The run; its plan is decided in the main process.
        request: The request.

    Raises:
        DataError: If images cannot be used.
        VerdictError: If the checkpoints cannot be measured, and the request is strict.
    """
    if not request.keep:
        return
    from clipmerge.evaluation.other_tasks import measure_other_tasks

    with run.timed("kept"):
        tasks = load_tasks(request.keep, run.progress, most=request.calibration.images, seed=request.seed)
        for note in _shared_with_data(tasks, run, request):
            run.progress.say(note)
        settings = replace(settings_for(request.calibration), templates=())  # a task has its own
        plan, tensors = shared_plan(run.plan, run.tensors)
        try:
            kept = measure_other_tasks(run.inputs, plan, tensors, tasks, settings, run.progress)
        except CheckpointError as error:
            text = f"the tasks of --keep could not be measured: {error}"
            if request.strict:
                raise VerdictError(f"{text}; nothing was written (--strict)") from None
            run.progress.say(text)
            if run.plan is not None:
                run.plan = run.plan.model_copy(update={"warnings": (*run.plan.warnings, text)})
            return
    if run.plan is not None:
        run.plan = run.plan.model_copy(update={"kept": kept})


def _shared_with_data(tasks: Mapping[str, Task], run: Run, request: MergeRequest) -> list[str]:
    """Note images of the tasks that are also among those that the merge was decided and judged on."""
    from clipmerge.images.overlap import Fingerprints, note_shared

    prints = {f"--keep {name}": Fingerprints(task) for name, task in tasks.items()}
    used = [images for images in (run.measured_on, run.held_back) if images is not None]
    notes: list[str] = []
    for images in used:
        notes += note_shared(prints, {f"--data {images.source}": Fingerprints(images)})
    return notes
