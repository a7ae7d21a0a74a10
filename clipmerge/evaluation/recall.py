"""Recall of image-text retrieval: of one model, or at many points of the path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.distributed import device_work, peer_errors, to_device
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.scorer import Move, loads
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.files.limits import LONGEST_PROMPT
from clipmerge.images.batches import Batch, batch_size_for, read_pixels
from clipmerge.images.dataset import CaptionedImages
from clipmerge.models import ImageTextModel
from clipmerge.models.memory import MicroBatcher, freed_memory_kept
from clipmerge.planning.other_tasks import RANKS, Recall
from clipmerge.progress import Progress

#: Captions whose images are shown, and images shown for each.
EXAMPLES, FOUND = 4, 3
# Scores computed at once.
_SCORES = 1 << 24
_TEXTS_AT_ONCE = 256
# Bytes of preprocessed images in memory at once; every point embeds them before more are decoded.
_LOAD_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class RetrievalOutcome:
    """How well one model finds images by captions and captions by images.

    Attributes:
        recall: Recall at K, both ways.
        by_image: For each image, (images,), float64: the mean of two shares, whether its best
            caption is its own, and of its captions those of which it is the best image.
        best: For each image, (images,), the index of its best caption among all captions.
        found: For the first caption of each of the first images, (examples, `FOUND`), its best
            images, best first.
    """

    recall: Recall
    by_image: NDArray[np.float64]
    best: NDArray[np.int64]
    found: NDArray[np.int64]


@torch.inference_mode()
@device_work()
def recall_of_model(
    model: ImageTextModel, images: CaptionedImages, settings: EvalSettings, progress: Progress
) -> RetrievalOutcome:
    """Measure the recall of one model."""
    device = settings.context.device
    model.module.to(device)
    texts = caption_embeddings(model, images.captions, device)
    pieces = MicroBatcher(settings.images_at_once, progress.say)
    rows: list[tuple[int, Any]] = []
    done = 0
    for start, pixels in _batches(images, model, settings):
        features = pieces.forward(model.image_features, to_device(pixels, device))
        rows.append((start, features.cpu().numpy()))
        done += len(pixels)
        progress.advance(done, len(images) / settings.share[1])
    return _outcome(_gathered(rows, settings), texts, images)


@torch.inference_mode()
@device_work()
@freed_memory_kept()
def score_captions(
    model: ImageTextModel,
    inputs: Inputs,
    moves: Sequence[Move],
    sources: dict[str, CaptionedImages],
    settings: EvalSettings,
    progress: Progress,
    *,
    load_bytes: int = _LOAD_BYTES,
) -> dict[str, list[RetrievalOutcome]]:
    """Measure the recall at points of the path: by source, one outcome per point.

    Every image is decoded once, and captions are embedded again only if the text tower moved.
    """
    device = settings.context.device
    images = sum(map(len, sources.values()))
    moving = MovingModel(model, inputs, device, dtype=settings.dtype)
    pieces = MicroBatcher(settings.images_at_once, progress.say)
    rows: dict[tuple[str, int], list[tuple[int, Any]]] = {
        (name, number): [] for name in sources for number in range(len(moves))
    }
    texts: dict[tuple[int, tuple[tuple[str, ...], ...]], Tensor] = {}
    last: dict[tuple[tuple[str, ...], ...], tuple[int, Tensor]] = {}
    done, total = 0, len(moves) * images / settings.share[1]
    for load in loads(_source_batches(sources, model, settings), load_bytes):
        for number, move in enumerate(moves):
            move(moving)
            for name, start, batch in load:
                captions = sources[name].captions
                if (number, captions) not in texts:
                    if captions not in last or last[captions][0] != moving.text_version:
                        embedded = caption_embeddings(model, captions, device)
                        last[captions] = moving.text_version, embedded
                    texts[number, captions] = last[captions][1]
                features = pieces.forward(model.image_features, to_device(batch.pixels, device))
                rows[name, number].append((start, features.cpu().numpy()))
                done += len(batch)
                progress.advance(done, total)
    if settings.share[1] > 1:  # a process without a batch has embedded no captions
        for number, move in enumerate(moves):
            for captions in {each.captions for each in sources.values()}:
                if (number, captions) not in texts:
                    move(moving)
                    texts[number, captions] = caption_embeddings(model, captions, device)
    return {
        name: [
            _outcome(
                _gathered(rows[name, number], settings), texts[number, images.captions], images
            )
            for number in range(len(moves))
        ]
        for name, images in sources.items()
    }


def _batches(
    images: CaptionedImages, model: ImageTextModel, settings: EvalSettings
) -> Iterator[tuple[int, Tensor]]:
    """This process's batches: the position of the first image, and the pixels."""
    size = batch_size_for(len(images), settings.batch_size)
    for number, pixels in read_pixels(
        images.store, len(images), size, model.pixels, settings.share
    ):
        yield number * size, pixels


