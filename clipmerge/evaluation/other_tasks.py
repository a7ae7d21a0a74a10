"""Measure models on tasks that they were not fine-tuned for: zero-shot accuracy, and recall of
image-text retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.distributed import device_work, peer_errors
from clipmerge.evaluation.accuracy import zero_shot_accuracy
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.evaluation.verdict import estimate, moves_of
from clipmerge.files.limits import LONGEST_PROMPT
from clipmerge.images.batches import batch_size_for, read_pixels
from clipmerge.images.dataset import CaptionedImages, LabelledImages, open_images
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.models.memory import Pieces
from clipmerge.planning.other_tasks import RANKS, OtherTaskScores, Recall, Score
from clipmerge.planning.plan import Plan
from clipmerge.progress import Progress

# Scores computed at once.
_SCORES = 1 << 24
_TEXTS_AT_ONCE = 256
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
        moving = MovingModel(model, inputs, settings.context.device, dtype=settings.dtype)
        for name, images in captioned.items():
            scores[name] = _recalls(moving, model, moves, images, settings, progress)
    return scores


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
    """Recall at every point; images are decoded once per point, captions embedded only if the text
    tower changed.
    """
    scores, version = list[Score](), -1
    for number, move in enumerate(moves):
        move(moving)
        if moving.text_version != version:
            texts, version = (
                caption_embeddings(model, images, settings.context.device),
                moving.text_version,
            )
        scores.append(recall_score(model, images, settings, texts, progress))
        progress.advance(number + 1, len(moves))
    return scores


def recall_score(
    model: ImageTextModel,
    images: CaptionedImages,
    settings: EvalSettings,
    texts: Tensor,
    progress: Progress,
) -> Score:
    """Measure the recall of one model on its device, given its `caption_embeddings`."""
    device = settings.context.device
    size = batch_size_for(len(images), settings.batch_size)
    pieces = Pieces(settings.images_at_once, progress.say)
    found: list[tuple[int, Any]] = []
    for number, pixels in read_pixels(
        images.store, len(images), size, model.pixels, settings.share
    ):
        features = pieces.forward(
            lambda piece: model.image_features(piece.to(device)).cpu(), pixels
        )
        found.append((number, features.numpy()))
    if settings.share[1] > 1:
        with peer_errors():
            found = gather_object(found)
    features = torch.from_numpy(
        np.concatenate([rows for _, rows in sorted(found, key=lambda part: part[0])])
    )
    owners = torch.tensor(
        [number for number, captions in enumerate(images.captions) for _ in captions]
    )
    return Score(recall=recall_of(features, texts, owners))


def caption_embeddings(
    model: ImageTextModel, images: CaptionedImages, device: torch.device
) -> Tensor:
    """Embed all captions, image by image, cut off where too long: (captions, width), unit length,
    on the CPU.
    """
    captions = [caption for captions in images.captions for caption in captions]
    pieces = []
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        # the time that some tokenizers take for one word grows with the square of its length
        tokens = model.tokens(
            [caption[:LONGEST_PROMPT] for caption in captions[start : start + _TEXTS_AT_ONCE]]
        )
        pieces.append(
            model.text_features({key: value.to(device) for key, value in tokens.items()}).cpu()
        )
    return torch.cat(pieces)


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
            texts = caption_embeddings(model, task, settings.context.device)
            score = recall_score(model, task, settings, texts, progress)
        else:
            accuracy = zero_shot_accuracy(model, task, settings, progress)
            score = Score(accuracy=estimate(accuracy, len(task)))
        rows.append(
            {**facts_of(name, task), "score": score.model_dump(mode="json", exclude_none=True)}
        )
    return rows


def recall_of(
    images: Tensor, texts: Tensor, owners: Tensor, *, ranks: Sequence[int] = RANKS
) -> Recall:
    """Compute recall at K.

    An image is found by a caption if it is among the K images that match the caption best; a
    caption is found by an image if one of the image's own captions is among the K captions that
    match the image best. Of equal scores, the first counts as better, so that a model that scores
    everything equally is at chance level.

    ``images`` are (images, width) and ``texts`` (captions, width), both of unit length; ``owners``
    (captions,) has the image of each caption, and every image has one or more.
    """
    numbers = torch.arange(len(images), device=images.device)
    of_images, of_texts = (
        _ranks(images, texts, numbers, owners),
        _ranks(texts, images, owners, numbers),
    )
    return Recall(
        image_to_text={str(rank): int((of_images < rank).sum()) / len(of_images) for rank in ranks},
        text_to_image={str(rank): int((of_texts < rank).sum()) / len(of_texts) for rank in ranks},
    )


def _ranks(rows: Tensor, columns: Tensor, row_owners: Tensor, column_owners: Tensor) -> Tensor:
    """For each row, the number of columns that match better than the best of its own, those of its
    owner: (rows,).
    """
    positions = torch.arange(len(columns), device=columns.device)
    block = max(1, _SCORES // len(columns))
    ranks = []
    for start in range(0, len(rows), block):
        scores = rows[start : start + block] @ columns.T
        own = column_owners == row_owners[start : start + block, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        first = torch.where(own & (scores == best), positions, len(columns)).amin(
            dim=1, keepdim=True
        )
        ranks.append(((scores > best) | ((scores == best) & (positions < first))).sum(dim=1))
    return torch.cat(ranks)
