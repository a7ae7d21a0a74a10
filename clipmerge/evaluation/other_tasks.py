"""Measure models on tasks that they were not fine-tuned for: zero-shot accuracy, and recall of
image-text retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clipmerge.checkpoint import Inputs
from clipmerge.distributed import device_work
from clipmerge.evaluation.accuracy import zero_shot_accuracy
from clipmerge.evaluation.recall import recall_of_model, score_captions
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.evaluation.verdict import estimate, moves_of
from clipmerge.images.dataset import CaptionedImages, LabelledImages, open_images
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.planning.other_tasks import OtherTaskScores, Score
from clipmerge.planning.plan import Plan
from clipmerge.progress import Progress

#: Images with classes, or with captions.
Task = LabelledImages | CaptionedImages


def load_task(source: Any, *, most: int | None = None, seed: int = 0) -> Task:
    """Load at most so many images of a task, which keep their own class names and templates:
    classes or captions.
    """
    images = open_images(source, whole=most is None, most=most, seed=seed)
    if isinstance(images, LabelledImages):
        images.require_classes()
    return images if most is None or most >= len(images) else images.sample(most, seed)


def measure_other_tasks(
    inputs: Inputs, plan: Plan, tasks: dict[str, Task], settings: EvalSettings, progress: Progress
) -> tuple[OtherTaskScores, ...]:
    """Measure zero-shot, fine-tuned and merged model on every task, with the same result in every
    process.
    """
    scores = score_tasks(inputs, moves_of(plan), tasks, settings, progress)
    return tuple(
        OtherTaskScores(
            **facts_of(name, task),
            zeroshot=scores[name][0],
            finetuned=tuple(scores[name][1:-1]),
            merged=scores[name][-1],
        )
        for name, task in tasks.items()
    )


def facts_of(name: str, task: Task) -> dict[str, Any]:
    """Describe a task for an `OtherTaskScores` record."""
    facts = {"name": name, "source": task.source, "revision": task.revision, "images": len(task)}
    if isinstance(task, CaptionedImages):
        return {**facts, "kind": "retrieval", "captions": sum(map(len, task.captions))}
    return {**facts, "kind": "accuracy", "classes": len(task.class_names)}


def score_tasks(
    inputs: Inputs,
    moves: Sequence[Move],
    tasks: dict[str, Task],
    settings: EvalSettings,
    progress: Progress,
) -> dict[str, list[Score]]:
    """Score points of the path on every task: by task, one score per point."""
    labelled = {name: task for name, task in tasks.items() if isinstance(task, LabelledImages)}
    captioned = {name: task for name, task in tasks.items() if isinstance(task, CaptionedImages)}
    model, scores = build_model(inputs), {}
    if labelled:
        for name, right in Scorer(model, inputs, settings).score(moves, labelled, progress).items():
            scores[name] = [Score(accuracy=estimate(float(row.mean()), len(row))) for row in right]
    if captioned:
        found = score_captions(model, inputs, moves, captioned, settings, progress)
        for name, outcomes in found.items():
            scores[name] = [Score(recall=outcome.recall) for outcome in outcomes]
    return scores


@torch.inference_mode()
@device_work()
def evaluate_other_tasks(
    model: ImageTextModel, tasks: dict[str, Task], settings: EvalSettings, progress: Progress
) -> list[dict[str, Any]]:
    """Score one model on every task: JSON-ready descriptions of the tasks by `facts_of`, with their
    ``score``.
    """
    model.module.to(settings.context.device)
    rows = []
    for name, task in tasks.items():
        progress.stage(f"evaluating {name}")
        if isinstance(task, CaptionedImages):
            score = Score(recall=recall_of_model(model, task, settings, progress).recall)
        else:
            accuracy = zero_shot_accuracy(model, task, settings, progress)
            score = Score(accuracy=estimate(accuracy, len(task)))
        rows.append(
            {**facts_of(name, task), "score": score.model_dump(mode="json", exclude_none=True)}
        )
    return rows
