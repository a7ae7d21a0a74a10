"""Judge recipes as a user runs them: `merge` with its defaults, then the merged model on the test pictures."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shifts.evaluation import (
    Contestant,
    Evaluation,
    curve_record,
    request_of,
    row_of,
    swept,
    write_record,
)
from benchmarks.shifts.experiment import TrainedPair
from clipmerge.api.merge import merge
from clipmerge.output.record import MergeRecord
from clipmerge.progress import Silent

_LOG = logging.getLogger("benchmarks")


def judge_pair(
    pair: TrainedPair, entered: Sequence[Contestant], file: Path, how: Evaluation, *, again: Collection[str] = ()
) -> None:
    """Judge recipes on one pair into its JSON file: the curve once, and every recipe that it lacks in these settings.

    Args:
        pair: The pair.
        entered: The recipes.
        file: The JSON file, written after every recipe.
        how: Settings for every pair.
        again: Names of recipes to judge again.
    """
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    told = how.told | {"made_of": pair.made_of}
    if {key: record.get(key) for key in told} != told:
        record = curve_record(pair, how)
        write_record(record, file)
    had = {row["name"]: row["settings"] for row in record["recipes"]}
    for each in entered:
        if each.is_for(pair.name) and (each.name in again or had.get(each.name) != each.settings):
            row = _row(pair, each, how)
            record["recipes"] = [other for other in record["recipes"] if other["name"] != each.name] + [row]
            write_record(record, file)
            _LOG.info("%s: %s decided in %.0f s", file.stem, each.name, row["seconds"])


def _row(pair: TrainedPair, contestant: Contestant, how: Evaluation) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "merged"
        begin = time.perf_counter()
        result = merge(
            str(pair.zeroshot),
            str(pair.finetuned),
            contestant.recipe,
            output=output,
            data=str(pair.calibration),
            images=contestant.images or how.images,
            device="cpu",
            seed=how.seed,
            progress=Silent(),
        )
        seconds = time.perf_counter() - begin
        request = replace(request_of(pair, how, (), (0.0, 1.0)), points={contestant.name: str(output)})
        swept_record, correct = swept(request)
    (row,) = swept_record["points"]
    right = {name: each[[row["point"]]] for name, each in correct.items()}
    assert result.record is not None  # one process alone
    return row_of(contestant, row, right, request) | _said(result.record) | {"seconds": round(seconds, 1)}


def _said(record: MergeRecord) -> dict[str, Any]:
    """What the merge itself says: its verdict, the effect that it measured, and what it chose."""
    shares = [(layer.zeroshot_share or 0.0, layer.size) for layer in record.layers.values()]
    effect = record.bought
    return {
        "verdict": record.verdict,
        "choice": record.choice and record.choice.model_dump(mode="json"),
        "returned": sum(share * size for share, size in shares) / sum(size for _, size in shares),
        "recommendation": effect and effect.recommendation,
        "effect": effect and effect.verdict,
        "warnings": list(record.warnings),
    }
