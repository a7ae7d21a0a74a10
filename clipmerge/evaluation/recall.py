"""Recall of image-text retrieval from the features of images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmerge.images.image_set import number_texts
from clipmerge.planning.record import RANKS, Recall

# Scores computed at once: 64 MB in float32.
_SCORES = 1 << 24


def retrieve(
    features: Tensor, texts: Tensor, captions: Sequence[Sequence[str]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], Recall]:
    """Find the best captions of images and the best images of captions, and compute the recall.

    Equal captions count as one text. For this text, each of their images is right.

    Args:
        features: Features of the images, (images, width).
        texts: Features of all different captions, in order of first appearance, (texts, width).
        captions: Captions of each image.

    Returns:
        The index of each image's best caption among the different ones, (images,); each image's
        accuracy as in `Outcome.correct`, (images,); and the recall at K.
    """
    numbers, _ = number_texts(chain.from_iterable(captions))
    images = [at for at, of_image in enumerate(captions) for _ in of_image]
    own = torch.zeros(len(captions), len(texts), dtype=torch.bool)
    own[images, list(numbers)] = True
    of_images, best = _ranks_of_own_items(features, texts, own)
    of_texts, _ = _ranks_of_own_items(texts, features, own.T)
    found = (own * (of_texts == 0)).sum(1) / own.sum(1)
    by_image = ((of_images == 0).double() + found.double()) / 2
    ways = {"image_to_text": of_images, "text_to_image": of_texts}
    recall: Recall = {
        way: {str(rank): int((ranks < rank).sum()) / len(ranks) for rank in RANKS}
        for way, ranks in ways.items()
    }
    return best.numpy(), by_image.numpy(), recall


def _ranks_of_own_items(rows: Tensor, columns: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Compute for each row the rank of the best column that belongs to it.

    Of equal scores, the first has the better rank. So a model that scores everything equally has a
    recall at chance.

    Args:
        rows: Features, (rows, width), of unit length.
        columns: Features, (columns, width), of unit length.
        own: Whether a column belongs to a row, (rows, columns); every row has a column.

    Returns:
        The ranks, where 0 is best, (rows,); and the index of each row's best column of all,
        (rows,).
    """
    positions = torch.arange(len(columns), device=columns.device)
    ranks: list[Tensor] = []
    bests: list[Tensor] = []
    size = max(1, _SCORES // len(columns))
    for block, is_own in zip(torch.split(rows, size), torch.split(own, size), strict=True):
        scores = block @ columns.T
        best = scores.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
        as_good = scores == best
        first = torch.where(is_own & as_good, positions, len(columns)).amin(dim=1, keepdim=True)
        is_before = (scores > best) | (as_good & (positions < first))
        ranks.append(is_before.sum(dim=1))
        bests.append(scores.argmax(dim=1))
    return torch.cat(ranks), torch.cat(bests)
