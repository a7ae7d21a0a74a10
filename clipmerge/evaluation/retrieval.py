"""Recall at K of image-text retrieval, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clipmerge.files.limits import LONGEST_PROMPT
from clipmerge.models import ImageTextModel
from clipmerge.planning.other_tasks import RANKS, Recall

# Scores computed at once.
_SCORES = 1 << 24
_TEXTS_AT_ONCE = 256


def recall_of(images: Tensor, texts: Tensor, owners: Tensor, *, ranks: Sequence[int] = RANKS) -> Recall:
    """Compute recall at K.

    An image is found by a caption if it is among the K images that match the caption best; a caption is found by an
    image if one of the image's own captions is among the K captions that match the image best. Of equal scores, the
    first counts as better, so that a model that scores everything equally is at chance level.

    ``images`` are (images, width) and ``texts`` (captions, width), both of unit length; ``owners`` (captions,) has the
    image of each caption, and every image has one or more.
    """
    of_images = torch.cat([*_ranks_of_captions(images, texts, owners)])
    of_texts = torch.cat([*_ranks_of_images(images, texts, owners)])
    return Recall(
        image_to_text={str(rank): int((of_images < rank).sum()) / len(of_images) for rank in ranks},
        text_to_image={str(rank): int((of_texts < rank).sum()) / len(of_texts) for rank in ranks},
    )


def _ranks_of_captions(images: Tensor, texts: Tensor, owners: Tensor) -> Iterator[Tensor]:
    """For each image, the number of captions that match better than the best of its own."""
    positions = torch.arange(len(texts), device=texts.device)
    block = max(1, _SCORES // len(texts))
    for start in range(0, len(images), block):
        scores = images[start : start + block] @ texts.T
        numbers = torch.arange(start, start + len(scores), device=owners.device)
        own = owners[None, :] == numbers[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        first = torch.where(own & (scores == best), positions, len(texts)).amin(dim=1, keepdim=True)
        yield _better(scores, best, first, positions)


def _ranks_of_images(images: Tensor, texts: Tensor, owners: Tensor) -> Iterator[Tensor]:
    """For each caption, the number of images that match better than its own."""
    positions = torch.arange(len(images), device=images.device)
    block = max(1, _SCORES // len(images))
    for start in range(0, len(texts), block):
        scores = texts[start : start + block] @ images.T
        own = owners[start : start + block, None]
        yield _better(scores, scores.gather(1, own), own, positions)


def _better(scores: Tensor, own: Tensor, own_position: Tensor, positions: Tensor) -> Tensor:
    """Count in each row the scores above its own, and those equal to it that come first."""
    return ((scores > own) | ((scores == own) & (positions < own_position))).sum(dim=1)


def text_embeddings(model: ImageTextModel, captions: Sequence[str], device: torch.device) -> Tensor:
    """Embed captions, cut off where they are too long: (captions, width), unit length, on the CPU."""
    pieces = []
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        # the time that some tokenizers take for one word grows with the square of its length
        tokens = model.tokens([caption[:LONGEST_PROMPT] for caption in captions[start : start + _TEXTS_AT_ONCE]])
        pieces.append(model.text_features({key: value.to(device) for key, value in tokens.items()}).cpu())
    return torch.cat(pieces)
