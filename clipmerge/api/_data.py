"""One opening of `data` per command, for everything that reads images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmerge.progress import Progress, say_all
from clipmerge.report.text import texts_of
from clipmerge.request import Request
from clipmerge.run import RunCache

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from clipmerge.images.image_set import CaptionedImages, LabelledImages


def open_data(
    request: Request, cache: RunCache, progress: Progress
) -> LabelledImages | CaptionedImages:
    """Open `data` once, for all images that the request takes, and tell the notes about it."""
    from clipmerge.images.dataset import open_images
    from clipmerge.images.split import MAX_HELD_BACK, held_out_count

    calibration = request.calibration
    max_images = calibration.images + held_out_count(calibration.images, calibration.held_back)
    recipe = getattr(request, "recipe", None)
    if recipe is not None and not recipe.measure:  # it is only judged
        max_images = min(MAX_HELD_BACK, calibration.images)
    if cache.data is None or cache.data[0] < max_images:
        source, classes, columns = calibration.source, calibration.classes, calibration.columns
        images = open_images(
            source, classes, columns=columns, max_images=max_images, seed=request.seed
        )
        say_all(progress, texts_of(images.notes))
        cache.data = max_images, images
    return cache.data[1]
