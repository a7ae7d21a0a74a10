"""Judge recipes as a user runs them: `merge` with its defaults, then the merged model on the test
pictures."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shifts.evaluation import (
    Contestant,
    Evaluation,
    evaluate_pair,
    request_of,
    row_of,
    swept,
)
from benchmarks.shifts.experiment import TrainedPair
from benchmarks.shifts.report import RESULTS
from clipmerge.api.merge import merge
from clipmerge.images.dataset import load_images
from clipmerge.output.record import MergeRecord
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Progress
from clipmerge.report.text import answer_text, headline, texts_of


def add_judging_options(parser: argparse.ArgumentParser, images: int) -> None:
    """Add the options of a command that judges one pair; ``images`` is the default number."""
    parser.add_argument("--results", type=Path, default=RESULTS / "decisions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=images, help="to decide on")
    parser.add_argument("--no-labels", action="store_true", help="decide on images alone")
    parser.add_argument("--recipes", default="auto,straggler-sparse")


def judge_pair(pair: TrainedPair, name: str, given: argparse.Namespace) -> None:
    """Judge a pair by the options of `add_judging_options`, into its JSON file."""
    recipes = [Contestant(load_recipe(recipe, ())) for recipe in given.recipes.split(",")]
    how = Evaluation(images=given.images, labels=not given.no_labels)
    evaluate_pair(pair, recipes, how.file_in(given.results, name), how, judge=judged)


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
        | _said(result.record, pair)
        | {"seconds": round(seconds, 1)}
    )


def _data_of(pair: TrainedPair, how: Evaluation) -> dict[str, Any]:
    """The calibration images of a pair, with their labels or without."""
    if how.labels:
        return {"data": str(pair.calibration)}
    images = load_images(str(pair.calibration))
    names = [name.replace("_", " ") for name in images.class_names]
    return {"data": [images.image(at) for at in range(len(images))], "classes": names}


def _said(record: MergeRecord, pair: TrainedPair) -> dict[str, Any]:
    """What the merge itself says: its verdict, the effect that it measured, and what it chose."""
    shares = [(layer.zeroshot_share or 0.0, layer.size) for layer in record.layers.values()]
    effect = record.effect
    # local paths must not be published
    warnings = [
        text.replace(f"{pair.calibration.parent}/", "") for text in texts_of(record.warnings)
    ]
    return {
        "verdict": headline(record),
        "choice": record.choice and record.choice.model_dump(mode="json"),
        "returned": sum(share * size for share, size in shares) / sum(size for _, size in shares),
        "recommendation": effect and effect.recommendation,
        "effect": effect and answer_text(effect),
        "over_finetuned": effect and effect.over_finetuned.model_dump(mode="json"),
        "warnings": warnings,
    }
