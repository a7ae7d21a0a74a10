"""Learned sparse masks: an exact number of entries is kept, all others are zero-shot's bytes, and
scores still move."""

from typing import Any

import pytest
import torch

from clipmerge.learning.interpolate import Coefficients
from clipmerge.measures.learned_sparse import learned_sparse
from clipmerge.measures.sharpness import sharpest, sharpness
from tests.support.small_objective import Ends, Reference, make_batches, objective_for

LEARN: dict[str, Any] = {"held_back": 0}
SIZES = (8, 8, 7)


def test_dropped_entries_are_the_zero_shot_models_and_their_scores_move(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    path = objective.path
    name = next(name for name in path.names if name.endswith("0.mlp.fc1.weight"))
    coefficients = Coefficients(path, "entry", 0.5)
    coefficients.make_sparse([name, "logit_scale"], 0.5, seed=3)
    coefficients.set_weights()
    placed = coefficients.by_parameter()
    dropped = placed[name] == 0
    assert int(dropped.sum()) == dropped.numel() - dropped.numel() // 2
    assert torch.equal(path.parameters[name][dropped], path.inputs.theta_0(name)[dropped])
    assert float(placed["logit_scale"]) == 0.5  # a scalar stays
    next(objective.gradients())
    gradient = path.gradient(name).clone()
    with coefficients.collect_gradients():
        next(objective.gradients())
    slope = coefficients.values[name].grad
    # straight through: the gradient at the placed value, dropped or not
    assert torch.allclose(slope, gradient * path.delta(name))
    assert bool(slope[dropped].any())


def test_the_whole_way_back_ends_at_the_finetuned_model(ends: Ends) -> None:
    """Fewer entries are dropped the nearer it is, and those with the lowest scores."""
    path = objective_for(ends, make_batches(SIZES)).path
    coefficients = Coefficients(path, "entry", 0.5)
    name, value = max(coefficients.values.items(), key=lambda item: item[1].numel())
    coefficients.make_sparse([name], 0.5, seed=0)
    value.copy_(torch.linspace(0.4, 0.6, value.numel()).view_as(value))
    half, distances = value.numel() // 2, []
    for share in (0.0, 0.3, 0.8):
        kept = coefficients.effective(name, share).flatten() > 0
        count = half + int(share * (value.numel() - half))
        assert kept.tolist() == [at >= value.numel() - count for at in range(value.numel())]
        distances.append(coefficients.distance(share))
    assert distances == sorted(distances, reverse=True)
    coefficients.back_off(0.3)
    assert coefficients.distance() == pytest.approx(distances[1])


def test_sharpness_is_the_norm_of_the_gradient_times_that_of_the_change(ends: Ends) -> None:
    batches = make_batches(SIZES)
    objective = objective_for(ends, batches)
    measured = sharpness(objective, at=0.3)["sharpness"].batches
    reference = Reference(ends).at(0.3)
    for number, batch in enumerate(batches):
        gradients = reference.gradient(batch)
        for layer, names in objective.path.layers.items():
            steep = sum(float(gradients[name].square().sum()) for name in names) ** 0.5
            changes = [reference.ends[name][1] - reference.ends[name][0] for name in names]
            far = sum(float(change.square().sum()) for change in changes) ** 0.5
            assert measured[layer][number] == pytest.approx(steep * far, rel=1e-3), layer


@pytest.mark.parametrize("density", [0.5, 0.2])
def test_stragglers_keep_the_share_and_always_exist(ends: Ends, density: float) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = learned_sparse(objective, **LEARN, steps=4, density=density)
    sharp = [layer for layer, is_one in found["straggler"].values.items() if is_one]
    blocks = {k: v for k, v in found["sharpness"].values.items() if k.count(".") == 2}
    assert sharp == list(sharpest(blocks, 0.15))
    for layer in sharp:
        assert found["at_zero"].values[layer] >= 1 - density
    assert sum(found["sharpness_share"].values.values()) == pytest.approx(1)
