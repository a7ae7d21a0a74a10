"""The choice of the held-back images, and what is distilled, against independent references."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from clipmerge.distributed import distributed_context
from clipmerge.learning.augmentation import strong_augment, weak_augment
from clipmerge.learning.choice import (
    EXTRAPOLATIONS,
    AccuracyLoss,
    choose_extrapolation,
    validate,
)
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import Learned, LearningConfig, learn
from clipmerge.learning.learning_loss import DistillTarget, LossConfig
from clipmerge.learning.objective import Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.steps import Step, lay_out
from clipmerge.measures.learned_coefficients import learned_coefficients, learned_measurements
from clipmerge.measures.learned_sparse import learned_sparse
from clipmerge.methods import Task
from clipmerge.methods.straggler_sparse import straggler_sparse
from clipmerge.planning.measurements import HeldBackChoice
from tests.support.small_objective import (
    Ends,
    Reference,
    descend,
    make_batches,
    objective_for,
    prepare,
)
from tests.support.tasks import inputs_of

SIZES = (8, 8, 7)


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
        loss = AccuracyLoss.between(merged, finetuned, distance)
        limit = bound((finetuned - merged).numpy(), distance)
        assert loss.is_within(limit + 1e-6)
        assert not loss.is_within(limit - 1e-6)


@pytest.mark.parametrize(("images", "nearest"), [(3, None), (13, 0.8), (30, 0.1), (40, 0.0)])
def test_images_on_which_none_differs_prove_little_far_from_the_finetuned_model(
    images: int, nearest: float | None
) -> None:
    # the standard error is the root of the distance over the number of images and the two added

    right = accuracies(images, images)
    assert AccuracyLoss.between(right, right, 1.0).error == pytest.approx(1 / (images + 2))
    assert AccuracyLoss.between(right, right, 0.0).error == 0
    chosen = choose_extrapolation(lambda share: (right, 1 - share), right, 3)
    assert chosen == nearest


@pytest.mark.parametrize("max_loss", [100, 13, 6, 2, 1])
def test_the_nearest_point_that_surely_keeps_the_accuracy_is_taken(max_loss: float) -> None:
    asked = list[float]()

    def point_at(extrapolation: float) -> tuple[torch.Tensor, float]:
        asked.append(extrapolation)
        return accuracies(90 + round(10 * extrapolation)), 1 - extrapolation

    lost = {share: np.arange(100) >= 90 + round(10 * share) for share in EXTRAPOLATIONS}
    kept = [share for share in lost if bound(lost[share].astype(float), 1 - share) <= max_loss]
    chosen = choose_extrapolation(point_at, accuracies(100), max_loss)
    assert chosen == (kept[0] if kept else None)
    last = 0.9 if chosen is None else chosen
    assert asked == [share for share in EXTRAPOLATIONS if share <= last]


def beyond_the_limit(images: int, lost: float, gained: float) -> float:
    """Share of 400 draws in which the choice loses more than the limit and the standard error of a
    test on 300 images, where images are lost and gained in proportion to the way that is left."""
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(rng.random((400, images)))

    def point(drawn: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
        found = (drawn >= lost * (1 - share)).double()
        found[drawn >= 1 - gained * (1 - share)] = 2  # only the merged model recognises it
        return found, 1 - share

    beyond = 0
    for drawn in draws:
        chosen = choose_extrapolation(partial(point, drawn), torch.ones(images).double(), 3)
        left = 0.0 if chosen is None else 1 - chosen
        loss = (lost - gained) * left
        beyond += loss > 0.03 + math.sqrt(((lost + gained) * left - loss**2) / 300)
    return beyond / 400


@pytest.mark.parametrize("images", [5, 10, 60])
@pytest.mark.parametrize(("lost", "gained"), [(0.06, 0.03), (0.3, 0.05)])
def test_the_limit_binds_with_few_images(images: int, lost: float, gained: float) -> None:
    assert beyond_the_limit(images, lost, gained) <= 0.1


def test_sparse_coefficients_go_the_whole_way_to_the_finetuned_model(ends: Ends) -> None:
    """They drop fewer entries the nearer they are to it, and those with the lowest scores."""
    objective = objective_for(ends, make_batches(SIZES))
    coefficients = Coefficients(objective, "entry", 0.5)
    entries = sum(value.numel() for value in coefficients.values.values())
    assert coefficients.distance() == pytest.approx(0.5 * math.sqrt(entries))
    coefficients.extrapolate(0.8)
    assert coefficients.distance() == pytest.approx(0.1 * math.sqrt(entries))
    name, value = max(coefficients.values.items(), key=lambda item: item[1].numel())
    value.copy_(torch.linspace(0.4, 0.6, value.numel()).view_as(value))
    coefficients.make_sparse([name], 0.5)
    half = value.numel() // 2
    earlier = None
    for share in (0.0, 0.3, 0.8):
        coefficients.extrapolate(share)
        kept = coefficients.effective_coefficients(name).flatten() > 0
        count = half + int(share * (value.numel() - half))
        assert kept.tolist() == [at >= value.numel() - count for at in range(value.numel())]
        assert earlier is None or coefficients.distance() < earlier
        earlier = coefficients.distance()


def test_held_back_images_are_recognised_as_the_reference_recognises_them(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    held_back = lay_out(objective, 1, held_out_share=0.3).validation_steps
    positions = {position for step in held_back for position in step.positions}
    assert len(positions) == round(0.3 * sum(SIZES))
    assert positions.isdisjoint(
        each for step in lay_out(objective, 9, held_out_share=0.3).steps for each in step.positions
    )
    objective.weights.set_alpha(0.7)
    seen = validate(objective, held_back, LossConfig(0.5, weak_aug=1.0))
    reference = Reference(ends).at(0.7)
    right: dict[int, list[float]] = {}
    for step in held_back:
        pixels = weak_augment(step.batch.pixels, step.seed + 1).double()
        logits = reference.model(pixel_values=pixels, **reference.tokens).logits_per_image
        for position, found in zip(
            step.positions, (logits.argmax(1) == step.batch.labels).tolist(), strict=True
        ):
            right.setdefault(position, []).append(found)
    expected = [sum(right[position]) / len(right[position]) for position in sorted(right)]
    assert seen.tolist() == pytest.approx(expected)


def test_images_of_the_answer_choose_in_place_of_those_held_out(ends: Ends) -> None:
    """Nothing is learned from either."""
    judges = ShardedBatches(make_batches((5, 4), seed=2), distributed_context("cpu"))
    objective = objective_for(ends, make_batches(SIZES), choosers=judges)
    layout = lay_out(objective, 9, held_out_share=0.3)
    own = lay_out(objective_for(ends, make_batches(SIZES)), 9, held_out_share=0.3)
    assert [step.positions for step in layout.steps] == [step.positions for step in own.steps]
    assert {position for step in layout.validation_steps for position in step.positions} == {
        *range(9)
    }
    assert all(step.images is judges for step in layout.validation_steps)
    config = LearningConfig(LossConfig(0.3), 2, 0.1, held_back=0.3, max_loss=100)
    choice = learn(objective, Coefficients(objective, "entry"), config).choice
    assert choice is not None
    assert choice.images == 9
    objective.weights.set_alpha(1.0)
    finetuned = validate(objective, layout.validation_steps, LossConfig(0.3))
    assert choice.finetuned_accuracy == pytest.approx(float(finetuned.mean()))


def changed(objective: Objective) -> dict[str, torch.Tensor]:
    """The change of every parameter from zero-shot, in the objective's model."""
    return {
        name: (objective.weights.parameters[name] - objective.weights.theta_0[name])
        .detach()
        .clone()
        for name in objective.weights.task_vector
    }


