"""Recall of image-text retrieval from the features of images and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmerge.files.limits import MAX_PROMPT_LENGTH
from clipmerge.models import ImageTextModel
from clipmerge.planning.verdict import RANKS, Recall

#: Captions whose images are shown, and images shown for each.
EXAMPLES, IMAGES_PER_EXAMPLE = 4, 3
# Scores computed at once.
_SCORES = 1 << 24
_TEXTS_AT_ONCE = 256


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
            [text[:MAX_PROMPT_LENGTH] for text in texts[start : start + _TEXTS_AT_ONCE]]
        )
        pieces.append(
            model.text_features({key: value.to(device) for key, value in tokens.items()}).cpu()
        )
    return torch.cat(pieces)


def retrieve(
    features: Tensor, texts: Tensor, captions: Sequence[Sequence[str]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], Recall, NDArray[np.int64]]:
    """Compare the features of all images, (images, width), with those of all captions.

    Returns:
        For each image its best caption among all captions, and the mean of two shares: whether that
        is its own, and of its captions those whose best image it is; the recall; and for the first
        caption of each of the first images its best images, best first, (examples,
        `IMAGES_PER_EXAMPLE`).
    """
    owners = torch.tensor([number for number, of_image in enumerate(captions) for _ in of_image])
    of_images, of_texts, best = retrieval_ranks(features, texts, owners)
    counts = torch.bincount(owners, minlength=len(captions))
    own_share = torch.bincount(owners, (of_texts == 0).double(), minlength=len(captions)) / counts
    by_image = ((of_images == 0).double() + own_share) / 2
    shown = texts[torch.searchsorted(owners, torch.arange(len(captions))[:EXAMPLES])] @ features.T
    best_images = shown.topk(min(IMAGES_PER_EXAMPLE, len(captions))).indices
    return best.numpy(), by_image.numpy(), recall_at(of_images, of_texts), best_images.numpy()


def recall_at(of_images: Tensor, of_texts: Tensor, ranks: Sequence[int] = RANKS) -> Recall:
    """Recall at K from the results of `retrieval_ranks`."""
    return Recall(
        image_to_text={str(rank): int((of_images < rank).sum()) / len(of_images) for rank in ranks},
        text_to_image={str(rank): int((of_texts < rank).sum()) / len(of_texts) for rank in ranks},
    )


def retrieval_ranks(images: Tensor, texts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        Ranks from 0, (images,) and (captions,), and the best caption of each image, (images,).
    """
    numbers = torch.arange(len(images), device=images.device)
    of_images, best = _ranks(images, texts, numbers, owners)
    of_texts, _ = _ranks(texts, images, owners, numbers)
    return of_images, of_texts, best


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
        is_own = column_owners == row_owners[start : start + block, None]
        best = scores.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
        first = torch.where(is_own & (scores == best), positions, len(columns)).amin(
            dim=1, keepdim=True
        )
        ranks.append(((scores > best) | ((scores == best) & (positions < first))).sum(dim=1))
        bests.append(scores.argmax(dim=1))
    return torch.cat(ranks), torch.cat(bests)
