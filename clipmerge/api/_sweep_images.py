"""The images of a sweep: loaded, sampled where there is a limit, and searched for images that sources share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.held_back import wanted_back
from clipmerge.images.overlap import Images, check_overlap
from clipmerge.images.unlabelled import load_unlabelled
from clipmerge.progress import Progress
from clipmerge.request import SweepRequest


def load_source(source: Any, request: SweepRequest, progress: Progress) -> LabelledImages:
    """Load the images of one source.

    Args:
        source: The source.
        request: The sweep.
        progress: Receiver of progress reports.

    Raises:
        DataError: If there are no images, or they cannot be used.
        HubError: If the Hub refuses or cannot be reached.
    """
    asked, limit = request.calibration, request.limit
    whole = limit is None
    images = load_images(source, asked.classes, columns=asked.columns, whole=whole, most=limit, seed=request.seed)
    for note in images.notes:
        progress.say(note)
    if limit is None:
        return images
    images.require_classes()
    return images.sample(limit, request.seed)


def overlap_notes(request: SweepRequest, loaded: dict[str, LabelledImages], tasks: Mapping[str, Images]) -> list[str]:
    """Note the images that sources share.

    Args:
        request: The sweep.
        loaded: Images by name.
        tasks: Images of other tasks by name.

    Raises:
        UsageError: If an OOD source shares images with the calibration source, or any source with the unlabelled one.
    """
    if not request.checks_overlap:
        return []
    return check_overlap(
        _calibration_images(request),
        {name: loaded[name] for name in request.id_sources},
        {name: loaded[name] for name in request.ood_sources},
        _unlabelled_images(request),
        tasks,
    )


def _calibration_images(request: SweepRequest) -> LabelledImages | None:
    """All images of the calibration source; for one on the Hub, only the images that recipes will measure on."""
    asked = request.calibration
    if asked.source is None or asked.source == "":
        return None
    most = asked.images + wanted_back(asked.images, asked.held_back)
    images = load_images(asked.source, asked.classes, columns=asked.columns, most=most, seed=request.seed)
    return images.sample(most, request.seed) if images.revision else images


def _unlabelled_images(request: SweepRequest) -> LabelledImages | None:
    """All unlabelled images; for a source on the Hub, only the images that recipes will learn from."""
    asked = request.calibration
    if asked.unlabelled is None:
        return None
    images = load_unlabelled(asked.unlabelled, asked.columns, most=asked.images, seed=request.seed)
    return images.sample(asked.images, request.seed) if images.revision else images
