"""The measuring stage: move images and model to the device, then run the recipe's measure."""

from __future__ import annotations

import torch
from torch import Tensor

from clipmerge.api._data import open_data
from clipmerge.distributed import device_work, distributed_context, peer_errors
from clipmerge.errors import counted
from clipmerge.images.batches import batch_size_for, read_batches
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.prompts import class_prompts, templates_for
from clipmerge.images.split import MAX_HELD_BACK, Samples, copies_note, sample_and_hold_back
from clipmerge.learning.interpolate import Path
from clipmerge.learning.learn import held_out_positions
from clipmerge.learning.objective import Batch, Objective
from clipmerge.learning.resume import LearningState, state_file
from clipmerge.models.building import build_model
from clipmerge.models.captions import caption_notes
from clipmerge.models.classifier import Captions, Prompts
from clipmerge.planning.measurements import CalibrationRecord, Measurements, Statistic
from clipmerge.planning.recipe import Recipe
from clipmerge.plugins import load_plugin, needs_score, plugin_options
from clipmerge.progress import Pace
from clipmerge.report.text import text_of
from clipmerge.request import MergeRequest
from clipmerge.run import Run
from clipmerge.types import Shape


@device_work()
def measure(run: Run, request: MergeRequest) -> tuple[Measurements, CalibrationRecord]:
    """Run the measure of a recipe that has one."""
    recipe = request.recipe
    assert recipe.measure is not None
    objective, state, record = objective_for(run, request)
    with state.underway():
        measurements: Measurements = load_plugin("measures", recipe.measure["name"])(
            objective, **recipe.measure_options
        )
    run.cleanups.append(state.remove)
    run.when_stopped.append(state.tell_stopped)
    with peer_errors():
        # no process leaves while another still gathers
        objective.context.state.wait_for_everyone()
    return _add_relative_change(measurements, objective), record


def ranks_by_gradients(recipe: Recipe) -> bool:
    """Whether the recipe's method has a mask that ranks entries by their gradients."""
    options = plugin_options("methods", recipe.method["name"]) | recipe.method
    mask = str(options.get("mask") or "")
    return bool(mask) and needs_score(mask)


def objective_for(
    run: Run, request: MergeRequest
) -> tuple[Objective, LearningState, CalibrationRecord]:
    """Move images and model to the device."""
    calibration = request.calibration
    source = open_data(request, run.cache, run.progress)
    source.require_classes()
    samples = sample_and_hold_back(
        source, calibration.images, request.seed, share=calibration.held_back
    )
    drawn = samples.decide
    run.held_back = samples.held_back
    if isinstance(drawn, CaptionedImages):
        # a caption is the name and the only prompt of a class of its own
        images = drawn.with_one_caption(request.seed)
        contrastive = True
        templates = images.templates
    else:
        images = drawn
        contrastive = False
        templates = templates_for(calibration.templates, images.templates)
    choosers = _choosing_images(run, request, samples, images.labels)
    names = images.class_names
    if isinstance(choosers, CaptionedImages):
        choosers = choosers.with_one_caption(request.seed, known=names)
        names = choosers.class_names
    if samples.copies:
        run.progress.say(text_of(copies_note(source.source, samples.copies)))
    if request.ood:
        run.measured_on = images
    context = distributed_context(calibration.device)
    batch_size = batch_size_for(len(images), calibration.batch_size, context.world_size)
    model = build_model(run.inputs)

    def read(images: LabelledImages) -> Batch:  # every process reads all of them
        pieces = read_batches(images, batch_size, model.pixels)
        return Batch(0, torch.cat([piece.pixels for piece in pieces]), torch.tensor(images.labels))

    path = Path(model, run.inputs, context.device)
    kind = Captions if contrastive else Prompts
    prompts = class_prompts(names, templates)
    classifier = kind(model, prompts, len(templates), context.device, moves=path.text_changes)
    seen = read(images)
    asked = [
        run.inputs.zeroshot.provenance(),
        [checkpoint.provenance() for checkpoint in run.inputs.finetuned],
        request.recipe.measure,
        request.seed,
        [images.source, images.revision, images.labels, prompts],
        float(seen.pixels.double().sum()),
        batch_size,
        context.device.type,
    ]
    state = LearningState(state_file(asked), context, run.progress.say)
    steps = request.recipe.measure_options["steps"] if request.recipe.learns else None
    pace = Pace(run.progress, context.device, *cost_sentence(len(images), steps))
    objective = Objective(
        path,
        classifier,
        seen,
        context,
        batch_size=batch_size,
        val=None if choosers is None else read(choosers),
        seed=request.seed,
        wants_gradients=ranks_by_gradients(request.recipe),
        state=state,
        progress=pace.advance,
        say=run.progress.say,
    )
    if contrastive:
        for note in caption_notes(images.source, model, images.class_names):
            objective.note(note)
    record = CalibrationRecord(
        source=images.source,
        revision=images.revision,
        images=len(images),
        requested=calibration.images if run.held_back else None,
        duplicates=samples.copies,
        classes=len(images.class_names),
        classes_with_images=len(set(images.labels)),
        batch_size=batch_size,
        templates=templates,
        seed=request.seed,
        noise=_noise_device(request.recipe, context.device),
    )
    return objective, state, record


