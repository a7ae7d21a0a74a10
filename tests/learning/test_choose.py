"""The choice of the held-out images, against independent references."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from clipmerge.images.batches import Batch
from clipmerge.learning.choose import BACKOFFS, Loss, accuracies_on_val, choose_backoff
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.learn import learn
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training
from clipmerge.measures.learned_coefficients import learned_coefficients
from tests.support.small_objective import Ends, Reference, joined, make_batches, objective_for

SIZES = (8, 8, 7)
OPTIONS = Training(steps=8, lr=0.1, distill_weight=0.3, weak_aug=1.0)


def accuracies(right: int, images: int = 100) -> torch.Tensor:
    """So many images are recognised, the first ones."""
    return (torch.arange(images) < right).double()


def bound(differences: np.ndarray, distance: float = 1.0) -> float:
    """Loss plus its standard error in points, with an image more that differs each way."""
    half = np.sqrt(distance / 2)
    added = np.concatenate([differences, [half, -half]])
    return 100 * float(added.mean() + stats.tstd(added, ddof=0) / np.sqrt(len(added)))


def test_a_loss_has_the_standard_error_of_paired_differences_with_two_added_images() -> None:
    generator = torch.Generator().manual_seed(0)
    merged, finetuned = torch.rand(2, 50, generator=generator, dtype=torch.float64)
    for distance in (1.0, 0.3, 0.0):
        loss = Loss.between(merged, finetuned, distance)
        limit = bound((finetuned - merged).numpy(), distance)
        assert loss.is_within(limit + 1e-6)
        assert not loss.is_within(limit - 1e-6)


@pytest.mark.parametrize("max_loss", [100, 13, 6, 2, 1])
def test_the_nearest_point_that_surely_keeps_the_accuracy_is_taken(max_loss: float) -> None:
    asked = list[float]()

    def accuracy_at(backoff: float) -> tuple[torch.Tensor, float]:
        asked.append(backoff)
        return accuracies(90 + round(10 * backoff)), 1 - backoff

    lost = {share: np.arange(100) >= 90 + round(10 * share) for share in BACKOFFS}
    kept = [share for share in lost if bound(lost[share].astype(float), 1 - share) <= max_loss]
    chosen, *_ = choose_backoff(accuracy_at, accuracies(100), max_loss)
    assert chosen == (kept[0] if kept else None)
    last = 0.9 if chosen is None else chosen
    assert asked == [share for share in BACKOFFS if share <= last]


@pytest.mark.parametrize("images", [5, 60])
@pytest.mark.parametrize(("lost", "gained"), [(0.06, 0.03), (0.3, 0.05)])
def test_the_limit_binds_with_few_images(images: int, lost: float, gained: float) -> None:
    """Of 400 draws the choice loses more than the limit, and the standard error of a test on 300
    images, in at most a tenth."""
    draws = torch.from_numpy(np.random.default_rng(0).random((400, images)))

    def point(drawn: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
        found = (drawn >= lost * (1 - share)).double()
        found[drawn >= 1 - gained * (1 - share)] = 2  # only the merged model recognises it
        return found, 1 - share

    beyond = 0
    for drawn in draws:
        chosen, *_ = choose_backoff(partial(point, drawn), torch.ones(images).double(), 3)
        left = 0.0 if chosen is None else 1 - chosen
        loss = (lost - gained) * left
        beyond += loss > 0.03 + math.sqrt(((lost + gained) * left - loss**2) / 300)
    assert beyond / 400 <= 0.1


@pytest.mark.parametrize("uneven", [False, True])
def test_images_are_recognised_as_the_reference_recognises_them(ends: Ends, uneven: bool) -> None:
    """Each class counts alike."""
    given = joined(make_batches((7, 4), seed=2))
    labels = (torch.arange(11) < 2).long() if uneven else given.labels
    val = Batch(0, given.pixels, labels)
    objective = objective_for(ends, make_batches(SIZES), val=val)
    objective.path.set_alpha(0.7)
    seen = accuracies_on_val(objective, OPTIONS)
    reference = Reference(ends).at(0.7)
    output = reference.model(pixel_values=val.pixels.double(), **reference.tokens)
    right = (output.logits_per_image.argmax(1) == labels).double()
    means = [right[labels == label].mean() for label in labels.unique()]
    assert float(seen.mean()) == pytest.approx(float(sum(means)) / len(means))
    assert ((seen > 0) == (right > 0)).all()


def moved(objective: Objective) -> dict[str, torch.Tensor]:
    """The change of every parameter from zero-shot, in the objective's model."""
    path = objective.path
    return {name: (path.parameters[name] - path.theta_0(name)).detach() for name in path.names}


@pytest.mark.parametrize("max_loss", [100.0, 30.0, 10.0, -100.0])
def test_the_model_is_left_at_the_choice(ends: Ends, max_loss: float) -> None:
    told = list[tuple[float, float]]()
    objective = objective_for(
        ends,
        make_batches(SIZES),
        val_share=0.3,
        progress=lambda done, announced: told.append((done, announced)),
    )
    path = objective.path
    learned, coefficients = (Coefficients(path, "entry") for _ in range(2))
    learn(objective, learned, OPTIONS, max_loss=100)
    choice = learn(objective, coefficients, OPTIONS, max_loss=max_loss).choice
    assert choice is not None
    assert told[-1][0] == pytest.approx(told[-1][1])
    left = moved(objective)
    path.set_alpha(1.0)
    finetuned = accuracies_on_val(objective, OPTIONS)
    assert choice.images == len(finetuned)
    assert choice.finetuned_accuracy == pytest.approx(float(finetuned.mean()))
    found = None
    for share in BACKOFFS:
        learned.place(share)
        lost = finetuned - accuracies_on_val(objective, OPTIONS)
        if bound(lost.numpy(), 1 - share) <= max_loss + 1e-7:
            found = share
            break
    assert choice.extrapolation == (1.0 if found is None else found)
    assert choice.alpha == (1.0 if found is None else None)
    if found is None:
        path.set_alpha(1.0)
    for name, value in moved(objective).items():
        assert torch.allclose(value, left[name], atol=1e-6)


@pytest.mark.slow
def test_learning_by_heart_is_noted(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), val_share=0.4)
    found = learned_coefficients(
        objective,
        steps=60,
        lr=0.3,
        weak_aug=0.0,
        distill_weight=0.0,
        max_loss=100,
    )
    assert found.choice is not None
    assert found.choice.train_accuracy is not None
    assert found.choice.train_accuracy > found.choice.accuracy + 0.1
    assert found.notes[0].startswith("overfitting: ")
