"""Zero-shot accuracy of one checkpoint, and its recall of captions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from torch import Tensor

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.scorer import Outcome, Scorer
from clipmerge.families import layers_of, tower_of
from clipmerge.files.safetensors import require_finite
from clipmerge.images.classes import templates_for
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.models import ImageTextModel, model_for
from clipmerge.options import ImageOptions
from clipmerge.progress import Progress
from clipmerge.stats import wilson
from clipmerge.types import Json


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Load a full CLIP with its weights, in float32."""
    family = checkpoint.family
    keys = family.by_canonical_name(checkpoint.entries, checkpoint.source)
    tower = tower_of(layers_of(keys).values())
    if tower != "full":
        raise CheckpointError(
            f"{checkpoint.source}: holds the {tower} tower only, which has no zero-shot classes;"
            " `clipmerge sweep` with the model that it was fine-tuned from evaluates it as alpha 1"
        )
    if checkpoint.config is None:
        named = ", name the architecture with `model`" if family.config == OPEN_CLIP_CONFIG else ""
        raise CheckpointError(
            f"{checkpoint.source}: no {family.config} beside it says how to build the model; copy"
            f" that of the model that it was fine-tuned from{named}, or use `clipmerge sweep` with"
            " that model, which evaluates it as alpha 1"
        )
    model = model_for(family, checkpoint.config, checkpoint.folder)

    def read(name: str) -> Tensor:
        tensor = checkpoint.tensor(keys[name])
        require_finite(tensor, name, checkpoint.source)
        return tensor

    model.load(read, checkpoint.source)
    return model


def evaluate_sources(
    model: ImageTextModel,
    sources: Mapping[str, LabelledImages | CaptionedImages],
    settings: ImageOptions,
    progress: Progress,
) -> tuple[Json, dict[str, Outcome]]:
    """Measure a model on several sources: the part of the record that describes them, and the
    answers.
    """
    scorer = Scorer(model, None, settings, load_bytes=0)
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
