"""The stage that measures the effect of a decided merge before anything is written; see `docs/verdict.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipmerge.errors import CheckpointError, VerdictError
from clipmerge.images.held_back import MOST, copies_note, without_copies
from clipmerge.images.store import Pixels
from clipmerge.planning.plan import Plan
from clipmerge.planning.tensors import PlanTensors
from clipmerge.progress import say_all

if TYPE_CHECKING:
    from clipmerge.evaluation.settings import EvalSettings
    from clipmerge.images.dataset import LabelledImages
    from clipmerge.options import OutputDtype
    from clipmerge.planning.merge_effect import MergeEffect
    from clipmerge.request import Calibration, MergeRequest, Run


class _Unmeasurable(Exception):
    """There are no images to measure on."""


def add_verdict(run: Run, request: MergeRequest) -> None:
    """Measure the effect of a decided plan, if there are images, and store it in the plan.

    Every process of ``accelerate launch`` takes part.
    """
    if not request.calibration.holds_back:
        return
    with run.timed("bought"):
        try:
            bought = _measured(run, request)
        except (CheckpointError, _Unmeasurable) as error:
            text = f"what the merge bought could not be measured: {error}"
            if request.strict:
                raise VerdictError(f"{text}; nothing was written, because --strict needs its accuracy") from None
            run.warn(text)
            return
    if request.strict and bought.warnings:
        raise VerdictError(f"{bought.warnings[0]}; nothing was written (--strict)")
    if run.plan is not None:
        run.plan = run.plan.model_copy(update={"bought": bought})
    for warning in bought.warnings:
        run.warn(warning, aloud=not getattr(run.progress, "shows_verdict", False))


def _held_back(run: Run, request: MergeRequest) -> LabelledImages:
    """Images that the decision did not see; all images if it needed none."""
    if request.recipe.measure:
        if run.held_back is None:
            raise _Unmeasurable("there are too few images to hold any back")
        return run.held_back
    from clipmerge.images.dataset import load_images

    calibration = request.calibration
    count = min(MOST, calibration.images)
    source = load_images(
        calibration.source, calibration.classes, columns=calibration.columns, most=count, seed=request.seed
    )
    say_all(run.progress, source.notes)
    source.require_classes()
    sample = source.sample(count, request.seed)
    distinct = without_copies(sample)
    if len(distinct) < len(sample):
        run.progress.say(copies_note(source.source, len(sample) - len(distinct)))
    return distinct


def _measured(run: Run, request: MergeRequest) -> MergeEffect:
    from clipmerge.evaluation.verdict import measure_effect

    settings = settings_for(request.calibration)
    plan, tensors = shared_plan(run.plan, run.tensors)
    images = _held_back(run, request)
    if isinstance(images.store, Pixels):
        raise _Unmeasurable(
            f"{images.source} holds preprocessed pixels, but the robustness probe needs images before preprocessing; "
            "give the data set without its transform"
        )
    return measure_effect(run.inputs, plan, tensors, images, settings, max_loss=request.max_loss, progress=run.progress)


def settings_for(calibration: Calibration, dtype: OutputDtype = "keep") -> EvalSettings:
    """The device, templates and batches that a request asks for."""
    from clipmerge.distributed import accelerator_for
    from clipmerge.evaluation.settings import EvalSettings

    accelerator = accelerator_for(calibration.device)
    return EvalSettings(
        accelerator, calibration.templates, calibration.batch_size, calibration.images_at_once, dtype=dtype
    )


def shared_plan(plan: Plan | None, tensors: PlanTensors) -> tuple[Plan, PlanTensors]:
    """Give every process the main one's plan, without its measurements, which are as large as the model."""
    from accelerate.utils import broadcast_object_list

    decided: list[Any] = [plan and plan.model_copy(update={"measurements": None}), tensors]
    broadcast_object_list(decided)
    return decided[0], decided[1]
