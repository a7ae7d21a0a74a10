"""Judge recipes as a user runs them: `merge` with its defaults, then the merged model on the test
pictures."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shifts.evaluation import Contestant, Evaluation, request_of, row_of, swept
from benchmarks.shifts.experiment import TrainedPair
from clipmerge.api.merge import merge
from clipmerge.images.dataset import load_images
from clipmerge.output.record import MergeRecord
from clipmerge.progress import Progress
from clipmerge.report.text import answer_text, headline, texts_of


def judged(pair: TrainedPair, contestant: Contestant, how: Evaluation) -> dict[str, Any]:
    """The row of one recipe in a pair's JSON file."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "merged"
        begin = time.perf_counter()
        result = merge(
            str(pair.zeroshot),
            str(pair.finetuned),
            contestant.recipe,
            output=output,
            **_data_of(pair, how),
            images=how.images,
            device="cpu",
            seed=how.seed,
            progress=Progress(),
        )
        seconds = time.perf_counter() - begin
        request = replace(
            request_of(pair, how, (), (0.0, 1.0)), points={contestant.name: str(output)}
        )
        swept_record, correct = swept(request)
    (row,) = swept_record["points"]
    right = {name: each[[row["point"]]] for name, each in correct.items()}
    assert result.record is not None  # one process alone
    return (
        row_of(contestant, row, right, request)
        | _said(result.record)
        | {"seconds": round(seconds, 1)}
    )


def _data_of(pair: TrainedPair, how: Evaluation) -> dict[str, Any]:
    """The calibration images of a pair, with their labels or without."""
    if how.labels:
        return {"data": str(pair.calibration)}
    images = load_images(str(pair.calibration))
    names = [name.replace("_", " ") for name in images.class_names]
    return {"data": [images.image(at) for at in range(len(images))], "classes": names}


def _said(record: MergeRecord) -> dict[str, Any]:
    """What the merge itself says: its verdict, the effect that it measured, and what it chose."""
    shares = [(layer.zeroshot_share or 0.0, layer.size) for layer in record.layers.values()]
    effect = record.effect
    return {
        "verdict": headline(record),
        "choice": record.choice and record.choice.model_dump(mode="json"),
        "returned": sum(share * size for share, size in shares) / sum(size for _, size in shares),
        "recommendation": effect and effect.recommendation,
        "effect": effect and answer_text(effect),
        "over_finetuned": effect and effect.over_finetuned.model_dump(mode="json"),
        "warnings": texts_of(record.warnings),
    }
