"""The choice of the held-out images, against independent references."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from clipmerge.images.batches import Batch
from clipmerge.learning import choose
from clipmerge.learning.choose import (
    BACKOFFS,
    PointAccuracy,
    choose_backoff,
    learn,
    weighted_accuracies,
)
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Labelled
from clipmerge.learning.train import LearningOptions, train
from tests.support.small_objective import (
    PLAIN,
    Ends,
    Reference,
    joined,
    make_batches,
    objective_for,
)
from tests.support.told import Told

SIZES = (8, 8, 7)
OPTIONS = replace(PLAIN, steps=8, lr=0.1, distill_weight=0.3, weak_aug=0.25, max_loss=100.0)


def accuracies(right: int, images: int = 100) -> torch.Tensor:
    """So many images are recognised, the first ones."""
    return (torch.arange(images) < right).double()


def bound(differences: np.ndarray, distance: float, margin: float) -> float:
    """Loss plus standard errors in points, with an image more that differs each way."""
    half = np.sqrt(distance / 2)
    added = np.concatenate([differences, [half, -half]])
    return 100 * float(added.mean() + margin * added.std() / np.sqrt(len(added)))


@pytest.mark.parametrize("margin", [1.0, 0.0])
@pytest.mark.parametrize("max_loss", [100, 13, 6, 2, 1])
def test_the_nearest_point_that_keeps_the_accuracy_is_taken(max_loss: float, margin: float) -> None:
    asked = list[float]()

    def evaluate_at(share: float) -> PointAccuracy:
        asked.append(share)
        return PointAccuracy(share, 1 - share, accuracies(90 + round(10 * share)))

    lost = {share: np.arange(100) >= 90 + round(10 * share) for share in BACKOFFS}
    kept = [
        share for share in lost if bound(lost[share].astype(float), 1 - share, margin) <= max_loss
    ]
    chosen, finetuned = choose_backoff(evaluate_at, max_loss, margin)
    assert chosen.backoff == (kept[0] if kept else 1)
    assert finetuned.backoff == 1
    assert asked == [1, *(share for share in BACKOFFS if share <= chosen.backoff)]


@pytest.mark.parametrize(("lost", "backoff"), [(1, 0.1), (0, 0.0), (-1, 0.0)])
def test_a_point_that_loses_nothing_is_not_sent_back(lost: int, backoff: float) -> None:
    """Of 30 images the learned point and the fine-tuned model each recognise some alone: the
    standard error is above the limit of 3 points."""
    finetuned, learned = torch.zeros(30), torch.zeros(30)
    finetuned[:6] = 1
    learned[3 + lost : 9] = 1

    def evaluate_at(share: float) -> PointAccuracy:
        return PointAccuracy(share, 1 - share, (finetuned if share else learned).double())

    assert choose_backoff(evaluate_at, 3)[0].backoff == backoff


def test_images_are_recognised_as_the_reference_recognises_them(ends: Ends) -> None:
    """Each class counts alike."""
    given = joined(make_batches((7, 4), seed=2))
    labels = (torch.arange(11) < 2).long()
    val = Batch(0, given.pixels, labels)
    objective = objective_for(ends, make_batches(SIZES), val=val)
    objective.path.set_alpha(0.7)
    assert objective.val is not None
    seen = weighted_accuracies(objective, objective.val, OPTIONS)
    reference = Reference(ends).at(0.7)
    output = reference.model(pixel_values=val.pixels.double(), **reference.tokens)
    right = (output.logits_per_image.argmax(1) == labels).double()
    means = [right[labels == label].mean() for label in labels.unique()]
    assert float(seen.mean()) == pytest.approx(float(sum(means)) / len(means))
    assert ((seen > 0) == (right > 0)).all()


@pytest.mark.parametrize("max_loss", [100.0, 0.0])
def test_the_model_is_left_at_the_choice(ends: Ends, max_loss: float) -> None:
    told = Told()
    objective = objective_for(ends, make_batches(SIZES), val_share=0.3, progress=told)
    learned, coefficients = (Coefficients(objective.path, "entry") for _ in range(2))
    train(objective, learned, OPTIONS.for_images(objective.images.pixels))
    _, choice = learn(objective, coefficients, replace(OPTIONS, max_loss=max_loss))
    done, announced = told.work[-1]
    assert done == pytest.approx(announced)
    assert choice is not None
    assert objective.val is not None
    assert (choice.backoff == 0) == (max_loss == 100)
    for name, value in coefficients.by_parameter().items():
        assert torch.allclose(value, learned.effective(name, choice.backoff), atol=1e-6)
        change = objective.path.parameters[name] - objective.path.inputs.theta_0(name)
        assert torch.allclose(change, value * objective.path.delta(name), atol=1e-6)
    seen = weighted_accuracies(objective, objective.val, OPTIONS)
    assert (choice.images, choice.accuracy) == (len(seen), pytest.approx(float(seen.mean())))
    objective.path.set_alpha(1.0)
    seen = weighted_accuracies(objective, objective.val, OPTIONS)
    assert choice.finetuned_accuracy == pytest.approx(float(seen.mean()))


@pytest.mark.parametrize("teaches", [True, False])
def test_the_standard_error_is_no_margin_if_a_shift_teaches(
    ends: Ends, teaches: bool, spied: Callable[[object, str], Mock]
) -> None:
    asked = spied(choose, "choose_backoff")
    objective = objective_for(ends, make_batches(SIZES), val_share=0.3)
    if teaches:
        objective.ood = [Labelled(objective.images, objective.classifier)]
    learn(objective, Coefficients(objective.path, "layer"), replace(OPTIONS, steps=1))
    assert asked.call_args.args[1:] == (100, 0.0 if teaches else 1.0)


@pytest.mark.parametrize(("side", "images"), [(64, 40), (65, 10)])
def test_more_small_images_teach_in_a_step(side: int, images: int) -> None:
    options = LearningOptions().for_images(torch.zeros(1, 3, side, side))
    assert (options.batch_size, options.num_strong) == (images, images)
