"""The choice of the held-out images, against independent references."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from clipmerge.images.batches import Batch
from clipmerge.learning.augment import weak_augment
from clipmerge.learning.choose import _SEEDS, BACKOFFS, Judges, Loss, choose_backoff
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.learn import learn
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import Training
from clipmerge.measures.learned_coefficients import learned_coefficients
from tests.support.small_objective import Ends, Reference, joined, make_batches, objective_for

SIZES = (8, 8, 7)
OPTIONS = Training(steps=8, rate=0.1, distill_weight=0.3, weak_aug=1.0)


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
    """Half of each image as it is, half its altered views; classes alike if they are uneven."""
    objective = objective_for(ends, make_batches(SIZES), val_share=0.3)
    val = objective.val
    assert val is not None
    if uneven:
        val = Batch(0, val.pixels, (torch.arange(len(val)) < 1).long())
    objective.path.set_alpha(0.7)
    seen = Judges(objective, val, OPTIONS).accuracies()
    reference = Reference(ends).at(0.7)

    def right(pixels: torch.Tensor) -> torch.Tensor:
        logits = reference.model(pixel_values=pixels.double(), **reference.tokens).logits_per_image
        return (logits.argmax(1) == val.labels).double()

    # one piece of 7 images in each of four rounds
    views = [weak_augment(val.pixels, _SEEDS + 2 * number + 1) for number in range(4)]
    expected = (torch.stack([right(view) for view in views]).mean(0) + right(val.pixels)) / 2
    counts = torch.bincount(val.labels)[val.labels]
    if uneven:
        expected *= len(val) / counts / len(set(val.labels.tolist()))
    assert seen.tolist() == pytest.approx(expected.tolist())


def moved(objective: Objective) -> dict[str, torch.Tensor]:
    """The change of every parameter from zero-shot, in the objective's model."""
    path = objective.path
    return {name: (path.parameters[name] - path.theta_0(name)).detach() for name in path.names}


@pytest.mark.parametrize("max_loss", [100.0, 20.0, 3.0, -100.0])
@pytest.mark.parametrize("apart", [False, True], ids=["held out", "given"])
def test_the_model_is_left_at_the_choice(ends: Ends, max_loss: float, apart: bool) -> None:
    given = {"val": joined(make_batches((5, 2), seed=2))} if apart else {}
    told = list[tuple[float, float]]()
    objective = objective_for(
        ends,
        make_batches(SIZES),
        val_share=0.3,
        **given,
        progress=lambda done, announced: told.append((done, announced)),
    )
    learned, coefficients = (Coefficients(objective.path, "entry") for _ in range(2))
    learn(objective, learned, OPTIONS, max_loss=100)
    choice = learn(objective, coefficients, OPTIONS, max_loss=max_loss).choice
    assert choice is not None
    assert told[-1][0] == pytest.approx(told[-1][1])
    left = moved(objective)
    train, val = objective.images, objective.val
    assert val is not None
    if choice.alpha is None:
        points = [(share, partial(learned.place, share)) for share in BACKOFFS]
        shown = val
    else:  # nothing learned keeps the accuracy: all images choose a point of the straight path
        points = [(s, partial(objective.path.set_alpha, 0.5 + s / 2)) for s in BACKOFFS]
        shown = joined([val, train])
    judges = Judges(objective, shown, OPTIONS)
    objective.path.set_alpha(1.0)
    finetuned = judges.accuracies()
    assert choice.images == len(shown)
    assert choice.finetuned_accuracy == pytest.approx(float(finetuned.mean()))
    half = math.sqrt(sum(value.numel() for value in learned.values.values())) / 2
    found = None
    for share, go in points:
        go()
        lost = finetuned - judges.accuracies()
        distance = (1 - share) * (1 if choice.alpha is None else half / learned.distance())
        if bound(lost.numpy(), distance) <= max_loss + 1e-7:
            found = share
            break
    if choice.alpha is None:
        assert choice.extrapolation == found
    else:
        assert choice.alpha == pytest.approx(1.0 if found is None else 0.5 + found / 2)
        objective.path.set_alpha(choice.alpha)
    for name, value in moved(objective).items():
        assert torch.allclose(value, left[name], atol=1e-6)


@pytest.mark.slow
def test_learning_by_heart_is_noted(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES), val_share=0.4)
    found = learned_coefficients(
        objective,
        steps=60,
        rate=0.3,
        weak_aug=0.0,
        distill_weight=0.0,
        max_loss=100,
    )
    assert found.choice is not None
    assert found.choice.train_accuracy is not None
    assert found.choice.train_accuracy > found.choice.accuracy + 0.1
    assert found.notes[0].startswith("overfitting: ")
