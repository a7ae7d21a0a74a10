"""The choice of the held-back images: learned points, the straight path, and the limit on lost
accuracy."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from clipmerge.learning import choice as choice_module
from clipmerge.learning import goal as goal_module
from clipmerge.learning import learn as learn_module
from clipmerge.learning.anchor import Anchor
from clipmerge.learning.augmentation import augmented, corrupted, viewed
from clipmerge.learning.choice import (
    CANDIDATES,
    Candidate,
    ValidationScore,
    choose,
    validate_corrupted,
    validate_views,
    with_copies,
)
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.goal import Divergence, Goal, with_teacher_targets
from clipmerge.learning.learn import ALPHAS, LearningConfig, learn
from clipmerge.learning.objective import Objective
from clipmerge.learning.steps import Step, lay_out
from clipmerge.measures.learned_coefficients import learned_coefficients
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


def score(
    goal: float, accuracy: float, corrupted: float = 1.0, images: int = 20
) -> ValidationScore:
    """A score whose images differ a little, so that differences of means are proven."""
    spread = torch.linspace(-0.01, 0.01, images, dtype=torch.float64)
    rows = [
        goal + spread,
        torch.full_like(spread, accuracy),
        torch.full_like(spread, goal),
        corrupted - spread,
    ]
    return ValidationScore(torch.stack(rows))


def chosen(
    path: dict[float, ValidationScore],
    points: dict[Candidate, ValidationScore],
    scored: list[Candidate] | None = None,
    **options: Any,
) -> HeldBackChoice:
    """The choice between scores whose last row is the goal under other corruptions; each is asked
    for once at most."""
    scored, judged = [] if scored is None else scored, list[Candidate]()

    def score_of(candidate: Candidate) -> ValidationScore:
        scored.append(candidate)
        return points[candidate]

    def corrupted_of(candidate: Candidate) -> torch.Tensor:
        judged.append(candidate)
        return (points[candidate] if candidate.alpha is None else path[candidate.alpha]).rows[3]

    found = choose(
        path, tuple(points), lambda point: points[point].rows[1], score_of, corrupted_of, **options
    )
    assert len(scored) == len(set(scored))
    assert len(judged) == len(set(judged))
    return found


PATH = {0.0: score(3.0, 0.5), 0.5: score(1.0, 0.9), 1.0: score(2.0, 0.95)}
WHOLE, HALF = Candidate(), Candidate(part=0.5)


@pytest.mark.parametrize(
    ("whole", "half", "max_loss", "path_counts", "expected"),
    [
        (score(0.5, 0.9), score(0.7, 0.9), 100, True, WHOLE),
        (score(0.8, 0.9), score(0.7, 0.9), 100, True, HALF),
        # nothing that was learned is better: the point of the path
        (score(1.5, 0.9), score(1.0, 0.9), 100, True, Candidate(alpha=0.5)),
        # the best loses too much accuracy
        (score(0.5, 0.90), score(0.7, 0.93), 3, True, HALF),
        (score(0.5, 0.90), score(0.7, 0.93), 1, True, Candidate(alpha=1.0)),
        # worse than the best point of a path that does not count, the only one that keeps the
        # accuracy, and, where none does, the most accurate
        (score(1.5, 0.9), score(1.2, 0.9), 100, False, HALF),
        (score(1.5, 0.94), score(1.2, 0.9), 2, False, WHOLE),
        (score(1.2, 0.8), score(1.5, 0.9), 2, False, HALF),
    ],
)
def test_the_lowest_goal_is_taken_of_what_keeps_the_accuracy(
    whole: ValidationScore,
    half: ValidationScore,
    max_loss: float,
    path_counts: bool,
    expected: Candidate,
) -> None:
    choice = chosen(PATH, {WHOLE: whole, HALF: half}, max_loss=max_loss, path_counts=path_counts)
    assert (choice.alpha, choice.shrink, choice.extrapolation) == (
        expected.alpha,
        expected.part,
        expected.beyond,
    )
    assert choice.finetuned_accuracy == 0.95
    assert choice.path_objective == (1.0 if max_loss == 100 else 2.0)


def test_without_evidence_the_path_is_taken() -> None:
    """A lower goal is not enough: one of two paired intervals excludes 0, and the other does not
    contradict it."""
    better, noise = score(0.9, 0.9), torch.zeros(4, 20, dtype=torch.float64)
    noise[0] = torch.tensor([0.5, -0.5] * 10)
    for candidate, taken in (
        (better, True),
        (ValidationScore(better.rows + noise), False),  # 0.1 +- 0.24 nats
        (ValidationScore(score(0.9, 0.9, corrupted=0.9).rows + noise), True),
        (ValidationScore(score(1.3, 0.9, corrupted=0.9).rows + noise), False),
        (score(0.9, 0.9, corrupted=1.1), False),
        (score(0.9, 0.9, corrupted=0.9), True),
        (score(0.9, 0.9, images=1), False),
    ):
        path = {
            alpha: ValidationScore(at.rows[:, : candidate.rows.shape[1]])
            for alpha, at in PATH.items()
        }
        choice = chosen(path, {WHOLE: candidate}, max_loss=100)
        assert (choice.alpha is None) is taken
    points = {WHOLE: score(0.8, 0.9, corrupted=1.1), HALF: score(0.9, 0.9, corrupted=1.1)}
    assert chosen(PATH, points, max_loss=100).corrupted_gain is not None  # that of the first point
    differences = PATH[0.5].goals - better.goals - noise[0]
    interval = stats.ttest_1samp(differences.numpy(), 0.0).confidence_interval(0.95)
    found = chosen(PATH, {WHOLE: ValidationScore(better.rows + noise)}, max_loss=100)
    assert found.gain == pytest.approx((interval.low, interval.high))


def test_the_path_leaves_one_half_only_with_evidence() -> None:
    noise = torch.tensor([0.5, -0.5] * 10, dtype=torch.float64)
    unsure = ValidationScore(
        score(1.1, 0.9).rows + torch.stack([noise, *torch.zeros(3, 20, dtype=torch.float64)])
    )
    path = {0.3: score(2.0, 0.9), 0.7: unsure, 0.9: score(1.0, 0.9), 1.0: score(1.05, 0.9)}
    assert (
        chosen(path | {0.5: score(1.5, 0.9)}, {}, max_loss=100).alpha == 0.7
    )  # 0.1 +- 0.24 nats from the best
    assert chosen(path | {0.5: unsure}, {}, max_loss=100).alpha == 0.5
    assert (
        chosen(
            {1.0: score(1.0, 0.9, images=1), 0.5: score(1.1, 0.9, images=1)}, {}, max_loss=3
        ).alpha
        == 1.0
    )


def test_the_path_stays_at_an_anchor_that_keeps_the_accuracy() -> None:
    path = {0.5: score(0.5, 0.80), 0.8: score(3.0, 0.90), 1.0: score(4.0, 0.95)}
    assert chosen(path, {}, max_loss=100, anchor=0.5).alpha == 0.5
    assert chosen(path, {}, max_loss=6, anchor=0.5).alpha == 0.8
    found = chosen(path, {}, max_loss=6, anchor=1.0)
    assert (found.alpha, found.gain, found.corrupted_gain, found.accuracy) == (
        1.0,
        None,
        None,
        pytest.approx(0.95),
    )


def test_from_an_anchor_it_goes_no_further_than_the_accuracy_needs() -> None:
    path = PATH | {0.5: score(1.0, 0.80)}
    points = {
        WHOLE: score(0.2, 0.95),
        HALF: score(0.5, 0.94),
        Candidate(part=0.3): score(0.8, 0.90),
        Candidate(part=0.3, beyond=0.2): score(0.6, 0.95),
    }
    found = {limit: chosen(path, points, max_loss=limit, anchor=0.5) for limit in (0, 1, 6)}
    taken = {limit: (choice.shrink, choice.extrapolation) for limit, choice in found.items()}
    assert taken == {0: (1, 0), 1: (0.5, 0), 6: (0.3, 0)}
    assert chosen(path, points, max_loss=6).shrink == 1.0
    worse = points | {Candidate(part=0.3): score(2.5, 0.90)}
    assert chosen(path, worse, max_loss=6, anchor=0.5).shrink == 0.5


def test_no_more_points_are_scored_than_the_choice_needs() -> None:
    points = {Candidate(part=0.3): score(1.1, 0.9), HALF: score(0.8, 0.9), WHOLE: score(0.7, 0.9)}
    for anchor, seen in ((0.5, [0.3, 0.5]), (None, [0.3, 0.5, 1.0])):
        scored: list[Candidate] = []
        choice = chosen(PATH, points, scored, max_loss=100, anchor=anchor)
        assert [candidate.part for candidate in scored] == seen
        assert (choice.shrink, choice.path_alpha) == (seen[-1], 0.5)
    scored = []
    points = {HALF: score(0.8, 0.90), WHOLE: score(0.7, 0.94)}
    assert chosen(PATH, points, scored, max_loss=2).shrink == 1.0
    assert scored == [WHOLE]  # the other loses too much accuracy, whatever its goal


def test_learning_happens_whatever_the_rank_of_the_features(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn_module, "find_anchor", lambda *_: Anchor(0.8, 1.33))
    monkeypatch.setattr(learn_module, "SKILLED", 2.0)
    objective = objective_for(ends, make_batches(SIZES))
    found = learned_coefficients(objective, steps=4, held_back=0.3, max_loss=100)
    assert len(found.trace["cross_entropy"]) == 2  # half of the steps where features are held
    assert (found.choice.distill_target, found.choice.finetuned_rank) == ("path-features", 1.33)
    sparse = learned_sparse(objective, steps=4, held_back=0.3, max_loss=100)
    assert straggler_sparse(Task(inputs_of(ends), sparse)).stragglers


def test_a_look_is_the_goal_over_all_held_back_images(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(0.5, changes=())
    looks = lay_out(objective, 1, share=0.3).validation_steps
    positions = {position for step in looks for position in step.positions}
    assert len(positions) == round(0.3 * sum(SIZES))
    assert positions.isdisjoint(
        each for step in lay_out(objective, 9, share=0.3).steps for each in step.positions
    )
    objective.path.move_to(0.7)
    seen = validate(objective, looks, replace(goal, robustness=0.0))
    reference = Reference(ends).at(0.7)
    total = right = images = 0.0
    for step in looks:
        total += len(step) * reference.loss(step.batch).item()
        logits = reference.model(
            pixel_values=step.batch.pixels.double(), **reference.tokens
        ).logits_per_image
        right += float((logits.argmax(1) == step.batch.labels).sum())
        images += len(step)
    assert seen.goal == pytest.approx(total / images, rel=1e-4)
    assert seen.loss == pytest.approx(seen.goal)
    assert seen.accuracy == pytest.approx(right / images)


@pytest.mark.parametrize("divergence", ["predictions", "features", "path-features"])
def test_other_corruptions_are_judged_by_the_whole_goal(ends: Ends, divergence: Divergence) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    goal = Goal(0.5, divergence=divergence, anchor=0.6)
    looks = lay_out(objective, 1, share=0.3).validation_steps
    steps = with_teacher_targets(objective, looks, goal, judged=True)
    objective.path.move_to(0.7)
    seen = validate_corrupted(objective, steps, goal)
    reference, old, anchor = (Reference(ends).at(alpha) for alpha in (0.7, 0.0, 0.6))
    values: dict[int, list[float]] = {}
    for step in looks:
        pixels = corrupted(step.batch.pixels, step.seed).double()
        own, zeroshot, middle = (
            at.model(pixel_values=pixels, **at.tokens) for at in (reference, old, anchor)
        )
        loss = torch.nn.functional.cross_entropy(
            own.logits_per_image, step.batch.labels, reduction="none"
        )
        cosine = torch.nn.functional.cosine_similarity(own.image_embeds, zeroshot.image_embeds)
        if divergence == "features":
            apart = 2 * (1 - cosine)
        elif divergence == "path-features":
            to_middle = torch.nn.functional.cosine_similarity(own.image_embeds, middle.image_embeds)
            apart = 4 * (1 - (cosine + to_middle) / 2)
        else:
            target = zeroshot.logits_per_image.softmax(-1)
            apart = (target * (target / own.logits_per_image.softmax(-1)).log()).sum(-1)
        for position, value in zip(step.positions, (loss + 0.5 * apart).tolist(), strict=True):
            values.setdefault(position, []).append(value)
    expected = [sum(values[position]) / len(values[position]) for position in sorted(values)]
    assert seen.tolist() == pytest.approx(expected, rel=1e-3)


def validate(objective: Objective, steps: list[Step], goal: Goal) -> ValidationScore:
    return with_copies(objective, steps, goal, validate_views(objective, steps, goal))


def changed(objective: Objective, coefficients: Coefficients) -> dict[str, torch.Tensor]:
    return {
        n: (objective.path.parameters[n] - objective.path.theta_0[n]).detach().clone()
        for n in coefficients.by_parameter()
    }


def test_the_best_candidate_is_chosen_and_the_model_left_there(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    # seven images prove little; what counts as proof is tested above
    monkeypatch.setattr(choice_module, "paired_mean_interval", lambda differences: (1.0, 1.0))
    objective = objective_for(ends, make_batches(SIZES))
    goal, coefficients = Goal(0.3, views=1.0), Coefficients(objective, "entry")
    result = learn(objective, coefficients, LearningConfig(goal, 8, 0.1, held_back=0.3))
    choice = result.choice
    assert result.path.alphas == ALPHAS
    assert result.path.losses[0] > min(result.path.losses)
    left = changed(objective, coefficients)
    looks = with_teacher_targets(objective, lay_out(objective, 8, share=0.3).validation_steps, goal)
    goals = {}
    for candidate in CANDIDATES:
        coefficients.move(candidate.part, candidate.beyond)
        coefficients.place()
        goals[candidate] = validate(objective, looks, goal).goal
    best = min(goals, key=goals.__getitem__)
    assert (choice.shrink, choice.extrapolation) == (best.part, best.beyond)
    assert choice.objective == pytest.approx(goals[best], rel=1e-5)
    assert choice.path_objective > choice.objective
    coefficients.move(best.part, best.beyond)
    coefficients.place()
    for name, value in changed(objective, coefficients).items():
        assert torch.allclose(value, left[name], atol=1e-6)


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
        each.model(pixel_values=pixels, **each.tokens).logits_per_image.softmax(-1)
        for each in (reference, old)
    )
    assert seen.divergence == pytest.approx(
        (target * (target / own).log()).sum(-1).mean().item(), rel=1e-3
    )


def test_predictions_without_knowledge_are_not_held(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, spied: Any
) -> None:
    found = learned_coefficients(
        objective_for(ends, make_batches(SIZES)), steps=2, held_back=0.3, precision="float32"
    )
    reference, work = Reference(ends).at(0.0), list[tuple[float, float]]()
    objective = objective_for(
        ends, make_batches(SIZES), progress=lambda *report: work.append(report)
    )
    looks = lay_out(objective, 1, share=0.3).validation_steps
    losses = [
        reference.loss(replace(s.batch, pixels=viewed(s.batch.pixels, s.seed + 1))).item()
        for s in looks
    ]
    loss = sum(len(step) * value for step, value in zip(looks, losses, strict=True)) / sum(
        map(len, looks)
    )
    measured = 1 - loss / math.log(objective.criterion.prompts.classes)
    assert found.choice.zeroshot_skill == pytest.approx(measured, rel=1e-4)
    monkeypatch.setattr(learn_module, "find_anchor", lambda *_: Anchor(0.5, 0.1))
    filled, chose = spied(Coefficients, "fill"), spied(learn_module, "choose")
    for needed, divergence in (
        (measured + 0.01, "path-features"),
        (measured - 0.01, "predictions"),
    ):
        work.clear()
        filled.reset_mock()
        monkeypatch.setattr(learn_module, "SKILLED", needed)
        found = learned_coefficients(objective, steps=5, held_back=0.3)
        assert found.choice.distill_target == divergence
        holds_path = divergence == "path-features"
        assert len(found.trace["cross_entropy"]) == (3 if holds_path else 5)
        assert (filled.call_args_list[0].args[1] == 0.5) is holds_path
        # features diverge from the path's middle where the path may be chosen, predictions wherever
        # they are compared
        diverging = {
            alpha
            for alpha, score in chose.call_args.args[0].items()
            if score.goal > score.loss + 1e-6
        }
        assert diverging == ({found.choice.path_alpha} if holds_path else set(ALPHAS[1:]))
        # one progress from the first look to the choice
        assert [done < total for done, total in work] == [True] * (len(work) - 1) + [False]


@pytest.mark.slow
def test_learning_by_heart_is_noted(ends: Ends) -> None:
    options: dict[str, Any] = {
        "steps": 60,
        "rate": 0.3,
        "views": 0.0,
        "robustness": 0.0,
        "held_back": 0.4,
    }
    found = learned_coefficients(
        objective_for(ends, make_batches(SIZES)), divergence="predictions", **options
    )
    assert found.choice.train_accuracy > found.choice.accuracy + 0.1
    (note,) = found.notes
    assert f"{found.choice.train_accuracy:.0%} of the views of its own images" in note
    assert f"{found.choice.accuracy:.0%} of those held back" in note
    assert (
        learned_coefficients(objective_for(ends, make_batches(SIZES)), steps=1, held_back=0.4).notes
        == ()
    )


def test_in_bfloat16_the_goal_follows_weights_that_move_in_place(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    exact, quick = Goal(0.5), Goal(0.5, precision="bfloat16")
    step = prepare(objective, exact, 1)[0]
    rough = prepare(objective, quick, 1)[0]
    assert torch.allclose(step.target, rough.target, atol=0.3)
    assert not torch.equal(step.target, rough.target)
    with torch.enable_grad():
        for alpha in (0.0, 0.5, 1.0):
            objective.path.move_to(alpha)
            expected = descend(objective, step, exact)
            wanted = {
                name: objective.path.gradient_of(name).clone()
                for name in objective.path.task_vector
            }
            objective.path.clear_gradients()
            seen = descend(objective, step, quick)
            assert seen.calibration == pytest.approx(expected.calibration, rel=0.03)
            assert seen.divergence == pytest.approx(expected.divergence, rel=0.2, abs=0.02)
            for name, gradient in wanted.items():
                assert objective.path.gradient_of(name).dtype == torch.float32
                if gradient.norm() > 0.05:
                    found = objective.path.gradient_of(name).flatten()
                    assert (
                        float(torch.cosine_similarity(gradient.flatten(), found, dim=0)) > 0.95
                    ), name
            objective.path.clear_gradients()


@pytest.mark.parametrize(
    ("start", "ceiling", "most"), [(0.9, None, 1.8), (0.3, None, 1.0), (0.9, 1.0, 1.0)]
)
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


def test_copies_of_the_path_are_scored_where_they_may_decide(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, spied: Any
) -> None:
    for module in (learn_module, choice_module):
        monkeypatch.setattr(module, "accurate_points", lambda *_: [1.0])
    chose, filled = spied(learn_module, "choose"), spied(Coefficients, "fill")
    goal, objective = Goal(0.3, views=1.0), objective_for(ends, make_batches(SIZES))
    learn(objective, Coefficients(objective, "entry"), LearningConfig(goal, 1, 0.1, held_back=0.3))
    looks = with_teacher_targets(objective, lay_out(objective, 1, share=0.3).validation_steps, goal)
    whole = dict[float, ValidationScore]()
    for alpha in ALPHAS:
        objective.path.move_to(alpha)
        whole[alpha] = validate(objective, looks, goal)
    best = min(whole, key=lambda alpha: whole[alpha].goal)
    assert filled.call_args_list[0].args[1] == best
    needed = {
        alpha for alpha, score in whole.items() if alpha == 1 or score.loss <= whole[best].goal
    }
    assert 2 < len(needed) < len(ALPHAS) - 2
    for alpha, score in chose.call_args.args[0].items():
        expected = whole[alpha].goals if alpha in needed else whole[alpha].rows[2]
        assert torch.allclose(score.goals, expected, rtol=1e-5)
        assert torch.allclose(score.rows[1:], whole[alpha].rows[1:], rtol=1e-5)


@pytest.mark.slow
def test_what_is_made_or_scored_once_for_several_points_changes_no_score(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, spied: Any
) -> None:
    """Pictures are held for a whole comparison, or made for each point; zero-shot scores serve the
    path and the skill.

    In both, the points of the path and the choice are the same.
    """
    monkeypatch.setattr(learn_module, "SKILLED", -math.inf)
    monkeypatch.setattr(learn_module, "FEW", 1)
    made = spied(goal_module, "augmented")

    def found(**options: Any) -> tuple[Any, HeldBackChoice, int]:
        made.reset_mock()
        objective = objective_for(ends, make_batches(SIZES))
        result = learned_coefficients(
            objective, steps=2, held_back=0.3, precision="float32", **options
        )
        return result.path, result.choice, sum(len(call.args[0]) for call in made.call_args_list)

    path, choice, pictures = found()
    # as where so many prompts are embedded that all steps are taught at once
    monkeypatch.setattr(learn_module, "PROMPTS_A_STEP", 0)
    monkeypatch.setattr(learn_module, "with_pictures", lambda _, steps, __: list(steps))
    made_again = found()
    assert (made_again[0], made_again[1]) == (path, choice)
    whole = found(divergence="predictions")
    assert whole[0].losses == pytest.approx(path.losses, rel=1e-6)
    assert (whole[1].alpha, whole[1].objective) == (
        choice.alpha,
        pytest.approx(choice.objective, rel=1e-6),
    )
    # seven images in four rounds: made for the teacher, the path and the choice, or for each of 10
    # and 16 points and for two steps of the 16 others, or for their teacher and for them
    steps = 2 * 16
    assert (pictures, made_again[2], whole[2]) == (
        steps + 3 * 28,
        2 * steps + 27 * 28,
        2 * steps + 27 * 28,
    )
