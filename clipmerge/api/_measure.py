"""Run a recipe's measure: images and model go to the device, and come back as numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clipmerge.api._images import Images
from clipmerge.checkpoint import Inputs
from clipmerge.distributed import DistributedContext, exact_float32
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.classes import class_prompts, templates_for
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import Split
from clipmerge.learning.interpolate import Path
from clipmerge.learning.objective import Batch, HeldOut, Objective
from clipmerge.learning.resume import LearningState, state_file
from clipmerge.models.building import build_model
from clipmerge.models.classifier import Captions, Prompts, classifier_for
from clipmerge.models.passes import own_settings
from clipmerge.options import DecisionOptions
from clipmerge.planning.measurements import CalibrationRecord, Measurements, Statistic
from clipmerge.planning.recipe import Recipe
from clipmerge.plugins import load_plugin, needs_score, plugin_options
from clipmerge.progress import Progress

#: The measurements, the images that they were taken on, and the saved state of learning, which is
#: removed once the result is written.
Found = tuple[Measurements, CalibrationRecord, LearningState]


@exact_float32()
def measure(
    inputs: Inputs,
    recipe: Recipe,
    split: Split[Images],
    options: DecisionOptions,
    progress: Progress,
) -> Found:
    """Run the measure of a recipe that has one."""
    assert recipe.measure is not None
    progress.stage("learn" if recipe.learns else "measure")
    with own_settings():
        objective, state, record = _objective_for(inputs, recipe, split, options, progress)
        with state.underway():
            measurements: Measurements = load_plugin("measures", recipe.measure["name"])(
                objective, **recipe.measure_options
            )
        # no process leaves while another still gathers
        objective.context.state.wait_for_everyone()
        measurements = _with_relative_change(measurements, objective)
    for note in measurements.notes:
        progress.warn(note)
    return measurements, record, state


def ranks_by_gradients(recipe: Recipe) -> bool:
    """Whether the recipe's method has a mask that ranks entries by their gradients."""
    options = plugin_options("methods", recipe.method["name"]) | recipe.method
    mask = str(options.get("mask") or "")
    return bool(mask) and needs_score(mask)


def _objective_for(
    inputs: Inputs,
    recipe: Recipe,
    split: Split[Images],
    options: DecisionOptions,
    progress: Progress,
) -> tuple[Objective, LearningState, CalibrationRecord]:
    """Move images and model to the device."""
    drawn, val = split.train, split.val
    assert drawn is not None
    contrastive = isinstance(drawn, CaptionedImages)
    if isinstance(drawn, CaptionedImages):
        # a caption is the name and the only prompt of a class of its own
        images = drawn.with_one_caption(options.seed)
        templates = images.templates
    else:
        images = drawn
        templates = templates_for(options.templates, images.templates)
    names = images.class_names
    if isinstance(val, CaptionedImages):
        val = val.with_one_caption(options.seed, known=names)
        names = val.class_names
    context = DistributedContext(options.device)
    model = build_model(inputs)

    size = batch_size_for(len(images), options.batch_size, context.world_size)

    def read(images: LabelledImages) -> Batch:  # every process reads all of them
        pieces = [pixels for _, pixels in read_pixels(images.pictures, size, model.pixels)]
        return Batch(0, torch.cat(pieces), torch.tensor(images.labels))

    path = Path(model, inputs, context.device)
    classifier = classifier_for(
        model,
        replace(images, class_names=names),
        templates,
        context.device,
        moves=path.text_changes,
        kind=Captions if contrastive else Prompts,
    )
    ood = []
    for of_shift in split.ood.values():
        if of_shift.val is None:
            continue
        classes = classifier_for(
            model,
            of_shift.val,
            templates_for(options.templates, of_shift.val.templates),
            context.device,
            moves=path.text_changes,
        )
        ood.append(HeldOut(read(of_shift.val), classes))
    seen = read(images)
    asked = [
        *(checkpoint.provenance() for checkpoint in inputs.checkpoints),
        recipe.measure,
        options.seed,
        [images.source, images.revision, images.labels, class_prompts(names, templates)],
        float(seen.pixels.double().sum()),
        size,
        context.device.type,
    ]
    state = LearningState(state_file(asked), context, progress.say)
    objective = Objective(
        path,
        classifier,
        seen,
        context,
        batch_size=size,
        val=None if val is None else HeldOut(read(val), classifier),
        ood=ood,
        seed=options.seed,
        wants_gradients=ranks_by_gradients(recipe),
        state=state,
        progress=progress,
    )
    if contrastive:
        from clipmerge.models.captions import caption_notes

        for note in caption_notes(images.source, model, images.class_names):
            objective.note(note)
    record = CalibrationRecord(
        source=images.source,
        revision=images.revision,
        images=len(images),
        requested=options.images if split.test else None,
        duplicates=split.copies,
        classes=len(images.class_names),
        classes_with_images=len(set(images.labels)),
        batch_size=size,
        templates=templates,
        seed=options.seed,
    )
    return objective, state, record


def _with_relative_change(measurements: Measurements, objective: Objective) -> Measurements:
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