def _source_batches(
    sources: dict[str, CaptionedImages], model: ImageTextModel, settings: EvalSettings
) -> Iterator[tuple[str, int, Batch]]:
    for name, images in sources.items():
        for start, pixels in _batches(images, model, settings):
            yield name, start, Batch(start, pixels, torch.arange(start, start + len(pixels)))


def _gathered(rows: list[tuple[int, Any]], settings: EvalSettings) -> Tensor:
    """The image features of all processes in order, (images, width)."""
    if settings.share[1] > 1:
        with peer_errors():
            rows = gather_object(rows)
    return torch.from_numpy(
        np.concatenate([part for _, part in sorted(rows, key=lambda part: part[0])])
    )


def caption_embeddings(
    model: ImageTextModel, captions: Sequence[Sequence[str]], device: torch.device
) -> Tensor:
    """Embed all captions, image by image, cut off where too long: (captions, width), unit length,
    on the CPU.
    """
    texts = [text for of_image in captions for text in of_image]
    pieces = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        # the time that some tokenizers take for one word grows with the square of its length
        tokens = model.tokens(
            [text[:LONGEST_PROMPT] for text in texts[start : start + _TEXTS_AT_ONCE]]
        )
        pieces.append(
            model.text_features({key: value.to(device) for key, value in tokens.items()}).cpu()
        )
    return torch.cat(pieces)


def _outcome(features: Tensor, texts: Tensor, images: CaptionedImages) -> RetrievalOutcome:
    """Compare the features of all images, (images, width), with those of all captions."""
    owners = torch.tensor(
        [number for number, captions in enumerate(images.captions) for _ in captions]
    )
    numbers = torch.arange(len(images))
    of_images, best = _ranks(features, texts, numbers, owners)
    of_texts, _ = _ranks(texts, features, owners, numbers)
    captions = torch.bincount(owners, minlength=len(images))
    found = torch.bincount(owners, (of_texts == 0).double(), minlength=len(images)) / captions
    by_image = ((of_images == 0).double() + found) / 2
    shown = texts[torch.searchsorted(owners, numbers[:EXAMPLES])] @ features.T
    return RetrievalOutcome(
        _recall(of_images, of_texts, RANKS),
        by_image.numpy(),
        best.numpy(),
        shown.topk(min(FOUND, len(images))).indices.numpy(),
    )


def _recall(of_images: Tensor, of_texts: Tensor, ranks: Sequence[int]) -> Recall:
    return Recall(
        image_to_text={str(rank): int((of_images < rank).sum()) / len(of_images) for rank in ranks},
        text_to_image={str(rank): int((of_texts < rank).sum()) / len(of_texts) for rank in ranks},
    )


def recall_of(
    images: Tensor, texts: Tensor, owners: Tensor, *, ranks: Sequence[int] = RANKS
) -> Recall:
    """Compute recall at K from the arguments of `retrieval_ranks`."""
    return _recall(*retrieval_ranks(images, texts, owners), ranks)


def retrieval_ranks(images: Tensor, texts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of each image's best own caption among all captions, and of each caption's image.

    An image is found by a caption if it is among the K images that match the caption best; a
    caption is found by an image if one of the image's own captions is among the K captions that
    match the image best. Of equal scores, the first counts as better, so that a model that scores
    everything equally is at chance level.

    Args:
        images: Image features, (images, width), of unit length.
        texts: Caption features, (captions, width), of unit length.
        owners: Image of each caption, (captions,); every image has one or more.

    Returns:
        Ranks from 0: (images,) and (captions,).
    """
    numbers = torch.arange(len(images), device=images.device)
    return _ranks(images, texts, numbers, owners)[0], _ranks(texts, images, owners, numbers)[0]


def _ranks(
    rows: Tensor, columns: Tensor, row_owners: Tensor, column_owners: Tensor
) -> tuple[Tensor, Tensor]:
    """For each row, (rows,), the number of columns that match better than the best of its own,
    those of its owner, and the column that matches best.
    """
    positions = torch.arange(len(columns), device=columns.device)
    block = max(1, _SCORES // len(columns))
    ranks: list[Tensor] = []
    bests: list[Tensor] = []
    for start in range(0, len(rows), block):
        scores = rows[start : start + block] @ columns.T
        own = column_owners == row_owners[start : start + block, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        first = torch.where(own & (scores == best), positions, len(columns)).amin(
            dim=1, keepdim=True
        )
        ranks.append(((scores > best) | ((scores == best) & (positions < first))).sum(dim=1))
        bests.append(scores.argmax(dim=1))
    return torch.cat(ranks), torch.cat(bests)
