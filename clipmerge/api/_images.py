"""The images of a merge: opened once, and split once into those that learn, choose and judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from clipmerge.errors import UsageError
from clipmerge.images.dataset import open_images
from clipmerge.images.fingerprints import Fingerprints, note_shared
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.images.split import (
    MAX_HELD_BACK,
    SHARE,
    copies_note,
    held_out_count,
    sample_and_hold_back,
    without_copies,
)
from clipmerge.images.store import Pixels
from clipmerge.learning.learn import held_out_positions
from clipmerge.options import DecisionOptions, PlanOptions
from clipmerge.planning.recipe import Recipe
from clipmerge.progress import Progress
from clipmerge.report.text import text_of, texts_of

Images: TypeAlias = LabelledImages | CaptionedImages


@dataclass(frozen=True)
class Split:
    """Images of one source by their use; no image is a copy of another.

    Attributes:
        train: Images that the recipe measures on or learns from; ``None`` if it has no measure.
        val: Images that choose how far to go, where they are not a part of ``train``.
        test: Images that judge the merge; ``None`` to judge none.
        copies: Number of copies left out.
    """

    train: Images | None
    val: Images | None = None
    test: Images | None = None
    copies: int = 0

    @property
    def is_preprocessed(self) -> bool:
        """Whether the images are pixels that the model's preprocessing has made already."""
        return self.test is not None and isinstance(self.test.store, Pixels)


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
    wanted = options.images + held_out_count(options.images, SHARE)
    images = open_images(
        options.data,
        options.classes,
        columns=options.columns,
        max_images=wanted,
        seed=options.seed,
    )
    for note in texts_of(images.notes):
        progress.warn(note)
    images.require_classes()
    return images


def split_images(
    images: Images, recipe: Recipe, options: DecisionOptions, progress: Progress, *, judged: bool
) -> Split:
    """Sample images, and split them by their use.

    A few dozen images choose by luck. So with few, those that choose and those that judge do both
    jobs. Captions that choose may also belong to images that are learned from, so they do not
    judge.
    """
    if not recipe.measure:
        sample = images.sample(min(MAX_HELD_BACK, options.images), options.seed)
        alone = without_copies(sample)
        split = Split(None, None, alone if judged else None, len(sample) - len(alone))
    else:
        drawn = sample_and_hold_back(
            images, options.images, options.seed, share=SHARE if judged else 0.0
        )
        share = recipe.measure_options.get("held_back", 0.0)  # some learn from all images
        judges = drawn.held_back_at
        chooses = held_out_positions(drawn.decide.labels, share, options.seed)
        val: Images | None = None
        test = drawn.held_back
        if chooses and 0 < len(judges) < MAX_HELD_BACK:
            both = [*judges, *(drawn.deciding[at] for at in chooses)]
            val = drawn.images.subset(both)
            if drawn.images.labels_are_classes:
                test = drawn.images.subset(both[:MAX_HELD_BACK])
        split = Split(drawn.decide, val, test, drawn.copies)
    if split.copies:
        progress.warn(text_of(copies_note(images.source, split.copies)))
    return split


def open_ood(options: PlanOptions, split: Split, progress: Progress) -> dict[str, Images]:
    """Open the sources that are judged beside the target, with class names of their own."""
    sources = open_ood_sources(options, progress)
    prints = {f"`ood` {name}": Fingerprints(images) for name, images in sources.items()}
    for part in (split.train, split.test) if prints else ():
        if part is not None:
            data = {f"`data` {part.source}": Fingerprints(part)}
            for note in texts_of(note_shared(prints, data)):
                progress.warn(note)
    return sources


def open_ood_sources(options: PlanOptions, progress: Progress) -> dict[str, Images]:
    """Open and sample `ood`."""
    sources: dict[str, Images] = {}
    for name, source in options.ood.items():
        images = open_images(source, max_images=options.images, seed=options.seed)
        for note in texts_of(images.notes):
            progress.warn(note)
        images.require_classes()
        sources[name] = images.sample(min(options.images, len(images)), options.seed)
    return sources
