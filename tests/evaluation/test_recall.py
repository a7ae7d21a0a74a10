"""Recall of captions against sorting by hand, where images share captions."""

import numpy as np
import torch
from torch.nn.functional import normalize

from clipmerge.evaluation.recall import retrieve

CAPTIONS = [("a cat", "a pet"), ("a dog",), ("a cat",), ("a bird", "a pet"), ("a dog", "a hound")]


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

    def found_at(rank: int, scored: np.ndarray, right: np.ndarray) -> list[bool]:
        """Whether one of the right columns is among the best of each row."""
        rows = zip(scored, right, strict=True)
        return [bool(is_own[np.argsort(-row)[:rank]].any()) for row, is_own in rows]

    for rank in (1, 5):
        assert recall["image_to_text"][str(rank)] == np.mean(found_at(rank, scores, own))
        assert recall["text_to_image"][str(rank)] == np.mean(found_at(rank, scores.T, own.T))
    texts_found = np.array(found_at(1, scores.T, own.T))
    expected = [
        (is_found + texts_found[is_own].mean()) / 2
        for is_found, is_own in zip(found_at(1, scores, own), own, strict=True)
    ]
    assert by_image.tolist() == expected
