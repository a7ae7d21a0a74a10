"""Steps on another device: on one without data, which refuses tensors of the CPU and any wait for a
result."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipmerge.distributed import DistributedContext
from clipmerge.learning import augment
from clipmerge.learning import train as training
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.train import BoxAdam, backward, compute_targets, draw_order, make_lesson
from tests.support.small_objective import PLAIN, TEMPLATES, Ends, make_batches, objective_for


@pytest.fixture
def objective(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Objective:
    context = DistributedContext("cpu")
    context.device = torch.device("meta")
    # it has no random numbers and no autocast of its own
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(augment, "_draw_normal", lambda _, images: torch.empty_like(images))
    monkeypatch.setattr(training, "_PROMPTS_A_STEP", 100)
    # a card keeps a parameter's identity as it is
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return objective_for(ends, make_batches((4, 3)), context=context, templates=TEMPLATES)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("at_once", [99, 3])
def test_a_step_has_all_tensors_where_the_model_is_and_does_not_wait(
    objective: Objective, at_once: int
) -> None:
    options = replace(PLAIN, batch_size=4, weak_aug=0.25, distill_weight=0.6, num_strong=2)
    coefficients = Coefficients(objective.path, "entry")
    adam = BoxAdam(coefficients.values, options.lr, 1.0, {})
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    lesson = make_lesson(objective, draw_order(7, 1, 4, 0)[0], 0, options)
    (targets,) = compute_targets(objective, [lesson], options)
    coefficients.place()
    with coefficients.collect_gradients():
        objective.micro_batcher.max_images = at_once
        losses = backward(objective, lesson, targets, options, scaler, adam)
    adam.step()
    coefficients.place()
    held: list[Tensor] = [losses, lesson.weak, lesson.strong, *(targets or ())]
    held += list(coefficients.values.values())
    held += [value.grad for value in coefficients.values.values() if value.grad is not None]
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert len(held) > 2 * len(coefficients.values)


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


def test_gradients_of_a_batch_too(objective: Objective) -> None:
    objective.path.set_alpha(0.5)
    objective.loss(objective.batches[0]).backward()
    assert {objective.path.gradient(name).device.type for name in objective.path.names} == {"meta"}
    for layer in ("vision.0.mlp", "text.0.attn"):
        loss = objective.layer_loss(objective.batches[0], layer)()
        assert loss.device.type == "meta"
