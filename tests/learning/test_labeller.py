"""Whose answers stand in for labels: the model whose answers tell the images apart best."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipmerge.learning.augmentation import weak_augment
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.pseudo_labels import choose_pseudo_labeller
from clipmerge.learning.steps import lay_out
from tests.support.small_objective import (
    Ends,
    Reference,
    make_batches,
    objective_for,
    save_ends,
)

SIZES = (8, 8, 7)
LOSS = LossConfig(0.0, weak_aug=1.0, labelled=False)


def mutual_information(ends: Ends, alpha: float, classes: list[int]) -> float:
    """Of the image and the answer about one of its four views, in nats, by transformers alone."""
    images = torch.cat([batch.pixels for batch in make_batches(SIZES)])
    reference = Reference(ends).at(alpha)
    joint = torch.zeros(len(images), len(classes), dtype=torch.float64)
    for view in range(4):
        pixels = weak_augment(images, 2**42 + view).double()
        with torch.no_grad():
            logits = reference.model(pixel_values=pixels, **reference.tokens).logits_per_image
        for image, best in enumerate(logits[:, classes].argmax(-1).tolist()):
            joint[image, best] += 1 / (4 * len(images))
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    used = joint > 0
    return float((joint[used] * (joint[used] / independent[used]).log()).sum())


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2]])
def test_information_is_that_of_transformers(ends: Ends, classes: list[int]) -> None:
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    steps = [replace(step, classes=torch.tensor(classes)) for step in lay_out(objective, 5).steps]
    _, information = choose_pseudo_labeller(objective, LOSS, steps)
    assert sorted(information) == [0.0, 1.0]
    assert max(information.values()) > 0.05
    for alpha, found in information.items():
        assert found == pytest.approx(mutual_information(ends, alpha, classes), abs=1e-9)


# the first model that is fine-tuned calls all images the same, the second one tells them apart
@pytest.mark.parametrize(("change", "chosen"), [(0.1, 0.0), (0.4, 1.0)])
def test_the_model_that_tells_the_images_apart_best_answers(
    tmp_path: Path, change: float, chosen: float
) -> None:
    ends = save_ends(tmp_path, seed=1, change=change)
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    alpha, information = choose_pseudo_labeller(objective, LOSS, lay_out(objective, 3).steps)
    assert alpha == chosen == max(information, key=lambda alpha: information[alpha])


def test_the_finetuned_model_answers_unless_the_other_is_surely_better(tmp_path: Path) -> None:
    ends = save_ends(tmp_path, seed=4)
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    alpha, information = choose_pseudo_labeller(objective, LOSS, lay_out(objective, 3).steps)
    assert information[0.0] > information[1.0]
    assert alpha == 1.0


def test_without_views_the_finetuned_model_answers(tmp_path: Path) -> None:
    ends = save_ends(tmp_path, seed=1)
    objective = objective_for(ends, make_batches(SIZES), labelled=False)
    steps = lay_out(objective, 3).steps
    assert choose_pseudo_labeller(objective, replace(LOSS, weak_aug=0.0), steps) == (1.0, {})
    assert choose_pseudo_labeller(objective, LOSS, ()) == (1.0, {})
