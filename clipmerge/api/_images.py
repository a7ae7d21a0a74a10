"""The images of a merge: opened once, split once into those that learn, choose and judge, and
measured on: images and model go to the device, and come back as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch.linalg import vector_norm

from clipmerge.api._pair import Pair
from clipmerge.api._write import PlannedMerge
from clipmerge.checkpoint import Inputs
from clipmerge.checks import check_sources, raise_unless_allowed
from clipmerge.distributed import DistributedContext, exact_float32
from clipmerge.errors import DataError
from clipmerge.evaluation.verdict import MOST_IMAGES, judge
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.classes import class_prompts, templates_for
from clipmerge.images.copies import Prints, shared_notes
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import MAX_TEST, SHARE, Split, sample_for_judging, split_shift
from clipmerge.images.split import split_images as divide
from clipmerge.learning.interpolate import Path
from clipmerge.learning.objective import Batch, HeldOut, Objective
from clipmerge.learning.resume import LearningState, state_file
from clipmerge.models.building import build_model
from clipmerge.models.classifier import Captions, Prompts, classifier_for
from clipmerge.models.passes import own_settings
from clipmerge.options import DecisionOptions, ImageOptions, MergeOptions, PlanOptions
from clipmerge.planning.measurements import CalibrationRecord, Measurements, Statistic
from clipmerge.planning.plan import public_source
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.record import Verdict
from clipmerge.plugins import load_plugin, needs_score
from clipmerge.progress import Journal, Progress

Images: TypeAlias = LabelledImages | CaptionedImages
#: The measurements, the images that they were taken on, and the saved state of learning, which is
#: removed once the result is written.
MeasureResult = tuple[Measurements, CalibrationRecord, LearningState]


def open_source(source: Any, options: ImageOptions, progress: Progress) -> Images:
    """Open images with the class names and columns of ``options``."""
    images = open_images(source, options.classes, columns=options.columns)
    for note in images.notes:
        progress.warn(note)
    return images


def split_and_check(
    pair: Pair, images: Images, recipe: Recipe, options: PlanOptions, journal: Journal
) -> Split[Images]:
    """Split the target's images, open `ood`, which have class names of their own, and doubt all of
    them by how both models see them.
    """
    split = split_images(images, recipe, options, journal, judged=options.verdict)
    sources = {}
    for name, source in dict(options.ood).items():
        shift = open_source(source, ImageOptions(), journal)
        shift.require_classes()
        sources[name] = shift.sample(min(options.images, len(shift)), options.seed)
    notes = _overlap_notes(sources, split) if sources else []
    journal.stage("check")
    checked = {"": images, **sources}
    doubts = check_sources(pair.inputs, checked, options, journal, seed=options.seed)
    raise_unless_allowed(doubts, options.allow, journal)
    ood = {}
    for name, shift in sources.items():
        ood[name] = split_shift(shift, options.seed, chooses=split.val is not None)
        notes += ood[name].notes
    for note in notes:
        journal.warn(note)
    return replace(split, ood=ood)


def _overlap_notes(sources: Mapping[str, Images], split: Split[Images]) -> list[str]:
    """Notes of images of `ood` that are also among those that learn or judge."""
    prints = {f"`ood` {name}": Prints.read(images) for name, images in sources.items()}
    notes: list[str] = []
    for part in (split.train, split.test):
        if part is not None:
            target = {f"`data` {part.source}": Prints.read(part)}
            notes += shared_notes(prints, target)
    return notes


def split_images(
    images: Images, recipe: Recipe, options: DecisionOptions, progress: Progress, *, judged: bool
) -> Split[Images]:
    """Sample images, and split them by their use."""
    if recipe.measure:
        share = recipe.measure_options.get("held_back", 0.0)  # some learn from all images
        test = SHARE if judged else 0.0
        split = divide(images, options.images, options.seed, val=share, test=test)
        if share and split.val is None:
            raise DataError(
                f"{images.source}: one image is too few for recipe '{recipe.name}', which learns"
                " from some images and lets others choose; use 2 or more that are not copies"
                " (`images`), or take the result unchecked with `set=measure.held_back=0`"
            )
    else:
        split = sample_for_judging(images, options.images, options.seed)
    for note in split.notes:
        progress.warn(note)
    return split


@exact_float32()
def measure(
    inputs: Inputs,
    recipe: Recipe,
    split: Split[Images],
    options: DecisionOptions,
    progress: Progress,
) -> MeasureResult:
    """Run the measure of a recipe that has one."""
    assert recipe.measure is not None
    is_learning = "steps" in recipe.measure_options
    progress.stage("learn" if is_learning else "measure")
    with own_settings():
        objective, state, record = _build_objective(inputs, recipe, split, options, progress)
        run_measure = load_plugin("measures", recipe.measure["name"])
        with state.underway():
            measurements: Measurements = run_measure(objective, **recipe.measure_options)
        # no process leaves while another still gathers
        objective.context.state.wait_for_everyone()
        change = _relative_change(objective.path)
    notes = (*measurements.notes, *objective.notes)
    for note in notes:
        progress.warn(note)
    statistics = (*measurements.statistics, change)
    measurements = measurements.replace(statistics=statistics, notes=notes)
    return measurements, record, state


def masks_by_gradients(recipe: Recipe) -> bool:
    """Whether the recipe's method has a mask that ranks entries by their gradients."""
    mask = recipe.method.get("mask")
    return mask is not None and needs_score(mask)


