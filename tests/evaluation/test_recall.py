"""Recall of captions against sorting by hand, where images share captions."""

import numpy as np
import torch
from torch.nn.functional import normalize

from clipmerge.evaluation.recall import retrieve

CAPTIONS = [("a cat", "a pet"), ("a dog",), ("a cat",), ("a bird", "a pet"), ("a dog", "a hound")]


def ranks_by_sorting(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The place of the best own column among the sorted columns of each row."""
    rows = zip(scores, own, strict=True)
    return np.array([np.flatnonzero(is_own[np.argsort(-row)])[0] for row, is_own in rows])


def test_captions_of_the_same_text_are_one_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = list(dict.fromkeys(text for of_image in CAPTIONS for text in of_image))
    images, embedded = (
        normalize(torch.randn(count, 4, generator=generator), dim=1)
        for count in (len(CAPTIONS), len(texts))
    )
    scores = (images @ embedded.T).numpy()
    own = np.array([[text in of_image for text in texts] for of_image in CAPTIONS])
    best, by_image, recall = retrieve(images, embedded, CAPTIONS)
    assert best.tolist() == scores.argmax(1).tolist()
    of_images, of_texts = ranks_by_sorting(scores, own), ranks_by_sorting(scores.T, own.T)
    for rank in (1, 5):
        assert recall["image_to_text"][str(rank)] == np.mean(of_images < rank)
        assert recall["text_to_image"][str(rank)] == np.mean(of_texts < rank)
    expected = [
        ((rank == 0) + np.mean(of_texts[is_own] == 0)) / 2
        for rank, is_own in zip(of_images, own, strict=True)
    ]
    assert by_image.tolist() == expected
