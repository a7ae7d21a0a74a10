"""The goal with unlabelled images against a slow one in float64; their order, their shares, and
resumed learning."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipmerge.distributed import distributed_context
from clipmerge.images.batches import Batch
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import Learned, LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig, strong_pictures, with_teacher_targets
from clipmerge.learning.objective import Objective
from clipmerge.learning.sharded_batches import ShardedBatches
from clipmerge.learning.steps import Step, lay_out, with_unlabelled
from tests.learning.test_learn import SlowLearner
from tests.support.small_objective import Ends, descend, make_batches, objective_for

SIZES, ELSEWHERE = (5, 5, 4), (4, 3)
STILL = LossConfig(0.7, augmentations=(), strong_aug=5)
CHANGED = LossConfig(0.7, weak_aug=1.0, strong_aug=5)


def objective_with(ends: Ends, *, seed: int = 0, sizes: tuple[int, ...] = ELSEWHERE) -> Objective:
    """An objective with unlabelled images; their labels are beyond all classes, so that using one
    fails."""
    pool = [
        Batch(b.number, b.pixels, torch.full_like(b.labels, 10**6))
        for b in make_batches(sizes, seed=9)
    ]
    unlabelled = ShardedBatches(pool, distributed_context("cpu")) if pool else None
    return objective_for(ends, make_batches(SIZES), seed=seed, unlabelled=unlabelled)


def steps_of(objective: Objective, loss_config: LossConfig, count: int) -> list[Step]:
    return with_unlabelled(objective, lay_out(objective, count).steps, loss_config.unlabelled_count)


def drawn(steps: list[Step]) -> list[tuple[int, ...]]:
    return [step.unlabelled for step in steps if step.unlabelled_images is not None]


def learned(
    objective: Objective, loss_config: LossConfig, steps: int = 4, start: float = 0.3
) -> tuple[dict[str, Tensor], Learned]:
    coefficients = Coefficients(objective, "entry", start)
    result = learn(objective, coefficients, LearningConfig(loss_config, steps, 0.05))
    return coefficients.by_parameter(), result


def test_learning_minimises_the_goal_with_unlabelled_images(ends: Ends) -> None:
    objective = objective_with(ends)
    first = steps_of(objective, STILL, 1)[0]
    everywhere = torch.cat([batch.pixels for batch in make_batches(ELSEWHERE, seed=9)])
    places = list(drawn([first])[0])
    assert len(places) == 2  # half of five copies, rounded down
    mixed = torch.cat([first.batch.pixels[:3], everywhere[places]])
    slow = SlowLearner(ends, objective, "layer")
    at = {key: torch.tensor(0.3, dtype=torch.float64) for key in objective.weights.layers}
    loss, _ = slow.loss(at, first.batch, 0.7)
    _, divergence = slow.loss(at, Batch(0, mixed, torch.zeros(5, dtype=torch.int64)), 0.7)
    seen = learned(objective, STILL, steps=1)[1].trace[0]
    assert seen.cross_entropy == pytest.approx(loss.item(), rel=1e-5)
    assert seen.distillation_loss == pytest.approx(divergence.item(), rel=1e-4)
    without = learned(objective_with(ends, sizes=()), STILL, steps=1)[1].trace[0]
    assert without.cross_entropy == seen.cross_entropy
    assert without.distillation_loss != pytest.approx(seen.distillation_loss, rel=1e-2)


def test_every_image_comes_once_before_any_comes_again(ends: Ends) -> None:
    order = [
        place for places in drawn(steps_of(objective_with(ends), STILL, 7)) for place in places
    ]
    assert len(order) == 14
    assert Counter(order[:7]) == Counter(order[7:]) == Counter(range(7))
    assert order[:7] != order[7:]
    again = [
        place for places in drawn(steps_of(objective_with(ends), STILL, 7)) for place in places
    ]
    other = [
        place
        for places in drawn(steps_of(objective_with(ends, seed=1), STILL, 7))
        for place in places
    ]
    assert again == order != other


def test_a_process_may_have_unlabelled_images_alone(ends: Ends) -> None:
    loss_config = replace(CHANGED, strong_aug=2)
    (step,) = steps_of(objective_with(ends), loss_config, 1)
    copies = strong_pictures(replace(step, rank=1, world_size=2), loss_config)
    assert torch.equal(copies, step.unlabelled_images.select(step.unlabelled[:1]).pixels)


def test_the_shares_of_a_step_add_up_to_it(ends: Ends) -> None:
    loss_config, objective = CHANGED, objective_with(ends)
    laid_out = steps_of(objective, loss_config, 1)
    shares = [laid_out[0], *(replace(laid_out[0], rank=rank, world_size=2) for rank in range(2))]
    answered = with_teacher_targets(objective, shares, loss_config)
    coefficients = Coefficients(objective, "layer", 0.3)
    coefficients.place()
    losses, gradients = [], []
    for step in answered:
        with coefficients.collect_gradients():
            losses.append(descend(objective, step, loss_config))
        gradients.append(
            {
                k: value.grad.clone()
                for k, value in coefficients.values.items()
                if value.grad is not None
            }
        )
        coefficients.drop_gradients()
    for name in ("cross_entropy", "distillation_loss", "accuracy"):
        whole_step, *parts = (getattr(each, name) for each in losses)
        assert sum(parts) == pytest.approx(whole_step, rel=1e-4)
    for key, whole in gradients[0].items():
        assert torch.allclose(gradients[1][key] + gradients[2][key], whole, rtol=1e-3, atol=1e-5), (
            key
        )
