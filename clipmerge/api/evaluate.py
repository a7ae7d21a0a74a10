"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipmerge.api._in_memory import CheckpointLike, as_sources, open_source
from clipmerge.api._pair import with_state_key
from clipmerge.api._results import EvaluateResult
from clipmerge.checks import check_answers, check_pixels, settle
from clipmerge.errors import UsageError
from clipmerge.options import EvaluateOptions, named_sources
from clipmerge.progress import Journal, Progress
from clipmerge.types import Json, StrPath


def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    *,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> EvaluateResult:
    """Measure zero-shot accuracy, the share of images whose class prompt scores highest, or recall
    for images with captions.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`; or
            texts ``NAME=SOURCE`` or paths, one or several.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.EvaluateOptions`.

    Returns:
        Accuracy or recall, 0 to 1, and number of images by source.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    opts = EvaluateOptions.of(options)
    journal = Journal(progress)
    sources = named_sources("data", data)
    if not sources:
        raise UsageError("nothing to evaluate on: give images with `data` NAME=SOURCE")
    from clipmerge.evaluation.accuracy import evaluate_sources, load_model
    from clipmerge.images.dataset import open_images

    with as_sources([checkpoint], processor) as (address,):
        (named,) = with_state_key([address], opts.state_key)
        opened = open_source(named, model=opts.model)
        loaded = {
            name: open_images(source, opts.classes, columns=opts.columns)
            for name, source in sources.items()
        }
        for note in (*opened.notes, *(n for each in loaded.values() for n in each.notes)):
            journal.warn(note)
        model = load_model(opened)
        for images in loaded.values():
            settle(check_pixels(images, model), opts.allow, journal)
        facts, outcomes = evaluate_sources(model, loaded, opts, journal)
        for name, images in loaded.items():
            for doubt in check_answers(name, images, outcomes[name].correct):
                journal.warn(doubt.text)  # a poor model is no fault of the images
        record: Json = {"checkpoint": opened.provenance(), **facts, "warnings": journal.warnings}
    return EvaluateResult(record["accuracy"], record["images"], record)
