"""The stages that measure a decided merge before anything is written; see
`docs/explanation/the-answer.md` and `docs/how-to/other-tasks.md`.

Every process of ``accelerate launch`` takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmerge.api._data import open_data
from clipmerge.checks import (
    check_answers,
    check_images,
    check_task,
    check_unseen,
    end_accuracy,
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
from clipmerge.planning.plan import Plan, named_tensors
from clipmerge.planning.verdict import Verdict
from clipmerge.progress import Progress, say_all
from clipmerge.report.text import text_of, texts_of

if TYPE_CHECKING:
    from clipmerge.evaluation.scorer import Images
    from clipmerge.request import Calibration, MergeRequest
    from clipmerge.run import Run


class _Unmeasurable(Exception):
    """There are no images to measure on."""


def add_verdict(run: Run, request: MergeRequest, ood: dict[str, Images]) -> None:
    """Judge a decided plan, if there are images."""
    if request.calibration.source is None or not request.calibration.held_back:
        return
    from clipmerge.evaluation.verdict import judge

    with run.timed("verdict"), warn_or_raise(run, request, "the verdict"):
        images = _test_images(run, request)
        prints = {f"`ood` {name}": Fingerprints(source) for name, source in ood.items()}
        for seen in filter(None, (run.measured_on, images)) if ood else ():
            data = {f"`data` {seen.source}": Fingerprints(seen)}
            say_all(run.progress, texts_of(note_shared(prints, data)))
        verdict = judge(
            run.inputs,
            broadcast_plan(run, request.calibration),
            images,
            request.calibration,
            ood=ood,
            max_loss=request.max_loss,
            chosen=bool(run.measurements and run.measurements.choice),
            progress=run.progress,
        )
        _check_ends(run, request, verdict, images, ood)
        run.verdict = verdict


def _check_ends(
    run: Run,
    request: MergeRequest,
    verdict: Verdict,
    images: LabelledImages | CaptionedImages,
    ood: dict[str, Images],
) -> None:
    """Check class names or captions again, by the answers that both ends gave on more images, and
    whether fine-tuning may have seen these.
    """
    zeroshot, *_ = models = list(verdict.target.models.values())
    best = max(models[1:-1], key=lambda estimate: estimate.value)
    ends = end_accuracy(images, zeroshot, best, request.calibration.templates)
    known = {finding.kind for finding in run.findings}
    new = [finding for finding in check_answers(ends) if finding.kind not in known]
    for source in verdict.ood:
        new += check_task(source.name, ood[source.name], list(source.models.values()))
    if not isinstance(images, CaptionedImages):
        new += check_unseen(ends)
    for finding in new:
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


def _test_images(run: Run, request: MergeRequest) -> LabelledImages | CaptionedImages:
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
    """Find the images of `ood`, which keep their own class names and templates."""
    tasks = {
        name: _load_task(source, max_images=max_images, seed=seed) for name, source in named.items()
    }
    for task in tasks.values():
        say_all(progress, texts_of(task.notes))
    return tasks


def _load_task(source: Any, *, max_images: int | None, seed: int) -> Images:
    from clipmerge.images.dataset import open_images

    images = open_images(source, whole=max_images is None, max_images=max_images, seed=seed)
    if isinstance(images, LabelledImages):
        images.require_classes()
    if max_images is None or max_images >= len(images):
        return images
    return images.sample(max_images, seed)


def open_tasks(run: Run, request: MergeRequest) -> dict[str, Images]:
    """Find the images of `ood`, and look at some, before anything is learned."""
    if not request.ood:  # what follows imports torch
        return {}
    tasks = load_tasks(
        request.ood, run.progress, max_images=request.calibration.images, seed=request.seed
    )
    doubts = [finding for task in tasks.values() for finding in check_images(task)]
    say_all(run.progress, texts_of(raise_errors(doubts, allow=request.allow)))
    return tasks
