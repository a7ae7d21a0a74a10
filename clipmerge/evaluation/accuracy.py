"""Zero-shot accuracy of one checkpoint, and its recall of captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.converted import as_open_clip
from clipmerge.distributed import all_reduce_, device_work, to_device
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.bf16_classifier import Bf16Classifier
from clipmerge.evaluation.recall import recall_of_model
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.families import family_of, tower_of
from clipmerge.images.batches import batch_size_for, read_batches
from clipmerge.images.dataset import CaptionedImages, LabelledImages
from clipmerge.images.prompts import own_templates, templates_for
from clipmerge.models import ImageTextModel, model_for
from clipmerge.models.building import no_larger_than
from clipmerge.models.memory import MicroBatcher
from clipmerge.models.zero_shot import class_embeddings
from clipmerge.progress import Pace, Progress


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Load a full CLIP with its weights, in float32."""
    checkpoint = as_open_clip(checkpoint)
    family = family_of(checkpoint.config, checkpoint.entries)
    keys = family.by_canonical_name(checkpoint.entries)
    layers = family.layers_of(filter(family.has_layer, keys))
    tower = tower_of(layers.values())
    if tower != "full":
        raise CheckpointError(
            f"{checkpoint.source}: holds the {tower} tower only, which has no zero-shot classes;"
            " `clipmerge sweep` with the model that it was fine-tuned from evaluates it as alpha 1"
        )
    if checkpoint.config is None:
        raise CheckpointError(
            f"{checkpoint.source}: no {family.config} beside it says how to build the model; copy"
            " that of the model that it was fine-tuned from, or use `clipmerge sweep` with that"
            " model, which evaluates it as alpha 1"
        )
    with no_larger_than(checkpoint.source, checkpoint.entries.values()):
        model = model_for(family, checkpoint.config, checkpoint.folder)
    model.load(lambda name: checkpoint.tensor(keys[name]), checkpoint.source)
    return model


@torch.inference_mode()
@device_work()
def zero_shot_accuracy(
    model: ImageTextModel, images: LabelledImages, settings: EvalSettings, progress: Progress
) -> float:
    """Share of all images, in [0, 1], whose best-matching class prompt is the right one."""
    context = settings.context
    model.module.to(context.device)
    templates = templates_for(settings.templates, images.templates)
    classes = class_embeddings(model, images.class_names, templates, context.device, progress.say)
    size = batch_size_for(len(images), settings.batch_size)
    pieces = MicroBatcher(settings.images_at_once, progress.say)
    right, seen = 0, 0
    classifier = Bf16Classifier(model, classes, pieces, len(images))
    for batch in read_batches(images, size, model.pixels, share=settings.share):
        best = classifier.classify(to_device(batch.pixels, context.device))
        right += int((best == batch.labels).sum())
        seen += len(batch)
        progress.advance(seen, len(images))
    total = torch.tensor(right)
    all_reduce_(context, total)
    return float(total) / len(images)


def evaluate_sources(
    model: ImageTextModel,
    sources: Mapping[str, LabelledImages | CaptionedImages],
    settings: EvalSettings,
    progress: Progress,
) -> dict[str, Any]:
    """Measure a model on several sources: the part of the record that describes them."""
    accuracy, recall = {}, {}
    for name, images in sources.items():
        progress.stage(f"evaluating {name}")
        if isinstance(images, CaptionedImages):
            sentence = f"embedding {len(images):,} images of {name} on the CPU takes about"
            pace = Pace(progress, settings.context.device, sentence)
            recall[name] = recall_of_model(model, images, settings, pace).recall
            continue
        sentence = f"classifying {len(images):,} images of {name} on the CPU takes about"
        pace = Pace(progress, settings.context.device, sentence)
        accuracy[name] = zero_shot_accuracy(model, images, settings, pace)
    labelled = {
        name: images for name, images in sources.items() if isinstance(images, LabelledImages)
    }
    record: dict[str, Any] = {
        "accuracy": accuracy,
        "images": {name: len(images) for name, images in sources.items()},
        "sources": {
            name: {"source": images.source, "revision": images.revision}
            for name, images in sources.items()
        },
        "templates": list(templates_for(settings.templates, ())),
        "source_templates": own_templates(settings.templates, labelled),
    }
    if recall:
        record["recall"] = {name: found.model_dump(mode="json") for name, found in recall.items()}
        record["captions"] = {
            name: sum(map(len, images.captions))
            for name, images in sources.items()
            if isinstance(images, CaptionedImages)
        }
    return record