@torch.no_grad()
def recognised(
    objective: Objective, steps: Sequence[Step], config: LossConfig, weights: Sequence[float]
) -> torch.Tensor:
    """What chooses: half of it the altered views, half the images as they are."""
    classes = objective.criterion.class_features()
    right: dict[tuple[ShardedBatches, int], bool] = {}
    for step in steps:
        logits = objective.criterion.model.logits(
            objective.criterion.embed(step.batch.pixels), classes
        )
        images = [(step.images, position) for position in step.positions]
        right |= zip(images, (logits.argmax(1) == step.batch.labels).tolist(), strict=True)
    unaltered = torch.tensor([float(found) for found in right.values()]).double()
    return (validate(objective, steps, config) + unaltered) / 2 * torch.tensor(weights).double()


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("max_loss", [100.0, 20.0])
def test_the_model_is_left_at_the_choice(ends: Ends, max_loss: float, uneven: bool) -> None:
    batches = make_batches(SIZES)
    if uneven:  # most images have one label, the others another
        batches = [
            replace(batch, labels=(torch.arange(len(batch)) < 1).long()) for batch in batches
        ]
    objective = objective_for(ends, batches)
    loss_config, coefficients = LossConfig(0.3, weak_aug=1.0), Coefficients(objective, "entry")
    config = LearningConfig(loss_config, 8, 0.1, held_back=0.3, max_loss=max_loss)
    choice = learn(objective, coefficients, config).choice
    assert choice is not None
    assert choice.alpha is None
    left = changed(objective)
    held_back = lay_out(objective, 8, held_out_share=0.3).validation_steps
    labels = [objective.data.labels[at] for at in sorted({*held_back[0].positions})]
    counts = [labels.count(label) for label in labels]
    assert (max(counts) > 2 * min(counts)) == uneven
    even = [len(labels) / count / len(set(labels)) for count in counts]
    seen = partial(
        recognised,
        objective,
        held_back,
        loss_config,
        weights=even if uneven else [1.0] * len(labels),
    )
    objective.weights.set_alpha(1.0)
    finetuned = seen()
    assert choice.finetuned_accuracy == pytest.approx(float(finetuned.mean()))
    for share in EXTRAPOLATIONS:
        coefficients.extrapolate(share)
        coefficients.place()
        lost = finetuned - seen()
        if bound(lost.numpy(), 1 - share) <= max_loss + 1e-7:
            break
    assert choice.extrapolation == share
    assert choice.accuracy == pytest.approx(float((finetuned - lost).mean()))
    for name, value in changed(objective).items():
        assert torch.allclose(value, left[name], atol=1e-6)


