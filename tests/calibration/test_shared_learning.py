"""Steps shared among processes, and learning with less memory: the same results as without either."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipmerge.calibration import activations
from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.descent import Descent
from clipmerge.calibration.goal import Goal, Losses, descend
from clipmerge.calibration.learning import prepare
from clipmerge.calibration.objective import Objective
from clipmerge.calibration.path import Ends
from clipmerge.calibration.steps import Step
from clipmerge.models.blocks import recomputing
from tests.support.small_objective import Ends as Paths
from tests.support.small_objective import make_batches, objective_for, save_ends

SIZES = (5, 5)
GOAL = Goal(0.7, views=1.0, copies=3)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return save_ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def objective(ends: Paths) -> Objective:
    return objective_for(ends, make_batches(SIZES))


def descended(objective: Objective, coefficients: Coefficients, step: Step) -> tuple[Losses, dict[str, Tensor]]:
    """The losses of a step, and the gradients of the coefficients."""
    with coefficients.collected():
        losses = descend(objective, step, GOAL)
    return losses, {key: value.grad.clone() for key, value in coefficients.values.items() if value.grad is not None}


def test_the_shares_of_a_step_add_up_to_it(objective: Objective) -> None:
    coefficients = Coefficients(objective, "entry", 0.3)
    step = prepare(objective, GOAL, 1)[0]
    coefficients.place()
    whole, expected = descended(objective, coefficients, step)
    parts, sums = [], {key: torch.zeros_like(value) for key, value in expected.items()}
    assert step.target is not None
    for rank in range(2):
        part = replace(step, share=(rank, 2), target=step.target[rank::2])
        losses, own = descended(objective, coefficients, part)
        parts.append(losses)
        for key, value in own.items():
            sums[key] += value
    for name in ("calibration", "divergence", "right"):
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(whole, name), rel=1e-5)
    for key, value in expected.items():
        if not key.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(sums[key], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()) + 1e-9), key


@pytest.mark.parametrize("granularity", ["layer", "parameter", "channel", "entry"])
def test_gradients_collected_on_the_way_are_those_collected_at_the_end(objective: Objective, granularity: Any) -> None:
    coefficients = Coefficients(objective, granularity, 0.3)
    step = prepare(objective, GOAL, 1)[0]
    coefficients.place()
    descend(objective, step, GOAL)
    expected: dict[str, Tensor] = {}
    for layer, names in objective.layers.items():
        for name in names:
            key = layer if granularity == "layer" else name
            slope = objective.gradient_of(name) * objective.task_vector[name]
            expected[key] = expected.get(key, 0) + slope.sum_to_size(coefficients.values[key].shape)
    objective.path.clear_gradients()
    with coefficients.collected():
        descend(objective, step, GOAL)
    assert all(objective.parameters[name].grad is None for name in objective.task_vector)
    for key, value in expected.items():
        own = coefficients.values[key].grad
        assert own is not None
        assert torch.allclose(own, value, rtol=1e-5, atol=1e-6 * float(value.abs().max())), key
    coefficients.drop_gradients()
    assert all(value.grad is None for value in coefficients.values.values())


def test_blocks_that_run_twice_leave_the_same_gradients(objective: Objective) -> None:
    coefficients = Coefficients(objective, "entry", 0.3)
    step = prepare(objective, GOAL, 1)[0]
    coefficients.place()
    _, expected = descended(objective, coefficients, step)
    with recomputing(objective.module):
        _, again = descended(objective, coefficients, step)
    for key, value in again.items():
        assert torch.equal(value, expected[key]), key


def test_activations_are_held_where_they_fit(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    block = objective.module.vision_model.encoder.layers[0]
    with activations.Activations(objective, "float32").bounded(10):
        assert "forward" not in vars(block)
    monkeypatch.setattr(activations, "memory", lambda _device: 1000)
    with activations.Activations(objective, "float32").bounded(10):
        assert "forward" in vars(block)
    assert "forward" not in vars(block)


def test_counting_activations_leaves_none_behind(objective: Objective) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(each) is Tensor for each in gc.get_objects())

    before = alive()
    activations.Activations(objective, "bfloat16")
    assert alive() <= before


def test_both_ends_stay_in_their_files(objective: Objective) -> None:
    for ends, change in ((objective.path.theta_0, False), (objective.path.task_vector, True)):
        assert isinstance(ends, Ends)
        for name, value in ends.items():
            assert value.data_ptr() != ends[name].data_ptr(), "held in memory"
            theta_0, theta_1 = objective.inputs.theta_0(name), objective.inputs.theta_1(name)
            assert torch.equal(value, theta_1 - theta_0 if change else theta_0)


def test_first_moments_of_large_tensors_take_two_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    large, small = torch.full((1 << 16,), 0.5), torch.full((1 << 15,), 0.5)
    descents = {"large": large, "small": small}
    descent = Descent(descents, 0.02, 20)
    for _ in range(20):
        small.grad = torch.randn(small.shape, generator=generator) + 0.5
        large.grad = small.grad.repeat(2)
        descent.step()
    assert descent.state["first:large"].dtype == torch.bfloat16
    assert descent.state["first:small"].dtype == torch.float32
    off = (large[: 1 << 15] - small).abs()
    assert 0 < float(off.max()) < 1e-2 * float((small - 0.5).abs().max())
