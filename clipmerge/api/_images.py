"""The images of a merge: opened once, split once into those that learn, choose and judge, and
measured on: images and model go to the device, and come back as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch.linalg import vector_norm

from clipmerge.api._pair import Pair
from clipmerge.checks import check_sources, raise_unless_allowed
from clipmerge.distributed import DistributedContext, exact_float32
from clipmerge.errors import DataError
from clipmerge.evaluation.verdict import judge
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.classes import class_prompts, templates_for
from clipmerge.images.copies import Thumbnails
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import MAX_TEST, SHARE, Split, split_shift
from clipmerge.images.split import split_images as divide
from clipmerge.learning.interpolate import WeightPath
from clipmerge.learning.objective import Batch, Labelled, Objective
from clipmerge.learning.resume import LearningState, state_file
from clipmerge.models.classifier import Captions, Prompts, classifier_for
from clipmerge.models.passes import torch_defaults
from clipmerge.options import DecisionOptions, MergeOptions, PlanOptions
from clipmerge.planning.measurements import CalibrationRecord, Measurements, Statistic
from clipmerge.planning.plan import public_source
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.record import Record
from clipmerge.plugins import load_plugin, needs_score
from clipmerge.progress import Journal, Progress

Images: TypeAlias = LabelledImages | CaptionedImages


def split_and_check(
    pair: Pair, images: Images, recipe: Recipe, options: PlanOptions, journal: Journal
) -> Split[Images]:
    """Split the target's images, open `ood`, which have class names of their own, and doubt all of
    them by how both models see them.
    """
    split = split_images(images, recipe, options.images, options.seed, judged=options.verdict)
    journal.warn(*split.notes)
    ood = {}
    notes: list[str] = []
    teaches = recipe.measure_is("LEARNS")
    for name, source in dict(options.ood).items():
        shift = open_images(source)
        journal.warn(*shift.notes)
        shift.require_classes()
        sample = shift.sample(min(options.images, len(shift)), options.seed)
        thumbnails, shared = Thumbnails.read(sample).without_shared(
            split.thumbnails, f"`ood` {name}", f"`data` {images.source}"
        )
        ood[name] = split_shift(thumbnails, options.seed, teaches=teaches)
        notes += [*shared, *ood[name].notes]
    sources = {name: shift.thumbnails.images for name, shift in ood.items()}
    doubt_images(pair, {"": images, **sources}, options, journal)
    journal.warn(*notes)
    return replace(split, ood=ood)


def doubt_images(
    pair: Pair, sources: Mapping[str, Images], options: DecisionOptions, journal: Journal
) -> None:
    """Doubt images, and their names, by how both models see some of them."""
    journal.stage("check")
    doubts = check_sources(pair.path, sources, options, journal, seed=options.seed)
    raise_unless_allowed(doubts, options.allow, journal)


def split_images(
    images: Images, recipe: Recipe, count: int, seed: int, *, judged: bool
) -> Split[Images]:
    """Sample images, and split them by their use."""
    if not recipe.measure:
        drawn = Thumbnails.read(images.sample(count, seed))
        return replace(split_shift(drawn, seed, teaches=False), available=len(images))
    share = recipe.measure_options["held_back"] if recipe.measure_is("HOLDS_BACK") else 0.0
    split = divide(images, count, seed, val=share, test=SHARE if judged else 0.0)
    if share and split.val is None:
        raise DataError(
            f"{images.source}: one image is too few for recipe '{recipe.name}', which learns"
            " from some images and lets others choose; use 2 or more that are not copies"
            " (`images`), or take the result unchecked with `set=measure.held_back=0`"
        )
    return split


@exact_float32()
def measure(
    pair: Pair,
    recipe: Recipe,
    split: Split[Images],
    options: DecisionOptions,
    journal: Journal,
) -> tuple[Measurements, CalibrationRecord]:
    """Run the measure of a recipe that has one, on the images that the record describes."""
    assert recipe.measure is not None
    journal.stage("learn" if recipe.measure_is("LEARNS") else "measure")
    with torch_defaults():
        objective, state, record = _build_objective(pair, recipe, split, options, journal)
        pair.learning.append(state)
        run_measure = load_plugin("measures", recipe.measure["name"])
        with state.saving_if_interrupted():
            measurements: Measurements = run_measure(objective, **recipe.measure_options)
        # no process leaves while another still gathers
        objective.context.state.wait_for_everyone()
        change = _relative_change(pair.path)
        pair.path.clear_gradients()
    journal.warn(*measurements.notes)
    return measurements.replace(statistics=(*measurements.statistics, change)), record


def masks_by_gradients(recipe: Recipe) -> bool:
    """Whether the recipe's method has a mask that ranks entries by their gradients."""
    mask = recipe.method.get("mask")
    return mask is not None and needs_score(mask)


