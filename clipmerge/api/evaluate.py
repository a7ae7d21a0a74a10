"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from clipmerge.api._arguments import (
    CheckpointLike,
    ImageOptions,
    calibration_from,
    require_places,
    source_of,
    with_options,
)
from clipmerge.api._in_memory import InMemorySource, as_sources
from clipmerge.api._results import EvaluateResult
from clipmerge.progress import Logged, Progress


@with_options(calibration_from, leave_out=("images",))
def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any],
    *,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Unpack[ImageOptions],
) -> EvaluateResult:
    """Measure zero-shot accuracy: the share of images whose class prompt scores highest.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`.
        processor: For a model in memory: its processor, or the model's open_clip name.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
        **options: See `ImageOptions`; they apply to all sources.

    Returns:
        Accuracy, 0 to 1, and number of images by source.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do next.
    """
    wanted = calibration_from(None, **options)
    sources = {name: source_of(each) for name, each in data.items()}
    from clipmerge.evaluation.accuracy import evaluate_sources

    with as_sources(checkpoint, [], processor) as (source, _):
        require_places((str(source),))
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
