"""Measure models on tasks that they were not fine-tuned for: zero-shot accuracy, and recall of
image-text retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clipmerge.checkpoint import Inputs
from clipmerge.config import OutputDtype
from clipmerge.errors import DataError, NoLabelsError
from clipmerge.evaluation.effect import estimate, moves_of
from clipmerge.evaluation.scorer import Images, Move, Outcome, Scorer
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.planning.merge_effect import Estimate
from clipmerge.planning.other_tasks import OtherTaskScores, Score
from clipmerge.planning.plan import Plan
from clipmerge.progress import Progress
from clipmerge.request import Calibration
from clipmerge.types import Json


def load_task(source: Any, *, max_images: int | None = None, seed: int = 0) -> Images:
    """Load at most so many images of a task, which keep their own class names and templates:
    classes or captions.
    """
    try:
        images = open_images(source, whole=max_images is None, max_images=max_images, seed=seed)
    except NoLabelsError as error:
        raise DataError(
            f"{error}; they are about `data`, so in `ood` call the column 'label' or 'caption'"
        ) from None
    if isinstance(images, LabelledImages):
        images.require_classes()
    return (
        images
        if max_images is None or max_images >= len(images)
        else images.sample(max_images, seed)
    )


def measure_other_tasks(
    inputs: Inputs, plan: Plan, tasks: dict[str, Images], settings: Calibration, progress: Progress
) -> tuple[OtherTaskScores, ...]:
    """Measure zero-shot, fine-tuned and merged model on every task, with the same result in every
    process.
    """
    scores = score_tasks(inputs, moves_of(plan), tasks, settings, progress)
    return tuple(
        OtherTaskScores(
            **task_facts(name, task),
            zeroshot=scores[name][0],
            finetuned=tuple(scores[name][1:-1]),
            merged=scores[name][-1],
        )
        for name, task in tasks.items()
    )


def task_facts(name: str, task: Images) -> Json:
    """Describe a task for an `OtherTaskScores` record."""
    facts = {"name": name, "source": task.source, "revision": task.revision, "images": len(task)}
    if isinstance(task, CaptionedImages):
        return {**facts, "kind": "retrieval", "captions": task.caption_count}
    return {**facts, "kind": "accuracy", "classes": len(task.class_names)}


def score_tasks(
    inputs: Inputs,
    moves: Sequence[Move],
    tasks: dict[str, Images],
    settings: Calibration,
    progress: Progress,
    *,
    dtype: OutputDtype = "keep",
) -> dict[str, list[Score]]:
    """Score points of the path on every task, each with its own templates: by task, one score per
    point.
    """
    settings = replace(settings, templates=())
    scorer = Scorer(build_model(inputs), inputs, settings, dtype=dtype)
    outcomes_by_task = scorer.score(moves, tasks, scorer.pace(moves, tasks, progress))
    return {
        name: [score_from_outcome(outcome) for outcome in outcomes]
        for name, outcomes in outcomes_by_task.items()
    }


def score_from_outcome(outcome: Outcome) -> Score:
    """The recall, or the accuracy with its interval."""
    if outcome.recall:
        return Score(recall=outcome.recall)
    return Score(accuracy=estimate(float(outcome.correct.mean()), len(outcome.correct)))


def accuracy_or_recall(score: Score, images: int) -> Estimate:
    """The accuracy, or the recall at 1, the mean of both ways, on so many images."""
    if score.recall is None:
        assert score.accuracy is not None  # a score has one of both
        return score.accuracy
    ways = (score.recall.image_to_text["1"], score.recall.text_to_image["1"])
    return estimate(sum(ways) / 2, images)


def evaluate_other_tasks(
    model: ImageTextModel, tasks: dict[str, Images], settings: Calibration, progress: Progress
) -> list[Json]:
    """Score one model on every task: descriptions by `task_facts`, with their score."""
    scorer = Scorer(model, None, replace(settings, templates=()), load_bytes=0)
    rows = []
    for name, task in tasks.items():
        progress.stage(f"evaluating {name}")
        score = score_from_outcome(scorer.score_one(task, progress))
        rows.append(
            {**task_facts(name, task), "score": score.model_dump(mode="json", exclude_none=True)}
        )
    return rows