def _choosing_images(
    run: Run,
    request: MergeRequest,
    samples: Samples[LabelledImages | CaptionedImages],
    labels: Shape,
) -> LabelledImages | CaptionedImages | None:
    """Images that choose how far to go, where the answer has few; ``None`` where it has enough.

    A few dozen images choose by luck. So the images that learning holds out and those of the answer
    do both jobs, and `run.held_back` gets both. Captions that learning holds out may also belong to
    images that it sees, so these choose and do not judge. ``labels`` are those of the decision.
    """
    share = request.recipe.measure_options.get("held_back", 0.0)  # some learn from all images
    judges = samples.held_back_at
    held_out = held_out_positions(labels, share, request.seed)
    if not held_out or not 0 < len(judges) < MAX_HELD_BACK:
        return None
    choosers = [*judges, *(samples.deciding[at] for at in held_out)]
    if samples.images.labels_are_classes:
        judges = choosers[:MAX_HELD_BACK]
        run.held_back = samples.images.subset(judges)
    run.choosers = len(judges)
    return samples.images.subset(choosers)


def _noise_device(recipe: Recipe, device: torch.device) -> str | None:
    """Kind of device that draws the noise of strong augmentation; ``None`` for the CPU or none."""
    options = recipe.measure_options
    draws = bool(options.get("distill_weight")) and "noise" in options.get("augmentations", ())
    return device.type if draws and device.type != "cpu" else None


def _add_relative_change(measurements: Measurements, objective: Objective) -> Measurements:
    """Add ``change``, ||task_vector_l|| / ||theta_0,l||, to the statistics."""
    values = {}
    path = objective.path
    for layer, names in path.layers.items():
        start = _norm([path.theta_0(name) for name in names])
        values[layer] = _norm([path.delta(name) for name in names]) / max(start, 1e-30)
    change = Statistic(
        name="change",
        values=values,
        title="relative change",
        about=(
            "length of the layer's task vector (fine-tuned minus zero-shot) divided by the length"
            " of its zero-shot weights."
        ),
    )
    return measurements.replace(
        statistics=(*measurements.statistics, change),
        notes=(*measurements.notes, *objective.notes),
    )


def _norm(tensors: list[Tensor]) -> float:
    return float(
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
    )


def cost_sentence(images: int, steps: int | None = None) -> tuple[str, str]:
    """What is said before and after the time on a CPU, of a measure that learns in steps or of
    another one.

    Example:
        >>> cost_sentence(1)
        ('measuring on 1 image takes about', ' on this CPU (fewer `images` cost less)')
    """
    # its steps take as many images, however many there are
    cheaper = (
        f"a merge with `set=measure.steps={steps // 2}` takes less"
        if steps
        else "fewer `images` cost less"
    )
    verb = "learning" if steps else "measuring"
    return (
        f"{verb} on {counted(images, 'image', 'images')} takes about",
        f" on this CPU ({cheaper})",
    )
