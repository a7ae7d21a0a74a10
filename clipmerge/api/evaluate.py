"""`clipmerge evaluate`: zero-shot accuracy of one checkpoint on several sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from clipmerge.api._arguments import (
    CheckpointLike,
    ImageOptions,
    calibration_from,
    require_places,
    source_of,
    with_options,
)
from clipmerge.api._in_memory import InMemorySource, as_sources, with_state_key
from clipmerge.api._merge_effect import settings_for
from clipmerge.api._other_tasks import load_tasks, tasks_named
from clipmerge.api._results import EvaluateResult
from clipmerge.errors import UsageError
from clipmerge.progress import Logged, Progress
from clipmerge.request import Calibration


@with_options(calibration_from, leave_out=("images", "unlabelled"))
def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | None = None,
    *,
    keep: Mapping[str, Any] | Sequence[str] | None = None,
    state_key: str | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Unpack[ImageOptions],
) -> EvaluateResult:
    """Measure zero-shot accuracy: the share of images whose class prompt scores highest.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or open_clip.
        data: Images by name of their row, each in any form accepted for ``data`` of `merge`.
        keep: Images of other tasks by name, with classes of their own, or with captions; see `docs/keep.md`.
        state_key: Where in the checkpoint's file the weights are, such as ``ema``; the same as ``FILE#ema``.
        processor: For a model in memory: its processor, or the model's open_clip name.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
        **options: See `ImageOptions`; they apply to all sources.

    Returns:
        Accuracy, 0 to 1, and number of images by source; scores of ``keep`` in ``record["kept"]``.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do next.
    """
    wanted = calibration_from(None, **options)
    if data is not None and not isinstance(data, Mapping):
        raise UsageError('evaluate takes its images by name: data={"val": SOURCE}')
    sources = {name: source_of(each) for name, each in (data or {}).items()}
    named, reports = tasks_named(keep), progress or Logged()
    if not sources and not named:
        raise UsageError("nothing to evaluate on: give images with --data NAME=SOURCE or --keep NAME=SOURCE")
    from clipmerge.evaluation.accuracy import evaluate_sources

    with as_sources(checkpoint, [], processor) as (source, _):
        (place,) = with_state_key([source], state_key)
        require_places((str(place),))
        record = evaluate_sources(
            place,
            sources,
            settings_for(wanted),
            classes=wanted.classes,
            columns=wanted.columns,
            progress=reports,
        )
        if named:
            record["kept"] = _kept(place, named, wanted, reports)
        if isinstance(source, InMemorySource):
            record["checkpoint"]["source"] = source.called
    return EvaluateResult(record["accuracy"], record["images"], record)


def _kept(checkpoint: str, named: Mapping[str, Any], wanted: Calibration, progress: Progress) -> list[dict[str, Any]]:
    from clipmerge.evaluation.other_tasks import evaluate_other_tasks

    settings = replace(settings_for(wanted), templates=())  # a task has its own
    return evaluate_other_tasks(checkpoint, load_tasks(named, progress), settings, progress)
