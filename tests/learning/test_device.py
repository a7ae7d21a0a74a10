"""Steps on another device: on one without data, which refuses tensors of the CPU and any wait for a
result."""

import gc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from clipmerge.distributed import DistributedContext
from clipmerge.learning import augment
from clipmerge.learning import train as training
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Labelled, Objective
from clipmerge.learning.resume import LearningState
from clipmerge.measures.path_barrier import path_barrier
from tests.support.small_objective import PLAIN, TEMPLATES, Ends, make_batches, objective_for


class OnApple(Tensor):
    """A tensor of a device that, like Apple's, has no float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


@pytest.fixture
def objective(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Objective:
    context = DistributedContext("cpu")
    context.device = torch.device("meta")
    # it has no random numbers and no autocast of its own
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(augment, "_draw_normal", lambda _, images: torch.empty_like(images))
    monkeypatch.setattr(training, "PROMPTS_A_GRADIENT", 100)
    # a card keeps a parameter's identity as it is
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return objective_for(ends, make_batches((4, 3)), context=context, templates=TEMPLATES)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("at_once", [99, 3])
def test_steps_have_all_tensors_where_the_model_is_and_read_losses_once_for_many(
    objective: Objective, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    reads = Mock()
    monkeypatch.setattr(training, "_TAUGHT_TOGETHER", 2)
    monkeypatch.setattr(training, "_require_finite", reads)
    objective.ood = [Labelled(objective.images, objective.classifier)]
    options = replace(PLAIN, batch_size=4, weak_aug=0.25, distill_weight=0.6, num_strong=2, steps=5)
    coefficients = Coefficients(objective.path, "entry")
    objective.micro_batcher.max_images = at_once
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # its losses at the end
        training.train(objective, coefficients, options)
    assert reads.call_count == 4
    assert {value.device.type for value in coefficients.values.values()} == {"meta"}


def test_a_card_embeds_prompts_in_few_pieces_until_its_memory_runs_out(
    ends: Ends, objective: Objective
) -> None:
    """Going forward again costs a card time, and its memory tells when it must."""
    on_cpu = objective_for(ends, make_batches((2,)), templates=TEMPLATES).classifier
    there = objective.classifier
    assert there.at_once == 512 > on_cpu.at_once == 4096 // there.tokens["input_ids"].shape[1]

    def work(count: int) -> int:
        if count > 3:
            raise torch.OutOfMemoryError
        return count

    assert objective.micro_batcher.run(4, work) == 2
    assert there.at_once == on_cpu.at_once


def test_sums_need_no_float64_of_the_device(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_for(ends, make_batches((4, 3)))
    expected = path_barrier(objective)
    real = objective.path.gradient
    monkeypatch.setattr(objective.path, "gradient", lambda name: real(name).as_subclass(OnApple))
    assert path_barrier(objective) == expected


def optimizers() -> int:
    gc.collect()
    return sum(type(each) is training.BoxAdam for each in gc.get_objects())


def test_learning_frees_its_gradients_and_moments(ends: Ends, tmp_path: Path) -> None:
    """They would take twelve bytes per weight while others choose and judge."""
    before = optimizers()
    objective = objective_for(ends, make_batches((4, 3)))
    objective.state = LearningState(tmp_path / "state.pt", objective.context, str)
    coefficients = Coefficients(objective.path, "entry")
    training.train(objective, coefficients, replace(PLAIN, steps=2))
    assert optimizers() == before
    assert all(value.grad is None for value in coefficients.values.values())
