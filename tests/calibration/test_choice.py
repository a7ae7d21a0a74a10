"""The choice of the held-back images: learned points, the straight path, and the limit on lost accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipmerge.calibration.augmentation import augmented, viewed
from clipmerge.calibration.choice import CANDIDATES, Candidate, ValidationScore, choose, validate
from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.descent import Descent
from clipmerge.calibration.goal import Goal, descend
from clipmerge.calibration.learning import ALPHAS, LearningConfig, learn, prepare
from clipmerge.calibration.objective import Objective
from clipmerge.calibration.steps import lay_out
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.methods import Task
from clipmerge.methods.learned import learned
from tests.support.small_objective import Ends, Reference, make_batches, objective_for, save_ends

SIZES = (8, 8, 7)
PATH = {0.0: ValidationScore(3.0, 0.5), 0.5: ValidationScore(1.0, 0.9), 1.0: ValidationScore(2.0, 0.95)}
WHOLE, HALF = Candidate(), Candidate(part=0.5)


@pytest.mark.parametrize(
    ("learned_points", "max_loss", "expected"),
    [
        ({WHOLE: ValidationScore(0.5, 0.9), HALF: ValidationScore(0.7, 0.9)}, 100, WHOLE),
        ({WHOLE: ValidationScore(0.8, 0.9), HALF: ValidationScore(0.7, 0.9)}, 100, HALF),
        # nothing that was learned is better: the point of the path
        ({WHOLE: ValidationScore(1.5, 0.9), HALF: ValidationScore(1.0, 0.9)}, 100, Candidate(alpha=0.5)),
        # the best loses too much accuracy
        ({WHOLE: ValidationScore(0.5, 0.90), HALF: ValidationScore(0.7, 0.93)}, 3, HALF),
        ({WHOLE: ValidationScore(0.5, 0.90), HALF: ValidationScore(0.7, 0.93)}, 1, Candidate(alpha=1.0)),
    ],
)
def test_the_lowest_goal_is_taken_of_what_keeps_the_accuracy(
    learned_points: dict[Candidate, ValidationScore], max_loss: float, expected: Candidate
) -> None:
    choice = choose(PATH, learned_points, images=20, max_loss=max_loss)
    assert (choice.alpha, choice.part, choice.beyond) == (expected.alpha, expected.part, expected.beyond)
    assert choice.finetuned_right == 0.95
    assert choice.path_goal == (1.0 if max_loss == 100 else 2.0)


@pytest.mark.parametrize(
    ("learned_points", "max_loss", "expected"),
    [
        # worse than the best point of the path, and taken all the same
        ({WHOLE: ValidationScore(1.5, 0.9), HALF: ValidationScore(1.2, 0.9)}, 100, HALF),
        # the only one that keeps the accuracy
        ({WHOLE: ValidationScore(1.5, 0.94), HALF: ValidationScore(1.2, 0.9)}, 2, WHOLE),
        # none keeps it: the most accurate
        ({WHOLE: ValidationScore(1.2, 0.8), HALF: ValidationScore(1.5, 0.9)}, 2, HALF),
    ],
)
def test_where_the_path_does_not_count_a_learned_point_is_taken(
    learned_points: dict[Candidate, ValidationScore], max_loss: float, expected: Candidate
) -> None:
    choice = choose(PATH, learned_points, images=20, max_loss=max_loss, path_counts=False)
    assert choice.alpha is None
    assert (choice.part, choice.goal) == (expected.part, learned_points[expected].goal)
    assert choice.path_goal == (1.0 if max_loss == 100 else 2.0)


def test_a_look_is_the_goal_over_all_held_back_images(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(0.5, changes=())
    looks = lay_out(objective, 1, share=0.3).validation_steps
    positions = {position for step in looks for position in step.positions}
    assert len(positions) == round(0.3 * sum(SIZES))
    assert positions.isdisjoint(each for step in lay_out(objective, 9, share=0.3).steps for each in step.positions)
    objective.path.move_to(0.7)
    seen = validate(objective, looks, replace(goal, divergence_weight=0.0))
    reference = Reference(ends).at(0.7)
    total = right = images = 0.0
    for step in looks:
        total += len(step) * reference.loss(step.batch).item()
        logits = reference.model(pixel_values=step.batch.pixels.double(), **reference.tokens).logits_per_image
        right += float((logits.argmax(1) == step.batch.labels).sum())
        images += len(step)
    assert seen.goal == pytest.approx(total / images, rel=1e-4)
    assert seen.loss == pytest.approx(seen.goal)
    assert seen.accuracy == pytest.approx(right / images)


def changed(objective: Objective, coefficients: Coefficients) -> dict[str, torch.Tensor]:
    return {
        n: (objective.path.parameters[n] - objective.path.theta_0[n]).detach().clone()
        for n in coefficients.by_parameter()
    }


def test_a_learning_that_makes_it_worse_gives_the_straight_path(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    options: dict[str, Any] = {"granularity": "layer", "steps": 12, "rate": 0.1, "held_back": 0.3}
    better = learned_coefficients(objective, **options)
    assert better.choice is not None
    assert better.choice.alpha is None
    # steps in the wrong direction: whatever is learned, the path is better
    real = Descent.step

    def away(descent: Descent, ceiling: float) -> None:
        for value in descent.state.values():
            if value.grad is not None:
                value.grad.neg_()
        real(descent, ceiling)

    monkeypatch.setattr(Descent, "step", away)
    found = learned_coefficients(objective_for(ends, make_batches(SIZES)), **options)
    assert found.choice is not None
    assert found.choice.alpha == found.choice.path_alpha
    assert found.choice.alpha in ALPHAS
    assert found.choice.goal == found.choice.path_goal
    for value in found.coefficients.values():
        assert torch.equal(value, torch.full_like(value, found.choice.alpha))
    from clipmerge.checkpoint import align_checkpoints, open_checkpoint

    inputs = align_checkpoints(open_checkpoint(str(ends[0])), [open_checkpoint(str(ends[1]))])
    verdict = learned(Task(inputs, found)).verdict
    assert f"nothing that was learned beats alpha {found.choice.alpha:g} of the straight path" in verdict


def test_the_choice_is_the_best_candidate_and_is_where_the_model_is_left(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal, coefficients = Goal(0.3, views=1.0), Coefficients(objective, "entry")
    result = learn(objective, coefficients, LearningConfig(goal, 8, 0.1, held_back=0.3))
    choice = result.choice
    assert choice is not None
    assert result.path is not None
    assert result.path.alphas == ALPHAS
    assert result.path.losses[0] > min(result.path.losses)
    left = changed(objective, coefficients)
    looks = list(lay_out(objective, 8, share=0.3).validation_steps)
    from clipmerge.calibration.goal import with_teacher_targets

    looks = with_teacher_targets(objective, looks, goal, cached=False)
    goals = {}
    for candidate in CANDIDATES:
        coefficients.move(candidate.part, candidate.beyond)
        coefficients.place()
        goals[candidate] = validate(objective, looks, goal).goal
    best = min(goals, key=goals.__getitem__)
    assert (choice.part, choice.beyond) == (best.part, best.beyond)
    assert choice.goal == pytest.approx(goals[best], rel=1e-5)
    assert choice.path_goal > choice.goal
    coefficients.move(best.part, best.beyond)
    coefficients.place()
    for name, value in changed(objective, coefficients).items():
        assert torch.allclose(value, left[name], atol=1e-6)


def test_the_blended_teacher_is_the_mixture_of_both_models(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(1.0, changes=(), blend=0.25)
    step = prepare(objective, goal, 1)[0]
    objective.path.move_to(0.5)
    seen = descend(objective, step, goal)
    predictions = {}
    for alpha in (0.0, 0.5, 1.0):
        reference = Reference(ends).at(alpha)
        output = reference.model(pixel_values=step.batch.pixels.double(), **reference.tokens)
        predictions[alpha] = output.logits_per_image.softmax(-1)
    teacher = 0.75 * predictions[0.0] + 0.25 * predictions[1.0]
    expected = (teacher * (teacher / predictions[0.5]).log()).sum(-1).mean()
    assert seen.divergence == pytest.approx(expected.item(), rel=1e-3)


def test_views_move_a_point_no_further_than_they_may() -> None:
    size, count = 64, 200
    pixels = torch.zeros(count, 3, size, size)
    pixels[:, :, 44:52, 44:52] = 1.0
    grid = torch.arange(size) + 0.5

    def centres(images: torch.Tensor) -> torch.Tensor:
        mass = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
        return torch.stack([(mass.sum(1) * grid).sum(1), (mass.sum(2) * grid).sum(1)], 1) - size / 2

    seen = viewed(pixels, 3)
    moved = (centres(seen) - centres(pixels)).norm(dim=1)
    radius = 16 * 2**0.5
    farthest = radius * (0.08 + 0.105) + 0.03 * size * 2**0.5
    assert float(moved.max()) < 1.15 * farthest
    assert float(moved.max()) > 0.4 * farthest
    assert float(moved.std()) > 0.5
    assert torch.equal(viewed(pixels, 3), seen)
    assert not torch.equal(viewed(pixels, 4), seen)
    assert viewed(pixels, 3, 0.0) is pixels
    assert float((centres(viewed(pixels, 3, 0.1)) - centres(pixels)).norm(dim=1).max()) < 0.15 * farthest


def test_the_calibration_loss_is_taken_on_views_and_the_divergence_on_changes(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(1.0, views=1.0)
    step = prepare(objective, goal, 1)[0]
    objective.path.move_to(1.0)
    seen = descend(objective, step, goal)
    reference, old = Reference(ends).at(1.0), Reference(ends).at(0.0)
    batch = step.batch
    view = replace(batch, pixels=viewed(batch.pixels, step.seed + 1))
    assert seen.calibration == pytest.approx(reference.loss(view).item(), rel=1e-4)
    assert seen.calibration != pytest.approx(reference.loss(batch).item(), rel=1e-3)
    pixels = augmented(batch.pixels, step.seed).double()
    own, target = (
        each.model(pixel_values=pixels, **each.tokens).logits_per_image.softmax(-1) for each in (reference, old)
    )
    assert seen.divergence == pytest.approx((target * (target / own).log()).sum(-1).mean().item(), rel=1e-3)


def test_only_some_images_of_a_step_have_changed_copies(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(1.0, copies=3)
    step = prepare(objective, goal, 1)[0]
    assert step.target is not None
    assert len(step.target) == 3
    objective.path.move_to(1.0)
    seen = descend(objective, step, goal)
    pixels = augmented(step.batch.pixels[:3], step.seed).double()
    own, target = (
        each.model(pixel_values=pixels, **each.tokens).logits_per_image.softmax(-1)
        for each in (Reference(ends).at(1.0), Reference(ends).at(0.0))
    )
    assert seen.divergence == pytest.approx((target * (target / own).log()).sum(-1).mean().item(), rel=1e-3)
    reference = Reference(ends).at(1.0)
    assert seen.calibration == pytest.approx(reference.loss(step.batch).item(), rel=1e-4)


@pytest.mark.parametrize("moves", [("",), ("vision_", "visual_")])
def test_in_bfloat16_the_goal_follows_weights_that_move_in_place(tmp_path: Path, moves: tuple[str, ...]) -> None:
    objective = objective_for(save_ends(tmp_path, moves=moves), make_batches(SIZES))
    exact, quick = Goal(0.5), Goal(0.5, precision="bfloat16")
    step = prepare(objective, exact, 1)[0]
    rough = prepare(objective, quick, 1)[0]
    assert step.target is not None
    assert rough.target is not None
    assert torch.allclose(step.target, rough.target, atol=0.3)
    assert not torch.equal(step.target, rough.target)
    with torch.enable_grad():
        for alpha in (0.0, 0.5, 1.0):
            objective.path.move_to(alpha)
            expected = descend(objective, step, exact)
            wanted = {name: objective.path.gradient_of(name).clone() for name in objective.path.task_vector}
            objective.path.clear_gradients()
            seen = descend(objective, step, quick)
            assert seen.calibration == pytest.approx(expected.calibration, rel=0.03)
            assert seen.divergence == pytest.approx(expected.divergence, rel=0.2, abs=0.02)
            for name, gradient in wanted.items():
                assert objective.path.gradient_of(name).dtype == torch.float32
                if gradient.norm() > 0.05:
                    cosine = torch.cosine_similarity(
                        gradient.flatten(), objective.path.gradient_of(name).flatten(), dim=0
                    )
                    assert float(cosine) > 0.95, name
            objective.path.clear_gradients()


@pytest.mark.parametrize(("start", "ceiling", "most"), [(0.9, None, 1.8), (0.3, None, 1.0), (0.9, 1.0, 1.0)])
def test_coefficients_may_rise_as_far_above_the_start_as_they_may_fall(
    ends: Ends, start: float, ceiling: float | None, most: float
) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    options: dict[str, Any] = {"start": start, "ceiling": ceiling, "held_back": 0.0}
    found = learned_coefficients(objective, steps=12, rate=0.5, robustness=0.0, **options)
    values = torch.cat([value.flatten() for value in found.coefficients.values()])
    assert float(values.min()) == 0
    assert float(values.max()) == pytest.approx(most)
    at_one = found["at_one"].values
    assert 0 < sum(at_one.values()) <= len(at_one)
