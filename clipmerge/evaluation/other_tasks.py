"""Measure models on tasks that they were not fine-tuned for: zero-shot accuracy, and recall of image-text retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.distributed import together
from clipmerge.evaluation.accuracy import load_model, zero_shot_accuracy
from clipmerge.evaluation.intervals import wilson
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.retrieval import recall_of, text_embeddings
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.verdict import moves_of
from clipmerge.images.batches import batch_size_for
from clipmerge.images.dataset import LabelledImages, load_images
from clipmerge.images.prompts import templates_for
from clipmerge.images.retrieval import CaptionedImages, has_captions, load_captions
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.planning.merge_effect import Estimate
from clipmerge.planning.other_tasks import OtherTaskScores, Score

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipmerge.checkpoint import Inputs
    from clipmerge.planning.plan import Plan
    from clipmerge.planning.tensors import PlanTensors
    from clipmerge.progress import Progress

#: Images with classes, or with captions.
Task = LabelledImages | CaptionedImages


@dataclass(frozen=True)
class Place:
    """How images go through the model.

    Attributes:
        accelerator: Places the model, and gathers the results of several processes.
        batch_size: Images per batch; ``None`` for the default.
        images_at_once: Images that go through the model at once; ``None`` for a batch.
    """

    accelerator: Accelerator
    batch_size: int | None = None
    images_at_once: int | None = None


def load_task(source: Any, *, most: int | None = None, seed: int = 0) -> Task:
    """Find the images of a task, which keep their own class names and templates.

    Args:
        source: Images with classes, in a form that `load_images` accepts, or with captions, for `load_captions`.
        most: Maximum number of images, sampled; ``None`` for all.
        seed: Seed of the sample.

    Raises:
        DataError: If the images cannot be used.
        HubError: If the Hub refuses or cannot be reached.
    """
    if isinstance(source, str) and has_captions(source):
        captioned = load_captions(source, most=most, seed=seed)
        return captioned if most is None else captioned.sample(most, seed)
    images = load_images(source, whole=most is None, most=most, seed=seed)
    images.require_classes()
    return images if most is None or most >= len(images) else images.sample(most, seed)


def measure_other_tasks(
    inputs: Inputs, plan: Plan, tensors: PlanTensors, tasks: dict[str, Task], place: Place, progress: Progress
) -> tuple[OtherTaskScores, ...]:
    """Measure zero-shot, fine-tuned and merged model on every task.

    Args:
        inputs: The checkpoints.
        plan: The coefficients and masks of the layers.
        tensors: The plan's scores and coefficients.
        tasks: The tasks by name.
        place: How images go through the model.
        progress: Receiver of progress reports.

    Returns:
        One record per task, the same in every process.

    Raises:
        CheckpointError: If the checkpoints cannot be evaluated.
        DataError: If an image cannot be decoded.
    """
    scores = score_tasks(inputs, moves_of(plan, tensors), tasks, place, progress)
    return tuple(
        OtherTaskScores(
            **facts_of(name, task),
            zeroshot=scores[name][0],
            finetuned=tuple(scores[name][1:-1]),
            merged=scores[name][-1],
            plan=plan.digest,
        )
        for name, task in tasks.items()
    )


def facts_of(name: str, task: Task) -> dict[str, Any]:
    """Describe a task for an `OtherTaskScores` record.

    Args:
        name: Its name.
        task: Its images.
    """
    facts = {"name": name, "source": task.source, "revision": task.revision, "images": len(task)}
    if isinstance(task, CaptionedImages):
        return {**facts, "kind": "retrieval", "captions": sum(map(len, task.captions))}
    return {**facts, "kind": "accuracy", "classes": len(task.class_names)}


def score_tasks(
    inputs: Inputs,
    moves: Sequence[Move],
    tasks: dict[str, Task],
    place: Place,
    progress: Progress,
    *,
    dtype: Any = "keep",
) -> dict[str, list[Score]]:
    """Score points of the path on every task.

    Args:
        inputs: The checkpoints.
        moves: Functions that move the model to each point.
        tasks: The tasks by name.
        place: How images go through the model.
        progress: Receiver of progress reports.
        dtype: Dtype that the points are rounded to.

    Returns:
        Scores by task, one per point.
    """
    labelled = {name: task for name, task in tasks.items() if isinstance(task, LabelledImages)}
    captioned = {name: task for name, task in tasks.items() if isinstance(task, CaptionedImages)}
    model, scores = build_model(inputs), {}
    if labelled:
        scorer = Scorer(
            model,
            inputs,
            place.accelerator,
            templates=(),
            batch_size=place.batch_size,
            images_at_once=place.images_at_once,
            dtype=dtype,
        )
        for name, right in scorer.score(moves, labelled, progress).items():
            scores[name] = [accuracy_score(float(row.mean()), len(row)) for row in right]
    if captioned:
        moving = MovingModel(model, inputs, place.accelerator.device, dtype=dtype)
        for name, images in captioned.items():
            scores[name] = _recalls(moving, model, moves, images, place, progress)
    return scores


def accuracy_score(accuracy: float, images: int) -> Score:
    """Make a score from an accuracy, with its interval.

    Args:
        accuracy: Share of the images, from 0 to 1.
        images: Number of images.
    """
    return Score(accuracy=Estimate(value=accuracy, interval=wilson(accuracy, images)))


@torch.inference_mode()
def _recalls(
    moving: MovingModel,
    model: ImageTextModel,
    moves: Sequence[Move],
    images: CaptionedImages,
    place: Place,
    progress: Progress,
) -> list[Score]:
    """Recall at every point; images are decoded once per point, captions embedded only if the text tower changed."""
    texts: Tensor | None = None
    version = -1
    scores = []
    for number, move in enumerate(moves):
        move(moving)
        if texts is None or moving.text_version != version:
            texts = text_embeddings(model, _texts(images), place.accelerator.device)
            version = moving.text_version
        scores.append(recall_score(model, images, place, texts))
        progress.advance(number + 1, len(moves))
    return scores


def recall_score(model: ImageTextModel, images: CaptionedImages, place: Place, texts: Tensor | None = None) -> Score:
    """Measure the recall of one model.

    Args:
        model: The model, weights loaded, on its device.
        images: Images with captions.
        place: How images go through the model.
        texts: Embedded captions, image by image; ``None`` to embed them.

    Raises:
        DataError: If an image cannot be decoded.
    """
    device = place.accelerator.device
    if texts is None:
        texts = text_embeddings(model, _texts(images), device)
    rank, world = place.accelerator.process_index, place.accelerator.num_processes
    size = batch_size_for(len(images), place.batch_size)
    found: list[tuple[int, Any]] = []
    for number, start in enumerate(range(0, len(images), size)):
        if number % world == rank:
            stop = min(start + size, len(images))
            pixels = model.pixels([images.image(position) for position in range(start, stop)])
            pieces = torch.split(pixels, place.images_at_once or len(pixels))
            found += [(start, torch.cat([model.image_features(each.to(device)).cpu() for each in pieces]).numpy())]
    if world > 1:
        with together():
            found = gather_object(found)
    features = torch.from_numpy(np.concatenate([rows for _, rows in sorted(found, key=lambda part: part[0])]))
    owners = torch.tensor([number for number, own in enumerate(images.captions) for _ in own])
    return Score(recall=recall_of(features, texts, owners))


def _texts(images: CaptionedImages) -> list[str]:
    return [caption for own in images.captions for caption in own]


@torch.inference_mode()
def evaluate_other_tasks(source: str, tasks: dict[str, Task], place: Place, progress: Progress) -> list[dict[str, Any]]:
    """Score one checkpoint on every task.

    Args:
        source: The checkpoint.
        tasks: The tasks by name.
        place: How images go through the model.
        progress: Receiver of progress reports.

    Returns:
        JSON-ready: a description of each task, as `facts_of` makes it, with its ``score``.

    Raises:
        CheckpointError: If the checkpoint cannot be evaluated.
        DataError: If an image cannot be decoded.
    """
    model = load_model(open_checkpoint(source))
    model.module.to(place.accelerator.device)
    rows = []
    for name, task in tasks.items():
        progress.stage(f"evaluating {name}")
        if isinstance(task, CaptionedImages):
            score = recall_score(model, task, place)
        else:
            device: Any = place.accelerator.device.type
            sizes = {"batch_size": place.batch_size, "images_at_once": place.images_at_once}
            templates = templates_for((), task.templates)
            right = zero_shot_accuracy(model, task, templates, device=device, **sizes, progress=progress)
            score = accuracy_score(right, len(task))
        rows.append({**facts_of(name, task), "score": score.model_dump(mode="json", exclude_none=True)})
    return rows
