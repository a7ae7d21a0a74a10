"""Measure accuracy, by class prompts or by a head, and recall of captions of a checkpoint."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.alignment import pair_keys
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.scorer import Outcome, Scorer
from clipmerge.families import tower_of
from clipmerge.images.classes import templates_for
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.options import ImageOptions
from clipmerge.progress import Progress
from clipmerge.stats import wilson
from clipmerge.types import Json


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Load a full CLIP, or a tower with a head, with its weights, in float32."""
    inputs = pair_keys(checkpoint, [], "error", "keep")
    tower = tower_of(inputs.layers)
    if tower != "full" and not inputs.output.is_classifier:
        raise CheckpointError(
            f"{checkpoint.source}: holds the {tower} tower only, which has no zero-shot classes;"
            " `clipmerge sweep` with the model that it was fine-tuned from evaluates it as alpha 1"
        )
    model = build_model(inputs)
    model.load(inputs.theta_0, checkpoint.source)
    return model


def evaluate_sources(
    model: ImageTextModel,
    sources: Mapping[str, LabelledImages | CaptionedImages],
    settings: ImageOptions,
    progress: Progress,
) -> tuple[Json, dict[str, Outcome]]:
    """Measure a model on several sources. Return the record of accuracy and recall, and the outcome
    by source.
    """
    scorer = Scorer(model, settings, load_bytes=0)
    today = datetime.date.today().isoformat()
    scored = scorer.score([lambda _: None], sources, progress)
    outcomes = {name: outcome for name, (outcome,) in scored.items()}
    described: Json = {}
    accuracy: Json = {}
    intervals: Json = {}
    templates: Json = {}
    recall: Json = {}
    captions: Json = {}
    for name, images in sources.items():
        outcome = outcomes[name]
        described[name] = {"source": images.source, "revision": images.revision, "date": today}
        if isinstance(images, CaptionedImages):
            recall[name] = outcome.recall
            captions[name] = images.caption_count
            continue
        share = float(outcome.correct.mean())
        accuracy[name] = share
        intervals[name] = list(wilson(share, len(images)))
        if images.templates and not settings.template:
            templates[name] = list(images.templates)
    record: Json = {
        "accuracy": accuracy,
        "accuracy_intervals": intervals,
        "images": {name: len(images) for name, images in sources.items()},
        "sources": described,
        "templates": list(templates_for(settings.template, ())),
        "source_templates": templates,
    }
    if recall:
        record |= {"recall": recall, "captions": captions}
    return record, outcomes
