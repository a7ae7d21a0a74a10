"""The images of a merge: opened once, and split once into those that learn, choose and judge."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from clipmerge.api._pair import Pair
from clipmerge.api._write import Decided
from clipmerge.checks import check_sources, settle
from clipmerge.evaluation.verdict import judge
from clipmerge.images.copies import Prints, shared_notes
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import SHARE, Split, only_judged, split_shift
from clipmerge.images.split import split_images as divide
from clipmerge.options import DecisionOptions, PlanOptions
from clipmerge.planning.recipe import Recipe
from clipmerge.planning.verdict import Verdict
from clipmerge.progress import Journal, Progress

Images: TypeAlias = LabelledImages | CaptionedImages


def open_target(options: DecisionOptions, progress: Progress) -> Images:
    """Open `data`, the images of what the model was fine-tuned for."""
    images = open_images(options.data, options.classes, columns=options.columns)
    for note in images.notes:
        progress.warn(note)
    images.require_classes()
    return images


def split_and_check(
    pair: Pair, images: Images, recipe: Recipe, options: PlanOptions, journal: Journal
) -> Split[Images]:
    """Split the target's images, open `ood`, and doubt all of them by how both models see them."""
    split = split_images(images, recipe, options, journal, judged=options.verdict)
    sources = open_ood(options, split, journal)
    journal.stage("check")
    doubts = check_sources(
        pair.inputs, {"": images, **sources}, options, journal, seed=options.seed
    )
    settle(doubts, options.allow, journal)
    ood = {
        name: split_shift(source, options.seed, chooses=split.val is not None)
        for name, source in sources.items()
    }
    for part in ood.values():
        for note in part.notes:
            journal.warn(note)
    return replace(split, ood=ood)


def split_images(
    images: Images, recipe: Recipe, options: DecisionOptions, progress: Progress, *, judged: bool
) -> Split[Images]:
    """Sample images, and split them by their use."""
    if recipe.measure:
        share = recipe.measure_options.get("held_back", 0.0)  # some learn from all images
        test = SHARE if judged else 0.0
        split = divide(images, options.images, options.seed, val=share, test=test)
    else:
        split = only_judged(images, options.images, options.seed)
    for note in split.notes:
        progress.warn(note)
    return split


def open_ood(options: PlanOptions, split: Split[Images], progress: Progress) -> dict[str, Images]:
    """Open the sources beside the target, with class names of their own."""
    sources = open_ood_sources(options, progress)
    prints = {f"`ood` {name}": Prints.of(images) for name, images in sources.items()}
    for part in (split.train, split.test) if prints else ():
        if part is not None:
            data = {f"`data` {part.source}": Prints.of(part)}
            for note in shared_notes(prints, data):
                progress.warn(note)
    return sources


def open_ood_sources(options: PlanOptions, progress: Progress) -> dict[str, Images]:
    """Open and sample `ood`."""
    sources: dict[str, Images] = {}
    for name, source in dict(options.ood).items():
        images = open_images(source)
        for note in images.notes:
            progress.warn(note)
        images.require_classes()
        sources[name] = images.sample(min(options.images, len(images)), options.seed)
    return sources


def judge_plan(
    pair: Pair,
    decided: Decided,
    split: Split[Images],
    options: PlanOptions,
    journal: Journal,
) -> Verdict | None:
    """Judge a plan on images from which nothing was learned; ``None`` if there are none."""
    if split.test is None or not len(split.test):
        journal.warn("there are too few images to hold any back, so there is no verdict")
        return None
    if split.test.pictures.preprocessed:
        journal.warn(
            f"{split.test.source} holds preprocessed pixels, and a verdict needs images; give the"
            " data set without its transform"
        )
        return None
    journal.stage("judge")
    limit = decided.plan.recipe.max_loss if options.max_loss is None else options.max_loss
    return judge(
        pair.inputs,
        decided.plan,
        split.test,
        options,
        ood={name: part.test for name, part in split.ood.items() if part.test is not None},
        max_loss=limit,
        chosen=decided.measured.choice is not None,
        progress=journal,
    )
