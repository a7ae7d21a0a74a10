"""Unlabelled images from where the model will be used, for recipes that learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.errors import UsageError
from clipmerge.progress import Progress, say_all

if TYPE_CHECKING:
    from clipmerge.images.dataset import LabelledImages
    from clipmerge.planning.recipe import Recipe
    from clipmerge.request import Calibration, MergeRequest


def check_unlabelled(calibration: Calibration, *recipes: Recipe) -> None:
    """Refuse unlabelled images that no recipe can use, before anything is opened."""
    source = calibration.unlabelled
    if source is None:
        return
    named = f"--unlabelled {source}" if isinstance(source, str) else "unlabelled"
    problems = [_problem(recipe) for recipe in recipes] or ["no recipe is given"]
    if all(problems):
        raise UsageError(
            f"{named}: {problems[0]}; leave out --unlabelled, or choose a recipe that learns from them, such as auto"
        )
    labelled = calibration.source
    texts = isinstance(source, str) and isinstance(labelled, str)
    if source is labelled or (texts and Path(source).resolve() == Path(labelled).resolve()):
        raise UsageError(
            f"{named}: these are the images of --data; give images from where the model will be used, or leave it out"
        )


def _problem(recipe: Recipe) -> str:
    """Why a recipe cannot learn from unlabelled images; empty if it can."""
    if not recipe.learns_from_unlabelled:
        return f"recipe '{recipe.name}' does not learn from unlabelled images"
    options = recipe.measure or {}
    if options["robustness"] == 0:
        return f"recipe '{recipe.name}' has measure.robustness 0, so it has no use for unlabelled images"
    if min(options["copies"], options["batch"]) < 2:
        return f"recipe '{recipe.name}' has one copy per step, too few to replace half by unlabelled images"
    return ""


def unlabelled_images(
    request: MergeRequest, labelled: Sequence[LabelledImages | None], progress: Progress
) -> LabelledImages | None:
    """Sample the unlabelled images."""
    asked = request.calibration
    if asked.unlabelled is None:
        return None
    from clipmerge.images.dataset import load_unlabelled
    from clipmerge.images.overlap import Fingerprints, refuse_shared

    images = load_unlabelled(asked.unlabelled, asked.columns, most=asked.images, seed=request.seed)
    say_all(progress, images.notes)
    sample = images.sample(asked.images, request.seed)
    for other in labelled:
        if other is not None:
            refuse_shared(sample, {f"--data {other.source}": Fingerprints(other)})
    return sample
