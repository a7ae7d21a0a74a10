"""Zero-shot accuracy of one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipmerge.checkpoint import Checkpoint, open_checkpoint
from clipmerge.distributed import accelerator_for, together
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.families import family_of, tower_of
from clipmerge.files.paths import local_path
from clipmerge.images.batches import batch_size_for, read_batches
from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.models import ImageTextModel, model_for
from clipmerge.models.zero_shot import class_embeddings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clipmerge.images import Columns
    from clipmerge.planning.choices import Device
    from clipmerge.progress import Progress


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Load a full CLIP with its weights, float32.

    Raises:
        CheckpointError: If it is not a full CLIP with its config and processor.
    """
    family = family_of(checkpoint.config, checkpoint.entries)
    keys = {name: key for key, name in family.canonical_names(checkpoint.entries).items()}
    layers = family.layers_of(name for name in keys if family.knows(name))
    if checkpoint.config is None or tower_of(layers.values()) != "full":
        raise CheckpointError(
            f"{checkpoint.source}: evaluating needs a full CLIP with {family.config} beside it; a tower alone has no "
            "zero-shot classes"
        )
    model = model_for(family, checkpoint.config, checkpoint.folder)
    model.load(lambda name: checkpoint.tensor(keys[name]))
    return model


@torch.inference_mode()
def zero_shot_accuracy(
    model: ImageTextModel,
    images: LabelledImages,
    templates: tuple[str, ...],
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> float:
    """Share of images whose best class prompt is the right one.

    Args:
        model: The model, weights loaded.
        images: Labelled images; all are used.
        templates: Prompt templates; class embeddings are averaged over them.
        device: Where to run.
        batch_size: Images a batch.
        progress: Where to report.

    Returns:
        Accuracy in [0, 1].

    Raises:
        DataError: If an image cannot be decoded.
    """
    accelerator = accelerator_for(device)
    model.module.to(accelerator.device)
    classes = class_embeddings(model, images.class_names, templates, accelerator.device)
    share = (accelerator.process_index, accelerator.num_processes)
    right, seen = 0, 0
    for batch in read_batches(images, batch_size_for(len(images), batch_size), model.pixels, share=share):
        right += int((answers(model, batch.pixels.to(accelerator.device), classes) == batch.labels).sum())
        seen += len(batch)
        if progress:
            progress.advance(seen, len(images))
    with together():
        total = accelerator.reduce(torch.tensor(right, device=accelerator.device), "sum")
    return float(total) / len(images)


def answers(model: ImageTextModel, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Give each image the class whose prompts fit it best.

    Args:
        model: The model, weights loaded.
        pixels: (batch, 3, height, width), on the model's device.
        classes: As `class_embeddings` returns them.

    Returns:
        (batch,), class indices, on the CPU.
    """
    return (model.image_features(pixels) @ classes.T).argmax(dim=1).cpu()


def parse_named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``; without a name the source's last part is the name.

    Args:
        text: What the user wrote.

    Raises:
        UsageError: If there is no source.

    Example:
        >>> parse_named_source("val=data/val"), parse_named_source("data/val")
        (('val', 'data/val'), ('val', 'data/val'))
    """
    name, found, source = text.partition("=")
    if not (source if found and name else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    if found and name:
        return name, source
    path = Path(text)
    # what . and .. are called says nothing
    return (local_path(text).resolve().name if path.name in ("", "..") else path.name) or text, text


def evaluate_sources(
    source: str,
    named: list[str],
    *,
    classes: Path | None = None,
    templates: tuple[str, ...],
    batch_size: int | None = None,
    device: Device = "auto",
    columns: Columns | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure one checkpoint on several sources.

    Args:
        source: The checkpoint.
        named: ``NAME=SOURCE`` texts.
        classes: File with class names, for every source.
        templates: Prompt templates.
        batch_size: Images a batch.
        device: Where to run.
        columns: Columns of images and labels that the user named.
        progress: Where to report.

    Returns:
        JSON-ready: ``accuracy`` {name: 0..1}, ``images`` {name: count}, ``sources`` {name: {source, revision}}.

    Raises:
        UsageError: If two sources share a name, or one is empty.
        DataError: If images cannot be used.
    """
    sources = [parse_named_source(text) for text in named]
    if len(dict(sources)) != len(sources):
        raise UsageError("two --data have the same name; write NAME=SOURCE with different names")
    loaded = {name: load_images(where, classes, columns=columns, whole=True) for name, where in sources}
    checkpoint = open_checkpoint(source)
    model = load_model(checkpoint)
    accuracy = {}
    for name, images in loaded.items():
        progress.stage(f"evaluating {name}")
        for note in images.notes:
            progress.say(note)
        accuracy[name] = zero_shot_accuracy(
            model, images, templates, device=device, batch_size=batch_size, progress=progress
        )
    return {
        "checkpoint": checkpoint.provenance(),
        "accuracy": accuracy,
        "images": {name: len(images) for name, images in loaded.items()},
        "sources": {name: {"source": each.source, "revision": each.revision} for name, each in loaded.items()},
        "templates": list(templates),
    }


def accuracy_table(record: dict[str, Any]) -> RenderableType:
    """Lay the accuracies out for a terminal.

    Args:
        record: As `evaluate_sources` returns it.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("source")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for name, value in record["accuracy"].items():
        table.add_row(name, str(record["images"][name]), f"{value:.1%}")
    return table
