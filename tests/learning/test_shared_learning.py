"""Steps shared among processes, and learning with less memory: the same results as without
either."""

import pickle
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor

from clipmerge.learning import activations, weights
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig, Losses
from clipmerge.learning.objective import Objective
from clipmerge.learning.weights import EndpointTensors
from tests.support.small_objective import Ends as Paths
from tests.support.small_objective import descend, make_batches, objective_for, prepare

SIZES = (5, 5)
LOSS = LossConfig(0.7, weak_aug=1.0, strong_aug=3)


@pytest.fixture(scope="module", params=["held", "mapped"])
def objective(request: pytest.FixtureRequest, ends: Paths) -> Objective:
    """Weights of both ends are held in memory where they are small, as all are here, or stay in
    their files."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "mapped":
            patch.setattr(weights, "_MAX_COPIED", 0)
        return objective_for(ends, make_batches(SIZES))


PIECES = {
    "strong_aug": LOSS,
    "no copies": LossConfig(0.0, weak_aug=1.0),
    "features": LossConfig(0.7, distill="features", strong_aug=2),
    "both": LossConfig(0.7, distill="both", strong_aug=2),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("loss_config", PIECES.values(), ids=list(PIECES))
@pytest.mark.parametrize("at_once", [3, 1])
def test_a_steps_pieces_add_up(
    objective: Objective, loss_config: LossConfig, at_once: int, spied: Any
) -> None:
    coefficients = Coefficients(objective, "entry", 0.3)
    step = prepare(objective, loss_config, 1)[0]

    def learned(at_once: int | None) -> tuple[Losses, dict[str, Tensor]]:
        coefficients.place()
        losses = descend(
            objective, step, loss_config, at_once=at_once, last=coefficients.collect_gradients
        )
        return losses, {
            key: value.grad.clone()
            for key, value in coefficients.values.items()
            if value.grad is not None
        }

    whole, expected = learned(None)
    embedded, classes = (
        spied(objective.criterion, "embed"),
        spied(objective.criterion.model, "text_features"),
    )
    losses, found = learned(at_once)
    sent = [len(call.args[0]) for call in embedded.call_args_list]
    assert classes.call_count == 1
    assert sum(sent) == loss_config.picture_count(len(step))
    assert 0 < max(sent) <= at_once + 1
    assert astuple(losses) == pytest.approx(astuple(whole), rel=1e-5)
    assert found.keys() == expected.keys()
    off = sum(float((found[key] - value).square().sum()) for key, value in expected.items())
    assert off < 1e-10 * sum(float(value.square().sum()) for value in expected.values())
    for key, value in expected.items():
        if not key.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(
                found[key], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()) + 1e-9
            ), key
    assert all(
        objective.weights.parameters[name].grad is None for name in objective.weights.task_vector
    )


def test_learning_takes_pieces_where_memory_is_short(
    objective: Objective, monkeypatch: pytest.MonkeyPatch, spied: Any
) -> None:
    embedded = spied(objective.criterion, "embed")

    def learned(memory: int) -> tuple[dict[str, Tensor], list[int]]:
        embedded.reset_mock()
        monkeypatch.setattr(activations, "usable_memory", lambda _device: memory)
        found = Coefficients(objective, "entry", 0.5)
        learn(objective, found, LearningConfig(LOSS, steps=3, rate=0.02))
        return found.by_parameter(), [len(call.args[0]) for call in embedded.call_args_list]

    whole, sent = learned(1 << 40)
    assert sent.count(LOSS.picture_count(SIZES[0])) == 3
    pieces, sent = learned(1)
    assert (
        sent.count(2) == 1 + 3 * 3
    )  # when images are measured, and three views with a copy in each step
    assert LOSS.picture_count(SIZES[0]) not in sent
    for name, value in whole.items():
        if not name.endswith("k_proj.bias"):
            assert float((pieces[name] - value).abs().max()) < 1e-4, name


def test_large_ends_stay_in_their_files(
    request: pytest.FixtureRequest, objective: Objective
) -> None:
    held = "held" in request.node.callspec.id
    for ends, change in ((objective.weights.theta_0, False), (objective.weights.task_vector, True)):
        assert isinstance(ends, EndpointTensors)
        for name, value in ends.items():
            assert (value.data_ptr() == ends[name].data_ptr()) == held
            theta_0, theta_1 = objective.inputs.theta_0(name), objective.inputs.theta_1(name)
            assert torch.equal(value, theta_1 - theta_0 if change else theta_0)


@pytest.mark.parametrize("granularity", ["layer", "channel", "entry"])
def test_large_weights_come_in_runs(
    objective: Objective, granularity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coefficients = Coefficients(objective, granularity, 0.3)
    generator = torch.Generator().manual_seed(0)
    for value in coefficients.values.values():
        value.copy_(torch.rand(value.shape, generator=generator))
    step = prepare(objective, LOSS, 1)[0]

    def taken() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        coefficients.place()
        weights = {
            name: objective.weights.parameters[name].detach().clone()
            for name in objective.weights.task_vector
        }
        with coefficients.collect_gradients():
            descend(objective, step, LOSS)
        slopes = {
            key: value.grad for key, value in coefficients.values.items() if value.grad is not None
        }
        return weights, {key: slope.clone() for key, slope in slopes.items()}

    whole = taken()
    monkeypatch.setattr(weights, "_ENTRIES", 200)
    assert (
        max(
            len(weights.row_chunks(objective.weights.parameters[name]))
            for name in objective.weights.task_vector
        )
        > 3
    )
    for expected, found in zip(whole, taken(), strict=True):
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_process_without_images_measures_nothing(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective.data, "batches", [])
    assert activations.Activations(objective, "float32").images() is None


def test_images_are_sent_as_tensors(ends: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled, the images of all processes would lie several times in the memory of each."""
    first, second = make_batches((3, 2))
    data = objective_for(ends, [first]).data
    packed: list[bytes] = []

    def gather(items: list[Any]) -> list[Any]:
        packed.append(pickle.dumps(items))
        return [*items, (1, 1, tuple(second.pixels.shape), second.pixels.dtype)]

    def broadcast(_: object, tensor: Tensor, rank: int) -> None:
        if rank == 1:
            tensor.copy_(second.labels if tensor.ndim == 1 else second.pixels)

    monkeypatch.setattr(data.context, "world_size", 2)
    monkeypatch.setattr(data, "gather", gather)
    monkeypatch.setattr("clipmerge.learning.sharded_batches.broadcast_", broadcast)
    assert torch.equal(data.select([1, 4]).pixels, torch.stack([first.pixels[1], second.pixels[1]]))
    assert data.labels == [*first.labels.tolist(), *second.labels.tolist()]
    assert sum(map(len, packed)) < 1000
