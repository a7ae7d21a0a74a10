"""Measure models on tasks that they were not fine-tuned for: zero-shot accuracy, and recall of image-text retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.distributed import device_work, together
from clipmerge.evaluation.accuracy import load_model, zero_shot_accuracy
from clipmerge.evaluation.intervals import wilson
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.retrieval import recall_of, text_embeddings
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.evaluation.verdict import moves_of
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.retrieval import CaptionedImages, has_captions, load_captions
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.models.memory import Pieces
from clipmerge.planning.merge_effect import Estimate
from clipmerge.planning.other_tasks import OtherTaskScores, Score

if TYPE_CHECKING:
    from clipmerge.checkpoint import Inputs
    from clipmerge.planning.plan import Plan
    from clipmerge.planning.tensors import PlanTensors
    from clipmerge.progress import Progress

#: Images with classes, or with captions.
Task = LabelledImages | CaptionedImages


def load_task(source: Any, *, most: int | None = None, seed: int = 0) -> Task:
    """Load at most so many images of a task, which keep their own class names and templates: classes or captions."""
    if isinstance(source, str) and has_captions(source):
        captioned = load_captions(source, most=most, seed=seed)
        return captioned if most is None else captioned.sample(most, seed)
    images = load_images(source, whole=most is None, most=most, seed=seed)
    images.require_classes()
    return images if most is None or most >= len(images) else images.sample(most, seed)


def measure_other_tasks(
    inputs: Inputs, plan: Plan, tensors: PlanTensors, tasks: dict[str, Task], settings: EvalSettings, progress: Progress
) -> tuple[OtherTaskScores, ...]:
    """Measure zero-shot, fine-tuned and merged model on every task, with the same result in every process."""
    scores = score_tasks(inputs, moves_of(plan, tensors), tasks, settings, progress)
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
    inputs: Inputs, moves: Sequence[Move], tasks: dict[str, Task], settings: EvalSettings, progress: Progress
) -> dict[str, list[Score]]:
    """Score points of the path on every task: by task, one score per point."""
    labelled = {name: task for name, task in tasks.items() if isinstance(task, LabelledImages)}
    captioned = {name: task for name, task in tasks.items() if isinstance(task, CaptionedImages)}
    model, scores = build_model(inputs), {}
    if labelled:
        for name, right in Scorer(model, inputs, settings).score(moves, labelled, progress).items():
            scores[name] = [accuracy_score(float(row.mean()), len(row)) for row in right]
    if captioned:
        moving = MovingModel(model, inputs, settings.accelerator.device, dtype=settings.dtype)
        for name, images in captioned.items():
            scores[name] = _recalls(moving, model, moves, images, settings, progress)
    return scores


def accuracy_score(accuracy: float, images: int) -> Score:
    """Make a score with an interval from the share of images that were recognised."""
    return Score(accuracy=Estimate(value=accuracy, interval=wilson(accuracy, images)))


@torch.inference_mode()
@device_work()
def _recalls(
    moving: MovingModel,
    model: ImageTextModel,
    moves: Sequence[Move],
    images: CaptionedImages,
    settings: EvalSettings,
    progress: Progress,
) -> list[Score]:
    """Recall at every point; images are decoded once per point, captions embedded only if the text tower changed."""
    texts: Tensor | None = None
    version = -1
    scores = []
    for number, move in enumerate(moves):
        move(moving)
        if texts is None or moving.text_version != version:
            texts = caption_embeddings(model, images, settings.accelerator.device)
            version = moving.text_version
        scores.append(recall_score(model, images, settings, texts, progress))
        progress.advance(number + 1, len(moves))
    return scores


def recall_score(
    model: ImageTextModel, images: CaptionedImages, settings: EvalSettings, texts: Tensor, progress: Progress
) -> Score:
    """Measure the recall of one model on its device, given its `caption_embeddings`."""
    device = settings.accelerator.device
    size = batch_size_for(len(images), settings.batch_size)
    pieces = Pieces(settings.images_at_once, progress.say)
    found: list[tuple[int, Any]] = []
    for number, pixels in read_pixels(images.store, len(images), size, model.pixels, settings.share):
        features = pieces.forward(lambda piece: model.image_features(piece.to(device)).cpu(), pixels)
        found.append((number, features.numpy()))
    if settings.share[1] > 1:
        with together():
            found = gather_object(found)
    features = torch.from_numpy(np.concatenate([rows for _, rows in sorted(found, key=lambda part: part[0])]))
    owners = torch.tensor([number for number, captions in enumerate(images.captions) for _ in captions])
    return Score(recall=recall_of(features, texts, owners))


def caption_embeddings(model: ImageTextModel, images: CaptionedImages, device: torch.device) -> Tensor:
    """Embed all captions, image by image: (captions, width), on the CPU."""
    return text_embeddings(model, [caption for captions in images.captions for caption in captions], device)


@torch.inference_mode()
@device_work()
def evaluate_other_tasks(
    source: str, tasks: dict[str, Task], settings: EvalSettings, progress: Progress
) -> list[dict[str, Any]]:
    """Score one checkpoint on every task: JSON-ready descriptions of the tasks by `facts_of`, with their ``score``."""
    model = load_model(open_checkpoint(source))
    model.module.to(settings.accelerator.device)
    rows = []
    for name, task in tasks.items():
        progress.stage(f"evaluating {name}")
        if isinstance(task, CaptionedImages):
            texts = caption_embeddings(model, task, settings.accelerator.device)
            score = recall_score(model, task, settings, texts, progress)
        else:
            score = accuracy_score(zero_shot_accuracy(model, task, settings, progress), len(task))
        rows.append({**facts_of(name, task), "score": score.model_dump(mode="json", exclude_none=True)})
    return rows