def _build_objective(
    inputs: Inputs,
    recipe: Recipe,
    split: Split[Images],
    options: DecisionOptions,
    progress: Progress,
) -> tuple[Objective, LearningState, CalibrationRecord]:
    """Build the loss of the model on these images, the state of learning, and the record of what
    was measured on.
    """
    drawn, val = split.train, split.val
    assert drawn is not None
    contrastive = isinstance(drawn, CaptionedImages)
    if isinstance(drawn, CaptionedImages):
        # a caption is the name and the only prompt of a class of its own
        images = drawn.with_one_caption(options.seed)
        templates = images.templates
    else:
        images = drawn
        templates = templates_for(options.template, images.templates)
    names = images.class_names
    if isinstance(val, CaptionedImages):
        val = val.with_one_caption(options.seed, known=names)
        names = val.class_names
    context = DistributedContext(options.device)
    model = build_model(inputs)

    size = batch_size_for(len(images), options.batch_size, context.world_size)

    def read_batch(images: LabelledImages) -> Batch:  # every process reads all of them
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
            templates_for(options.template, of_shift.val.templates),
            context.device,
            moves=path.text_changes,
        )
        ood.append(HeldOut(read_batch(of_shift.val), classes))
    seen = read_batch(images)
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
        val=None if val is None else HeldOut(read_batch(val), classifier),
        ood=ood,
        seed=options.seed,
        wants_gradients=masks_by_gradients(recipe),
        state=state,
        progress=progress,
    )
    if contrastive:
        from clipmerge.models.captions import caption_notes

        for note in caption_notes(images.source, model, images.class_names):
            objective.add_note(note)
    record = _describe_images(images, split, options, templates=templates, batch_size=size)
    return objective, state, record


def _describe_images(
    images: LabelledImages, split: Split[Images], options: DecisionOptions, **more: Any
) -> CalibrationRecord:
    """What the record tells of the images that are measured on."""
    return CalibrationRecord(
        source=public_source(images.source, images.revision),
        revision=images.revision,
        images=len(images),
        requested=options.images if split.test else None,
        duplicates=split.copies,
        classes=len(images.class_names),
        classes_with_images=len(set(images.labels)),
        seed=options.seed,
        **more,
    )


def _relative_change(path: Path) -> Statistic:
    """The statistic ``change``: ||task_vector_l|| / ||theta_0,l||."""
    values = {}
    for layer, names in path.layers.items():
        start = math.hypot(*(float(vector_norm(path.theta_0(name))) for name in names))
        change = math.hypot(*(float(vector_norm(path.delta(name))) for name in names))
        values[layer] = change / max(start, 1e-30)
    return Statistic(
        name="change",
        values=values,
        title="relative change",
        about=(
            "length of the layer's task vector (fine-tuned minus zero-shot) divided by the length"
            " of its zero-shot weights."
        ),
    )


def judge_plan(
    pair: Pair, planned: PlannedMerge, split: Split[Images], options: MergeOptions, journal: Journal
) -> Verdict:
    """Judge a plan on images from which nothing was learned."""
    assert split.test is not None
    journal.stage("judge")
    limit = planned.plan.recipe.max_loss if options.max_loss is None else options.max_loss
    return judge(
        pair.inputs,
        planned.plan,
        split.test,
        options,
        ood={name: part.test for name, part in split.ood.items() if part.test is not None},
        max_loss=limit,
        chosen=planned.measured.choice is not None,
        most_images=MAX_TEST if planned.plan.recipe.measure else MOST_IMAGES,
        progress=journal,
    )
