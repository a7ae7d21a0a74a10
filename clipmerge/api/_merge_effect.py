"""The stages that measure a decided merge before anything is written; see
`docs/explanation/the-answer.md` and `docs/how-to/other-tasks.md`.

Every process of ``accelerate launch`` takes part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.api._data import open_data
from clipmerge.checks import (
    check_answers,
    check_images,
    check_task,
    check_unseen,
    end_accuracy,
    headline_of,
    raise_errors,
)
from clipmerge.distributed import broadcast_, distributed_context, peer_errors
from clipmerge.errors import CheckpointError
from clipmerge.files.finite import NotFiniteError
from clipmerge.finding import Finding
from clipmerge.images.fingerprints import Fingerprints, note_shared
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import MAX_HELD_BACK, copies_note, without_copies
from clipmerge.images.store import Pixels
from clipmerge.planning.measurements import takes_learned
from clipmerge.planning.merge_effect import MergeEffect
from clipmerge.planning.other_tasks import Score
from clipmerge.planning.plan import Plan, named_tensors
from clipmerge.progress import Progress, say_all
from clipmerge.report.text import text_of, texts_of

if TYPE_CHECKING:
    from clipmerge.evaluation.scorer import Images
    from clipmerge.request import Calibration, MergeRequest
    from clipmerge.run import Run


class _Unmeasurable(Exception):
    """There are no images to measure on."""


def add_verdict(run: Run, request: MergeRequest) -> None:
    """Measure the effect of a decided plan, if there are images, and store it in the plan."""
    if request.calibration.source is None or not request.calibration.held_back:
        return
    from clipmerge.evaluation.effect import measure_effect

    with run.timed("effect"), warn_or_raise(run, request, "the effect of the merge"):
        measured = run.measurements
        images = _effect_images(run, request)
        effect = measure_effect(
            run.inputs,
            broadcast_plan(run, request.calibration),
            images,
            request.calibration,
            max_loss=request.max_loss,
            choosers=run.choosers,
            learned=bool(measured and takes_learned(measured.trace, measured.choice)),
            choice=measured.choice if measured else None,
            progress=run.progress,
        )
        _check_ends(run, request, effect, images)
        if doubtful := headline_of(run.findings, request.allow):
            effect = effect.with_advice(*doubtful)
        run.verdict = effect
        if isinstance(images, CaptionedImages):
            recall = text_of(images.recall_note(effect.source))
            run.warnings.append(recall)
            run.progress.say(recall)
        for warning in effect.warnings:
            run.warnings.append(text_of(warning))
            if not getattr(run.progress, "shows_verdict", False):
                run.progress.say(text_of(warning))


def _check_ends(
    run: Run,
    request: MergeRequest,
    effect: MergeEffect,
    images: LabelledImages | CaptionedImages,
) -> None:
    """Check class names or captions again, by the answers that both ends gave on more images, and
    whether fine-tuning may have seen these.
    """
    ends = end_accuracy(
        images,
        effect.zeroshot.clean,
        effect.finetuned[effect.reference].clean,
        request.calibration.templates,
    )
    known = {finding.kind for finding in run.findings}
    new = [finding for finding in check_answers(ends) if finding.kind not in known]
    doubts = raise_errors(new, allow=request.allow)
    run.findings += doubts
    seen = [] if isinstance(images, CaptionedImages) else check_unseen(ends)
    for finding in (*doubts, *seen):
        run.warnings.append(text_of(finding))
        run.progress.say(text_of(finding))


@contextmanager
def warn_or_raise(run: Run, request: MergeRequest, what: str) -> Iterator[None]:
    """Warn that there are no images to measure on, which is a warning.

    Models that cannot be measured are also an error where the recipe measured nothing either:
    the images would have been given for nothing.
    """
    try:
        yield
    except NotFiniteError:
        raise
    except (CheckpointError, _Unmeasurable) as error:
        if isinstance(error, CheckpointError) and not request.recipe.measure:
            raise CheckpointError(
                f"{error} ({what} cannot be measured, so nothing was written; leave out the images"
                " to merge without measuring)"
            ) from None
        warning = Finding.of("unmeasurable", what=what, why=str(error))
        run.warnings.append(text_of(warning))
        run.progress.say(text_of(warning))


def _effect_images(run: Run, request: MergeRequest) -> LabelledImages | CaptionedImages:
    """Images that nothing was learned from; all images if the decision needed none."""
    images = run.held_back
    if request.recipe.measure:
        if images is None:
            raise _Unmeasurable("there are too few images to hold any back")
    else:
        source = open_data(request, run.cache, run.progress)
        source.require_classes()
        sample = source.sample(min(MAX_HELD_BACK, request.calibration.images), request.seed)
        images = without_copies(sample)
        if len(images) < len(sample):
            note = copies_note(source.source, len(sample) - len(images))
            run.progress.say(text_of(note))
        if request.ood:
            run.measured_on = images
    if isinstance(images.store, Pixels):
        raise _Unmeasurable(
            f"{images.source} holds preprocessed pixels, but measuring robustness needs images"
            " before preprocessing; give the data set without its transform"
        )
    return images


def broadcast_plan(run: Run, calibration: Calibration) -> Plan:
    """Give every process the main one's plan.

    Its tensors, as large as the model, are those that every process has learned; others are sent
    one by one: pickled with the plan, they would lie several times in the memory of every card.
    """
    import torch
    from accelerate.utils import broadcast_object_list

    # accelerate alone would let the processes join on a device of its own choice
    context = distributed_context(calibration.device)
    plan = run.plan
    if plan and context.world_size == 1:
        return plan
    tensors = dict(plan.loaded_tensors) if plan else {}
    coefficients = {name: tensor.float().cpu().numpy() for name, tensor in run.learned.items()}
    learned = named_tensors({}, coefficients)
    listed = [
        (
            name,
            tensor.shape,
            tensor.dtype,
            name in learned and np.array_equal(tensor, learned[name]),
        )
        for name, tensor in tensors.items()
    ]
    sent: list[Any] = [plan and plan.with_tensors({}), listed]
    with peer_errors():
        broadcast_object_list(sent)
    for name, shape, dtype, is_learned in sent[1]:
        if is_learned:
            tensors[name] = learned[name]
            continue
        if name not in tensors:
            tensors[name] = np.empty(shape, dtype)
        broadcast_(context, torch.from_numpy(tensors[name]))
    decided: Plan = sent[0]
    return decided.with_tensors(tensors)


def load_tasks(
    named: Mapping[str, Any], progress: Progress, *, max_images: int | None = None, seed: int = 0
) -> dict[str, Images]:
    """Find the images of tasks that the model was not fine-tuned for."""
    from clipmerge.evaluation.other_tasks import load_task

    tasks = {
        name: load_task(source, max_images=max_images, seed=seed) for name, source in named.items()
    }
    for task in tasks.values():
        say_all(progress, texts_of(task.notes))
    return tasks


def open_tasks(run: Run, request: MergeRequest) -> dict[str, Images]:
    """Find the images of the other tasks, and look at some, before anything is learned."""
    if not request.ood:  # what follows imports torch
        return {}
    tasks = load_tasks(
        request.ood, run.progress, max_images=request.calibration.images, seed=request.seed
    )
    doubts = [finding for task in tasks.values() for finding in check_images(task)]
    say_all(run.progress, texts_of(raise_errors(doubts, allow=request.allow)))
    return tasks


def add_other_task_scores(run: Run, request: MergeRequest, tasks: dict[str, Images]) -> None:
    """Measure a decided plan on other tasks, and keep the scores in the plan."""
    if not tasks:
        return
    from clipmerge.evaluation.conclusion import weigh_other_tasks
    from clipmerge.evaluation.other_tasks import measure_other_tasks

    with run.timed("other_tasks"), warn_or_raise(run, request, "the tasks of `ood`"):
        prints = {f"`ood` {name}": Fingerprints(task) for name, task in tasks.items()}
        for images in filter(None, (run.measured_on, run.held_back)):
            data = {f"`data` {images.source}": Fingerprints(images)}
            say_all(run.progress, texts_of(note_shared(prints, data)))
        scores = measure_other_tasks(
            run.inputs,
            broadcast_plan(run, request.calibration),
            tasks,
            request.calibration,
            run.progress,
        )
        models = {
            task_score.name: [task_score.zeroshot, *task_score.finetuned, task_score.merged]
            for task_score in scores
        }
        doubts = check_task_scores(tasks, models, run.progress, request.allow)
        run.warnings += texts_of(chain.from_iterable(doubts.values()))
        run.other_tasks = tuple(scores)
        effect = run.verdict
        counted = [score for score in scores if score.name not in doubts]
        weighed = effect and weigh_other_tasks(
            effect.recommendation,
            counted,
            request.max_loss,
            on_experience=effect.rests_on_experience,
        )
        if effect and weighed:
            run.verdict = effect.with_advice(*weighed)


def check_task_scores(
    tasks: Mapping[str, Images],
    scores: Mapping[str, Sequence[Score]],
    progress: Progress,
    allow: Collection[str],
) -> dict[str, list[Finding]]:
    """Doubts about the names of tasks, by the scores of all models on each; they are told."""
    from clipmerge.evaluation.other_tasks import accuracy_or_recall

    doubts_by_task = {}
    for name, task in tasks.items():
        accuracies = [accuracy_or_recall(score, len(task)) for score in scores[name]]
        findings = raise_errors(check_task(name, task, accuracies), allow=allow)
        if findings := [finding for finding in findings if finding.kind not in allow]:
            doubts_by_task[name] = findings
        say_all(progress, texts_of(findings))
    return doubts_by_task