def test_the_finetuned_model_is_left_where_nothing_keeps_the_accuracy(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    coefficients = Coefficients(objective, "entry")
    config = LearningConfig(LossConfig(0.3), 2, 0.1, held_back=0.3, max_loss=-100)
    choice = learn(objective, coefficients, config).choice
    assert choice is not None
    assert (choice.alpha, choice.extrapolation) == (1.0, 1.0)
    assert choice.accuracy == choice.finetuned_accuracy
    for name, value in changed(objective).items():
        assert torch.allclose(value, objective.weights.task_vector[name], atol=1e-6)


@pytest.mark.parametrize("apart", [False, True], ids=["held out", "of the answer"])
@pytest.mark.parametrize("max_loss", [3.0, 5.0])
def test_all_images_choose_an_alpha_where_nothing_learned_keeps_the_accuracy(
    ends: Ends, max_loss: float, apart: bool
) -> None:
    """Those that learning saw too, wherever the others come from."""
    judges = ShardedBatches(make_batches((5, 2), seed=2), distributed_context("cpu"))
    choosers, told = judges if apart else None, list[tuple[float, float]]()
    objective = objective_for(
        ends,
        make_batches(SIZES),
        choosers=choosers,
        progress=lambda done, announced: told.append((done, announced)),
    )
    loss_config = LossConfig(0.3, weak_aug=1.0)
    coefficients, learned = (Coefficients(objective, "entry") for _ in range(2))
    config = LearningConfig(loss_config, 8, 0.1, held_back=0.3, max_loss=max_loss)
    learn(objective, learned, replace(config, max_loss=100))
    choice = learn(objective, coefficients, config).choice
    assert choice is not None
    assert told[-1][0] == pytest.approx(told[-1][1])
    for name, value in changed(objective).items():
        expected = choice.alpha * objective.weights.task_vector[name]
        assert torch.allclose(value, expected, atol=1e-6)

    layout = lay_out(objective, 8, held_out_share=0.3)
    steps = layout.validation_steps_on_all
    shown = {
        (step.images, at)
        for part in (layout.steps, layout.validation_steps)
        for step in part
        for at in step.positions
    }
    assert {(step.images, at) for step in steps for at in step.positions} == shown
    assert choice.images == len(shown) == sum(SIZES)
    seen = partial(recognised, objective, steps, loss_config, weights=[1.0] * len(shown))
    objective.weights.set_alpha(1.0)
    finetuned = seen()
    entries = sum(value.numel() for value in coefficients.values.values())
    for alpha in np.linspace(0.5, 0.95, 10):
        objective.weights.set_alpha(float(alpha))
        lost = finetuned - seen()
        distance = (1 - alpha) * math.sqrt(entries) / learned.distance()
        if bound(lost.numpy(), distance) <= max_loss + 1e-7:
            break
    assert choice.alpha == pytest.approx(float(alpha))
    assert choice.alpha < 1
    assert choice.accuracy == pytest.approx(float((finetuned - lost).mean()))


def test_sparse_layers_that_cost_too_much_accuracy_leave_the_finetuned_model(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipmerge.learning.learn.choose_extrapolation", lambda *_: None)
    objective = objective_for(ends, make_batches(SIZES))
    found = learned_sparse(objective, steps=2, held_back=0.3, density=0.1)
    assert found.choice is not None
    assert (found.choice.alpha, found.choice.extrapolation) == (1.0, 1.0)
    assert all(bool((value == 1).all()) for value in found.coefficients.values())
    decision = straggler_sparse(Task(inputs_of(ends), found))
    assert decision.stragglers == ()
    kinds = {entry.reason.kind for entry in decision.layers.values() if entry.reason}
    assert "finetuned-layer" in kinds
    assert "sharp-straggler" not in kinds


def test_learning_happens_on_every_pair(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = learned_coefficients(objective, steps=4, held_back=0.3, max_loss=100)
    assert len(found.trace["cross_entropy"]) == 4
    assert found.choice is not None
    assert found.choice.distill_target == "both"
    sparse = learned_sparse(objective, steps=4, held_back=0.3, max_loss=100)
    assert straggler_sparse(Task(inputs_of(ends), sparse)).stragglers


@pytest.mark.parametrize("divergence", ["both", "predictions", "features", "path-features"])
def test_a_step_is_the_loss_of_views_and_the_divergence_of_changed_copies(
    ends: Ends, divergence: DistillTarget
) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    loss_config = LossConfig(1.0, weak_aug=1.0, distill=divergence)
    step = prepare(objective, loss_config, 1)[0]
    objective.weights.set_alpha(0.9)
    seen = descend(objective, step, loss_config)
    reference, zeroshot, middle = (Reference(ends).at(alpha) for alpha in (0.9, 0.0, 0.5))
    batch = step.batch
    view = replace(batch, pixels=weak_augment(batch.pixels, step.seed + 1))
    assert seen.cross_entropy == pytest.approx(reference.loss(view).item(), rel=1e-4)
    assert seen.cross_entropy != pytest.approx(reference.loss(batch).item(), rel=1e-3)
    pixels = strong_augment(batch.pixels, step.seed).double()
    own, old, half = (
        each.model(pixel_values=pixels, **each.tokens) for each in (reference, zeroshot, middle)
    )
    probabilities = own.logits_per_image.softmax(-1)
    target = old.logits_per_image.softmax(-1)
    predictions = (target * (target / probabilities).log()).sum(-1)
    of_both = (target + half.logits_per_image.softmax(-1)) / 2
    path_predictions = (of_both * (of_both / probabilities).log()).sum(-1)
    to_old = torch.nn.functional.cosine_similarity(own.image_embeds, old.image_embeds)
    to_half = torch.nn.functional.cosine_similarity(own.image_embeds, half.image_embeds)
    path_features = 4 * (1 - (to_old + to_half) / 2)
    expected = {
        "both": (path_predictions + path_features) / 2,
        "predictions": predictions,
        "features": 2 * (1 - to_old),
        "path-features": path_features,
    }[divergence]
    assert seen.distillation_loss == pytest.approx(expected.mean().item(), rel=1e-3)


@pytest.mark.slow
def test_learning_by_heart_is_noted(ends: Ends) -> None:
    options: dict[str, Any] = {
        "steps": 60,
        "rate": 0.3,
        "weak_aug": 0.0,
        "distill_weight": 0.0,
        "held_back": 0.4,
        "max_loss": 100,
    }
    found = learned_coefficients(objective_for(ends, make_batches(SIZES)), **options)
    assert found.choice is not None
    assert found.choice.train_accuracy is not None
    assert found.choice.train_accuracy > found.choice.accuracy + 0.1
    (note,) = found.notes
    assert note.kind == "overfitting"
    assert note.values == {
        "train": found.choice.train_accuracy,
        "held_out": found.choice.accuracy,
    }
    assert (
        learned_coefficients(objective_for(ends, make_batches(SIZES)), steps=1, held_back=0.4).notes
        == ()
    )


def test_in_bfloat16_the_goal_follows_weights_that_move_in_place(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    exact, quick = LossConfig(0.5), LossConfig(0.5, precision="bfloat16")
    step = prepare(objective, exact, 1)[0]
    rough = prepare(objective, quick, 1)[0]
    assert step.targets is not None
    assert rough.targets is not None
    assert torch.allclose(step.targets.predictions, rough.targets.predictions, atol=0.3)
    assert not torch.equal(step.targets.predictions, rough.targets.predictions)
    with torch.enable_grad():
        for alpha in (0.0, 0.5, 1.0):
            objective.weights.set_alpha(alpha)
            expected = descend(objective, step, exact)
            wanted = {
                name: objective.weights.gradient_of(name).clone()
                for name in objective.weights.task_vector
            }
            objective.weights.clear_gradients()
            seen = descend(objective, step, quick)
            assert seen.cross_entropy == pytest.approx(expected.cross_entropy, rel=0.03)
            assert seen.distillation_loss == pytest.approx(
                expected.distillation_loss, rel=0.2, abs=0.02
            )
            for name, gradient in wanted.items():
                assert objective.weights.gradient_of(name).dtype == torch.float32
                if gradient.norm() > 0.05:
                    found = objective.weights.gradient_of(name).flatten()
                    assert (
                        float(torch.cosine_similarity(gradient.flatten(), found, dim=0)) > 0.95
                    ), name
            objective.weights.clear_gradients()


@pytest.mark.parametrize("ceiling", [0.8, 1.0, 1.8])
def test_coefficients_stay_between_zero_and_the_ceiling(ends: Ends, ceiling: float) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    options: dict[str, Any] = {"ceiling": ceiling, "held_back": 0.0}
    found = learned_coefficients(objective, steps=12, rate=0.5, distill_weight=0.0, **options)
    values = torch.cat([value.flatten() for value in found.coefficients.values()])
    assert float(values.min()) == 0
    assert float(values.max()) == pytest.approx(ceiling)


@pytest.mark.parametrize(("labelled", "notes"), [(True, ["overfitting"]), (False, [])])
def test_without_labels_learning_by_heart_is_not_noted(
    ends: Ends, labelled: bool, notes: list[str]
) -> None:
    """A mean probability while learning does not compare with a share of votes."""
    objective = objective_for(ends, make_batches(SIZES), labelled=labelled)
    choice = HeldBackChoice(
        images=40,
        alpha=None,
        extrapolation=0.0,
        accuracy=0.5,
        finetuned_accuracy=0.5,
        train_accuracy=0.9,
        labelled=labelled,
    )
    found = learned_measurements(
        "learned-coefficients", objective, Coefficients(objective, "entry"), Learned([], choice)
    )
    assert [note.kind for note in found.notes] == notes
