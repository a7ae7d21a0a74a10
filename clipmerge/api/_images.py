"""The images of a merge: opened once, and split once into those that learn, choose and judge."""

from __future__ import annotations

from typing import TypeAlias

from clipmerge.errors import UsageError
from clipmerge.images.copies import Prints, shared_notes
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import SHARE, Split, only_judged
from clipmerge.images.split import split_images as divide
from clipmerge.options import DecisionOptions, PlanOptions
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Progress

Images: TypeAlias = LabelledImages | CaptionedImages


def open_target(recipe: Recipe, options: DecisionOptions, progress: Progress) -> Images | None:
    """Open `data`, the images of what the model was fine-tuned for; ``None`` without."""
    if options.data is None:
        if recipe.measure:
            raise UsageError(
                f"recipe '{recipe.name}' measures, and needs labelled images of the target data:"
                " `data` FOLDER with one subfolder per class (data-free recipes: wise-ft, lines,"
                " monosoup)"
            )
        return None
    images = open_images(options.data, options.classes, columns=options.columns)
    for note in images.notes:
        progress.warn(note)
    images.require_classes()
    return images


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
    """Open the sources that are judged beside the target, with class names of their own."""
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
