"""Zero-shot accuracy of one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from clipmerge.checkpoint import Checkpoint, open_checkpoint
from clipmerge.distributed import accelerator_for, together
from clipmerge.errors import CheckpointError
from clipmerge.families import family_of, tower_of
from clipmerge.images.batches import batch_size_for, read_batches
from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.prompts import own_templates, templates_for
from clipmerge.models import ImageTextModel, model_for
from clipmerge.models.building import no_larger_than
from clipmerge.models.zero_shot import class_embeddings
from clipmerge.progress import Pace

if TYPE_CHECKING:
    from clipmerge.choices import Device
    from clipmerge.images import Columns
    from clipmerge.images.class_names import ClassNames
    from clipmerge.progress import Progress


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Load a full CLIP with its weights, float32.

    Raises:
        CheckpointError: If it is not a full CLIP with its config and processor.
    """
    family = family_of(checkpoint.config, checkpoint.entries)
    keys = {name: key for key, name in family.canonical_names(checkpoint.entries).items()}
    layers = family.layers_of(name for name in keys if family.knows(name))
    tower = tower_of(layers.values())
    if tower != "full":
        raise CheckpointError(
            f"{checkpoint.source}: holds the {tower} tower only, which has no zero-shot classes; `clipmerge sweep` "
            "with the model that it was fine-tuned from evaluates it as alpha 1"
        )
    if checkpoint.config is None:
        raise CheckpointError(
            f"{checkpoint.source}: no {family.config} beside it says how to build the model; copy that of the model "
            "that it was fine-tuned from, or use `clipmerge sweep` with that model, which evaluates it as alpha 1"
        )
    with no_larger_than(checkpoint.source, checkpoint.entries.values()):
        model = model_for(family, checkpoint.config, checkpoint.folder)
    model.load(lambda name: checkpoint.tensor(keys[name]), checkpoint.source)
    return model


@torch.inference_mode()
def zero_shot_accuracy(
    model: ImageTextModel,
    images: LabelledImages,
    templates: tuple[str, ...],
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    images_at_once: int | None = None,
    progress: Progress,
) -> float:
    """Share of images whose best-matching class prompt is the right one.

    Args:
        model: The model, weights loaded.
        images: Labelled images; all are used.
        templates: Prompt templates; class embeddings are averaged over them.
        device: Device to run on.
        batch_size: Images per batch.
        images_at_once: As in `answers`.
        progress: Receiver of progress reports.

    Returns:
        Accuracy in [0, 1].

    Raises:
        DataError: If an image cannot be decoded.
    """
    accelerator = accelerator_for(device)
    model.module.to(accelerator.device)
    classes = class_embeddings(model, images.class_names, templates, accelerator.device, progress.say)
    share = (accelerator.process_index, accelerator.num_processes)
    right, seen = 0, 0
    for batch in read_batches(images, batch_size_for(len(images), batch_size), model.pixels, share=share):
        best = answers(model, batch.pixels.to(accelerator.device), classes, images_at_once)
        right += int((best == batch.labels).sum())
        seen += len(batch)
        progress.advance(seen, len(images))
    with together():
        total = accelerator.reduce(torch.tensor(right, device=accelerator.device), "sum")
    return float(total) / len(images)


def _cost(name: str) -> Callable[[float, str], str]:
    return lambda images, time: f"classifying {images:,.0f} images of {name} on the CPU: about {time}"


def answers(
    model: ImageTextModel, pixels: torch.Tensor, classes: torch.Tensor, images_at_once: int | None = None
) -> torch.Tensor:
    """Classify each image by its best-matching class prompts.

    Args:
        model: The model, weights loaded.
        pixels: (batch, 3, height, width), on the model's device.
        classes: Result of `class_embeddings`.
        images_at_once: Images that go through the model at once; ``None`` for the whole batch.

    Returns:
        (batch,), class indices, on the CPU.
    """
    pieces = torch.split(pixels, images_at_once or len(pixels))
    return torch.cat([(model.image_features(piece) @ classes.T).argmax(dim=1) for piece in pieces]).cpu()


def evaluate_sources(
    source: str,
    named: Mapping[str, Any],
    *,
    classes: ClassNames = None,
    templates: tuple[str, ...],
    batch_size: int | None = None,
    images_at_once: int | None = None,
    device: Device = "auto",
    columns: Columns | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure one checkpoint on several sources.

    Args:
        source: The checkpoint.
        named: Images by name, in any form that `clipmerge.images.dataset.load_images` accepts.
        classes: File with class names, or the names; the same for every source.
        templates: Prompt templates for every source; if empty, each source's own, or the default.
        batch_size: Images per batch.
        images_at_once: As in `answers`.
        device: Device to run on.
        columns: Columns of images and labels named by the user.
        progress: Receiver of progress reports.

    Returns:
        JSON-ready: ``accuracy`` {name: 0..1}, ``images`` {name: count}, ``sources`` {name: {source, revision}},
        ``templates``, and ``own_templates`` {name: templates} of the sources that were evaluated with their own.

    Raises:
        DataError: If images cannot be used.
    """
    loaded = {name: load_images(where, classes, columns=columns, whole=True) for name, where in named.items()}
    checkpoint = open_checkpoint(source)
    if checkpoint.note:
        progress.say(checkpoint.note)
    model = load_model(checkpoint)
    on_cpu = accelerator_for(device).device.type == "cpu"
    accuracy = {}
    for name, images in loaded.items():
        progress.stage(f"evaluating {name}")
        for note in images.notes:
            progress.say(note)
        accuracy[name] = zero_shot_accuracy(
            model,
            images,
            templates_for(templates, images.templates),
            device=device,
            batch_size=batch_size,
            images_at_once=images_at_once,
            progress=Pace(progress, _cost(name) if on_cpu else None),
        )
    return {
        "checkpoint": checkpoint.provenance(),
        "accuracy": accuracy,
        "images": {name: len(images) for name, images in loaded.items()},
        "sources": {name: {"source": images.source, "revision": images.revision} for name, images in loaded.items()},
        "templates": list(templates_for(templates, ())),
        "own_templates": own_templates(templates, loaded),
    }
