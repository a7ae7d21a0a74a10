"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from clipmerge.api._in_memory import CheckpointLike, as_sources
from clipmerge.api._results import EvaluateResult
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checks import check_answers, check_images, end_accuracy, raise_errors
from clipmerge.config import EvaluateOptions, complete_options, with_options
from clipmerge.errors import UsageError
from clipmerge.files.paths import in_memory_title
from clipmerge.planning.verdict import Estimate
from clipmerge.progress import say_all
from clipmerge.report.text import texts_of
from clipmerge.request import (
    Calibration,
    allowed_checks,
    parse_named,
    require_checkpoints,
    with_state_key,
)
from clipmerge.stats import wilson
from clipmerge.types import Json, StrPath


@with_options(EvaluateOptions)
def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | Sequence[StrPath] | StrPath | None = None,
    **options: Unpack[EvaluateOptions],
) -> EvaluateResult:
    """Measure zero-shot accuracy, the share of images whose class prompt scores highest, or recall
    for images with captions.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`; or
            texts ``NAME=SOURCE`` or paths, one or several.
        **options: See `EvaluateOptions`.

    Returns:
        Accuracy or recall, 0 to 1, and number of images by source.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    settings = complete_options(EvaluateOptions, options)
    wanted = Calibration.from_options(settings)
    sources = parse_named("data", data)
    reports = settings["progress"]
    if not sources:
        raise UsageError("nothing to evaluate on: give images with `data` NAME=SOURCE")
    from clipmerge.evaluation.accuracy import evaluate_sources, load_model
    from clipmerge.images.dataset import open_images
    from clipmerge.images.fingerprints import note_copies

    with as_sources([checkpoint], settings["processor"]) as (source,):
        (address,) = with_state_key([source], settings["state_key"])
        require_checkpoints((str(address),))
        loaded = {
            name: open_images(images, wanted.classes, columns=wanted.columns, whole=True)
            for name, images in sources.items()
        }
        opened = open_checkpoint(str(address), model=settings["model"])
        say_all(reports, texts_of(opened.notes))
        model = load_model(opened)
        for name, images in loaded.items():
            say_all(reports, texts_of(images.notes))
            say_all(reports, texts_of(note_copies(f"`data` {name}", images.store)))
        allow = allowed_checks(settings["allow"])
        pixels = [finding for images in loaded.values() for finding in check_images(images, model)]
        doubts = raise_errors(pixels, allow=allow)
        record = {
            "checkpoint": opened.provenance(),
            **evaluate_sources(model, loaded, wanted, reports),
        }
        answers = [
            end_accuracy(images, share, share, wanted.templates, model="", source=name)
            for name, images in loaded.items()
            for share in [_accuracy_of_source(record, name)]
        ]
        guesses = [finding for ends in answers for finding in check_answers(ends)]
        doubts += guesses
        say_all(reports, texts_of(ends.note() for ends in answers))
        say_all(reports, texts_of(doubts))
        if doubts:
            record["warnings"] = texts_of(doubts)
        record["checkpoint"]["source"] = in_memory_title(source) or record["checkpoint"]["source"]
    return EvaluateResult(record["accuracy"], record["images"], record)


def _accuracy_of_source(record: Json, name: str) -> Estimate:
    """The accuracy, or the recall at 1, of one source of a record."""
    images = record["images"][name]
    if name in record["accuracy"]:
        share = record["accuracy"][name]
    else:
        recall = record["recall"][name]
        share = (recall["image_to_text"]["1"] + recall["text_to_image"]["1"]) / 2
    return Estimate(value=share, interval=wilson(share, images))