def _build_objective(
    pair: Pair,
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
    context, path = DistributedContext(pair.device), pair.path
    model = path.model
    path.dtype = "float32"
    path.set_alpha(0.0)
    size = batch_size_for(len(images), options.batch_size, context.world_size)

    def read_batch(images: LabelledImages) -> Batch:  # every process reads all of them
        pieces = [pixels for _, pixels in read_pixels(images.pictures, size, model.pixels)]
        return Batch(0, torch.cat(pieces), torch.tensor(images.labels))

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
        if of_shift.train is None:
            continue
        shift = of_shift.train
        if is_captioned := isinstance(shift, CaptionedImages):
            shift = shift.with_one_caption(options.seed)
        classes = classifier_for(
            model,
            shift,
            templates_for(() if is_captioned else options.template, shift.templates),
            context.device,
            moves=path.text_changes,
            kind=Captions if is_captioned else Prompts,
        )
        ood.append(Labelled(read_batch(shift), classes))
    seen = read_batch(images)
    asked = [
        *(checkpoint.provenance() for checkpoint in pair.inputs.checkpoints),
        recipe.measure,
        options.seed,
        [images.source, images.revision, images.labels, class_prompts(names, templates)],
        float(seen.pixels.double().sum()),
        [[each.images.labels.tolist(), float(each.images.pixels.double().sum())] for each in ood],
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
        val=None if val is None else Labelled(read_batch(val), classifier),
        ood=ood,
        seed=options.seed,
        wants_gradients=masks_by_gradients(recipe),
        state=state,
        progress=progress,
    )
    if contrastive:
        from clipmerge.models.captions import caption_notes

        for note in caption_notes(images.source, model, images.class_names):
            progress.warn(note)
    record = CalibrationRecord(
        source=public_source(images.source, images.revision),
        revision=images.revision,
        images=len(images),
        requested=options.images if split.test else None,
        duplicates=split.copies,
        classes=len(images.class_names),
        classes_with_images=len(set(images.labels)),
        batch_size=size,
        templates=templates,
        seed=options.seed,
        ood={name: len(part.train) for name, part in split.ood.items() if part.train is not None},
    )
    return objective, state, record


def _relative_change(path: WeightPath) -> Statistic:
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
    pair: Pair, record: Record, split: Split[Images], options: MergeOptions, journal: Journal
) -> Record:
    """Add a verdict to the record, on images from which nothing was learned."""
    assert split.test is not None
    journal.stage("judge")
    recipe = record.plan.recipe
    verdict = judge(
        pair.path,
        record.plan,
        split.test,
        options,
        journal,
        ood={name: part.test for name, part in split.ood.items() if part.test is not None},
        max_loss=recipe.max_loss if options.max_loss is None else options.max_loss,
        chosen=record.measured.choice is not None,
        chose=record.measured.choice is not None and split.test_chooses,
        most_images=MAX_TEST if recipe.measure else split.available,
    )
    return record.replace(verdict=verdict)
