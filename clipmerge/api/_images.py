"""Use the images of a merge: split them, check them, run the measure, and judge the merge.

Images *teach* if a measure reads them or learns from them. They *choose* if they decide how far a
learned merge goes back towards the fine-tuned model. They *judge* if the verdict is made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from clipmerge.api._pair import Pair
from clipmerge.checks import check_sources, raise_unless_allowed
from clipmerge.distributed import DistributedContext, exact_float32
from clipmerge.errors import DataError
from clipmerge.evaluation.verdict import judge
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.classes import class_prompts, templates_for
from clipmerge.images.copies import Thumbnails
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, Images, LabelledImages
from clipmerge.images.split import SHARE, Split, split_images, split_shift
from clipmerge.learning.objective import Batch, Labelled, Objective
from clipmerge.learning.resume import LearningState, state_file
from clipmerge.models.classifier import Captions, Prompts, classifier_for
from clipmerge.models.passes import dtype_of, torch_defaults
from clipmerge.options import DecisionOptions, MergeOptions, PlanOptions
from clipmerge.planning.measurements import CalibrationRecord, Measurements
from clipmerge.planning.plan import public_source
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.record import Record
from clipmerge.plugins import load_plugin, needs_score
from clipmerge.progress import Journal, Progress
from clipmerge.types import Names


def split_and_check(
    pair: Pair, images: Images, recipe: Recipe, options: PlanOptions, journal: Journal
) -> Split:
    """Split the images of the target and of each `ood` source by their use, and check all of
    them.
    """
    split = split_for_recipe(images, recipe, options.images, options.seed, judged=options.verdict)
    journal.warn(*split.notes)
    ood = {}
    notes: list[str] = []
    # with weight 0, `ood` images would teach nothing, so all of them judge
    teaches = recipe.measure_is("LEARNS") and recipe.measure_options.get("ood_weight") != 0
    for name, source in options.ood.items():
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
    check_images(pair, {"": images, **sources}, options, journal)
    journal.warn(*notes)
    return replace(split, ood=ood)


def check_images(
    pair: Pair, sources: Mapping[str, Images], options: DecisionOptions, journal: Journal
) -> None:
    """Raise an error if the pixels of a sample, or the answers of both models to it, suggest wrong
    images or class names.
    """
    journal.stage("check")
    doubts = check_sources(pair.path, sources, options, journal, seed=options.seed)
    raise_unless_allowed(doubts, options.allow, journal)


def split_for_recipe(
    images: Images, recipe: Recipe, count: int, seed: int, *, judged: bool
) -> Split:
    """Draw a sample, and split it into images that teach, choose and judge, as the recipe needs."""
    if not recipe.measure:
        drawn = Thumbnails.read(images.sample(count, seed))
        return split_shift(drawn, seed, teaches=False)
    share = recipe.measure_options["held_back"] if recipe.measure_is("HOLDS_BACK") else 0.0
    split = split_images(images, count, seed, val=share, test=SHARE if judged else 0.0)
    if share and split.val is None:
        raise DataError(
            f"{images.source}: one image is too few for recipe '{recipe.name}', which learns from"
            " some images and lets others choose; give 2 or more that are not copies (`images`),"
            " or let none choose with `set=measure.held_back=0`"
        )
    return split


@exact_float32()
def measure(
    pair: Pair,
    recipe: Recipe,
    split: Split,
    options: DecisionOptions,
    journal: Journal,
) -> tuple[Measurements, CalibrationRecord]:
    """Run the recipe's measure, and return its result and a record of the images it used."""
    assert recipe.measure is not None
    journal.stage("learn" if recipe.measure_is("LEARNS") else "measure")
    with torch_defaults():
        objective, state, record = _build_objective(pair, recipe, split, options, journal)
        pair.learning.append(state)
        run_measure = load_plugin("measures", recipe.measure["name"])
        with state.saving_if_interrupted():
            measurements: Measurements = run_measure(objective, **recipe.measure_options)
        # all processes must have gathered the results before one continues
        objective.context.state.wait_for_everyone()
        pair.path.clear_gradients()
    journal.warn(*measurements.notes)
    return measurements, record


def _build_objective(
    pair: Pair,
    recipe: Recipe,
    split: Split,
    options: DecisionOptions,
    progress: Progress,
) -> tuple[Objective, LearningState, CalibrationRecord]:
    """Build the measure's loss on the images, the state of learning, and the record of the
    images.
    """
    assert split.train is not None
    context, path = DistributedContext(pair.device), pair.path
    model = path.model
    path.dtype = "float32"
    path.set_alpha(0.0)
    images = _as_labelled(split.train, options)
    val = None
    if split.val is not None:
        val = _as_labelled(split.val, options, images.class_names)
        images = replace(images, class_names=val.class_names)
    size = batch_size_for(len(images), options.batch_size, context.world_size)

    def read_batch(images: LabelledImages) -> Batch:
        """Load all the images as one batch; every process loads all of them."""
        pieces = [pixels for _, pixels in read_pixels(images.pictures, size, model.pixels)]
        return Batch(0, torch.cat(pieces), torch.tensor(images.labels))

    def read(source: Images, images: LabelledImages) -> Labelled:
        made = classifier_for(
            model,
            images,
            images.templates,
            context.device,
            moves=path.text_changes,
            kind=Captions if isinstance(source, CaptionedImages) else Prompts,
        )
        return Labelled(read_batch(images), made)

    train = read(split.train, images)
    shifts = {name: part.train for name, part in split.ood.items() if part.train is not None}
    ood = [read(shift, _as_labelled(shift, options)) for shift in shifts.values()]
    asked = [
        *(checkpoint.provenance() for checkpoint in pair.inputs.checkpoints),
        recipe.measure,
        options.seed,
        [images.source, images.revision, images.labels],
        class_prompts(images.class_names, images.templates),
        [
            [each.images.labels.tolist(), float(each.images.pixels.double().sum())]
            for each in (train, *ood)
        ],
        size,
        context.device.type,
        str(dtype_of(context.device, "auto")),
    ]
    state = LearningState(state_file(asked), context, progress.say)
    mask = recipe.method.get("mask")
    objective = Objective(
        path,
        train.classifier,
        train.images,
        context,
        batch_size=size,
        val=None if val is None else Labelled(read_batch(val), train.classifier),
        ood=ood,
        seed=options.seed,
        wants_gradients=mask is not None and needs_score(mask),
        state=state,
        progress=progress,
    )
    record = CalibrationRecord(
        source=public_source(images.source, images.revision),
        revision=images.revision,
        images=len(images),
        requested=options.images if split.test else None,
        duplicates=split.copies,
        classes=len(images.class_names),
        classes_with_images=len(set(images.labels)),
        batch_size=size,
        templates=images.templates,
        seed=options.seed,
        ood={name: len(shift) for name, shift in shifts.items()},
    )
    return objective, state, record


def _as_labelled(images: Images, options: DecisionOptions, known: Names = ()) -> LabelledImages:
    """Return labelled images with the templates of their prompts. Of an image with captions, one
    caption, drawn at random, becomes the class and the prompt.
    """
    if isinstance(images, CaptionedImages):
        return images.with_one_caption(options.seed, known)
    return replace(images, templates=templates_for(options.template, images.templates))


def judge_plan(
    pair: Pair, record: Record, split: Split, options: MergeOptions, journal: Journal
) -> Record:
    """Judge the plan on the images set aside for this, and return the record with the verdict."""
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
        images_chose=record.measured.choice is not None,
        test_images_chose=record.measured.choice is not None and split.test_chooses,
    )
    return record.replace(verdict=verdict)
