"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from clipmerge.api._in_memory import CheckpointLike, as_sources
from clipmerge.api._merge_effect import load_tasks
from clipmerge.api._results import EvaluateResult
from clipmerge.checks import EndAccuracy, check_answers, check_images, prompt_note, settle
from clipmerge.config import EvaluateOptions, complete_options, with_options
from clipmerge.errors import UsageError
from clipmerge.progress import say_all
from clipmerge.report.text import texts_of, with_texts
from clipmerge.request import (
    Calibration,
    allowed_checks,
    parse_named,
    require_checkpoints,
    title_of,
    with_state_key,
)


@with_options(EvaluateOptions)
def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | Sequence[str] | None = None,
    **options: Unpack[EvaluateOptions],
) -> EvaluateResult:
    """Measure zero-shot accuracy, the share of images whose class prompt scores highest, or recall
    for images with captions.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`; or
            texts ``NAME=SOURCE``.
        **options: See `EvaluateOptions`.

    Returns:
        Accuracy or recall, 0 to 1, and number of images by source; scores of ``keep`` in
        ``record["other_tasks"]``.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    given = complete_options(EvaluateOptions, options)
    wanted = Calibration.from_options(given)
    if not isinstance(data, (Mapping, list, tuple, type(None))):
        raise UsageError('evaluate takes its images by name: data={"val": SOURCE}')
    sources = parse_named("data", data)
    tasks = parse_named("keep", given["keep"])
    reports = given["progress"]
    if not sources and not tasks:
        raise UsageError(
            "nothing to evaluate on: give images with `data` NAME=SOURCE or `keep` NAME=SOURCE"
        )
    from clipmerge.checkpoint import open_checkpoint
    from clipmerge.evaluation.accuracy import evaluate_sources, load_model
    from clipmerge.images.dataset import LabelledImages, open_images

    with as_sources([checkpoint], given["processor"]) as (source,):
        (place,) = with_state_key([source], given["state_key"])
        require_checkpoints((str(place),))
        loaded = {
            name: open_images(images, wanted.classes, columns=wanted.columns, whole=True)
            for name, images in sources.items()
        }
        opened = open_checkpoint(str(place), model=given["model"])
        say_all(reports, opened.notes)
        model = load_model(opened)
        for images in loaded.values():
            say_all(reports, images.notes)
        allow, strict = allowed_checks(given["allow"]), given["strict"]
        pixels = [finding for images in loaded.values() for finding in check_images(images, model)]
        doubts = settle(pixels, allow=allow, strict=strict)
        record = {
            "checkpoint": opened.provenance(),
            **evaluate_sources(model, loaded, wanted, reports),
        }
        answers = [
            EndAccuracy.of_one(name, images, record["accuracy"][name], wanted.templates)
            for name, images in loaded.items()
            if isinstance(images, LabelledImages)
        ]
        guesses = [finding for ends in answers for finding in check_answers(ends)]
        doubts += settle(guesses, allow=allow, strict=strict)
        say_all(reports, [prompt_note(ends.prompt, ends.source) for ends in answers])
        say_all(reports, texts_of(doubts))
        if doubts:
            record["warnings"] = with_texts([finding.model_dump(mode="json") for finding in doubts])
        if tasks:
            from clipmerge.evaluation.other_tasks import evaluate_other_tasks

            record["other_tasks"] = evaluate_other_tasks(
                model, load_tasks(tasks, reports), wanted, reports
            )
        record["checkpoint"]["source"] = title_of(source) or record["checkpoint"]["source"]
    return EvaluateResult(record["accuracy"], record["images"], record)
