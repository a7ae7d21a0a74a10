"""Recall against a slow reference that sorts every row."""

import pytest
import torch
from torch import Tensor

from clipmerge.evaluation import other_tasks
from clipmerge.evaluation.other_tasks import recall_of


def by_sorting(images: Tensor, texts: Tensor, owners: Tensor, rank: int) -> tuple[float, float]:
    """Sort all scores of one row at a time, in Python floats; equal ones stay in their order."""
    scores = [[float(image @ text) for text in texts] for image in images]
    found_images = found_texts = 0
    for number, row in enumerate(scores):
        best = sorted(range(len(row)), key=lambda at: -row[at])[:rank]
        found_images += any(int(owners[at]) == number for at in best)
    for number in range(len(texts)):
        column = [row[number] for row in scores]
        best = sorted(range(len(column)), key=lambda at: -column[at])[:rank]
        found_texts += int(owners[number]) in best
    return found_images / len(images), found_texts / len(texts)


def features(count: int, generator: torch.Generator) -> Tensor:
    """Few values, so that scores are exact and many are equal."""
    return torch.randint(-2, 3, (count, 4), generator=generator).double()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("at_once", [1, 40, 1 << 24])
def test_recall_is_that_of_sorting(monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int) -> None:
    monkeypatch.setattr(other_tasks, "_SCORES", at_once)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (17,), generator=generator)
    owners = torch.repeat_interleave(torch.arange(17), counts)
    owners = owners[torch.randperm(len(owners), generator=generator)]
    images, texts = features(17, generator), features(len(owners), generator)
    found = recall_of(images, texts, owners, ranks=(1, 2, 5, 10, 100))
    for rank in (1, 2, 5, 10, 100):
        both = (found.image_to_text[str(rank)], found.text_to_image[str(rank)])
        assert both == pytest.approx(by_sorting(images, texts, owners, rank), abs=1e-12)
    assert found.image_to_text["100"] == found.text_to_image["100"] == 1
