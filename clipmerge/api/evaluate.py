"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipmerge.api._arguments import CheckpointLike, calibration_from, source_of
from clipmerge.api._in_memory import InMemorySource, as_sources
from clipmerge.api._results import EvaluateResult
from clipmerge.progress import Logged, Progress


def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any],
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    template: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    images_at_once: int | None = None,
    device: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    processor: Any = None,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Measure zero-shot accuracy: the share of images whose class prompt scores highest.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or open_clip.
        data: Images by the name that their row has, each as `merge` takes its ``data``.
        classes: File with class names, or the names in the order of the classes; for every source.
        template: One prompt template with ``{}`` for the class, or several, whose embeddings are averaged.
        batch_size: Images per batch; by default at most 128.
        images_at_once: Images that go through the model at once; less memory, the same numbers.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        image_column: Column of the images, where the data have columns and it is not found.
        label_column: The same for the labels.
        processor: For a model in memory: its processor, or open_clip's name of the model.
        progress: Where to report; by default Python's logger ``clipmerge``.

    Returns:
        Accuracy, 0 to 1, and number of images by source.

    Raises:
        ClipmergeError: If anything given cannot be used; one line says what, where and what to do next.
    """
    wanted = calibration_from(
        None,
        classes=classes,
        template=template,
        batch_size=batch_size,
        images_at_once=images_at_once,
        device=device,
        image_column=image_column,
        label_column=label_column,
    )
    sources = {name: source_of(each) for name, each in data.items()}
    from clipmerge.evaluation.accuracy import evaluate_sources

    with as_sources(checkpoint, [], processor) as (source, _):
        record = evaluate_sources(
            source,
            sources,
            classes=wanted.classes,
            templates=wanted.templates,
            batch_size=wanted.batch_size,
            images_at_once=wanted.images_at_once,
            device=wanted.device,
            columns=wanted.columns,
            progress=progress or Logged(),
        )
        if isinstance(source, InMemorySource):
            record["checkpoint"]["source"] = source.called
    return EvaluateResult(record["accuracy"], record["images"], record)
