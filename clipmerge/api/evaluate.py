"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from clipmerge.api._in_memory import CheckpointLike, as_sources
from clipmerge.api._merge_effect import load_tasks, settings_for
from clipmerge.api._results import EvaluateResult
from clipmerge.config import EvaluateOptions, complete_options, with_options
from clipmerge.errors import UsageError
from clipmerge.progress import Logged, Progress
from clipmerge.request import (
    Calibration,
    parse_named,
    require_checkpoints,
    title_of,
    with_state_key,
)


@with_options(EvaluateOptions)
def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Unpack[EvaluateOptions],
) -> EvaluateResult:
    """Measure zero-shot accuracy, the share of images whose class prompt scores highest, or recall
    for images with captions.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`; or
            texts ``NAME=SOURCE``.
        processor: For a model in memory: its processor, or the model's open_clip name.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
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
    sources, tasks, reports = (
        parse_named("data", data),
        parse_named("keep", given["keep"]),
        progress or Logged(),
    )
    if not sources and not tasks:
        raise UsageError(
            "nothing to evaluate on: give images with `data` NAME=SOURCE or `keep` NAME=SOURCE"
        )
    from clipmerge.evaluation.accuracy import evaluate_sources

    with as_sources([checkpoint], processor) as (source,):
        (place,) = with_state_key([source], given["state_key"])
        require_checkpoints((str(place),))
        record, model = evaluate_sources(
            place,
            sources,
            settings_for(wanted),
            classes=wanted.classes,
            columns=wanted.columns,
            progress=reports,
            architecture=given["model"],
        )
        if tasks:
            from clipmerge.evaluation.other_tasks import evaluate_other_tasks

            settings = settings_for(wanted, of_tasks=True)
            record["other_tasks"] = evaluate_other_tasks(
                model, load_tasks(tasks, reports), settings, reports
            )
        record["checkpoint"]["source"] = title_of(source) or record["checkpoint"]["source"]
    return EvaluateResult(record["accuracy"], record["images"], record)
