import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipmerge.errors import CheckpointError, MeasureError
from clipmerge.finding import Finding
from clipmerge.learning.mixtures import try_mixture
from clipmerge.learning.objective import Objective
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.measures.path_barrier import path_barrier
from clipmerge.report.text import texts_of
from tests.support.raw_safetensors import edit
from tests.support.small_objective import (
    TEMPLATES,
    Ends,
    Reference,
    make_batches,
    objective_for,
    save_ends,
)

SIZES = (4, 4, 3)


def all_gradients(objective: Objective) -> list[dict[str, Tensor]]:
    return [
        {
            name: objective.weights.gradient_of(name).clone()
            for name in objective.weights.task_vector
        }
        for _ in objective.gradients()
    ]


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Equal to float32 rounding, seen from the largest entry of any parameter."""
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in found.items():
        assert float((value - expected[name]).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
def test_loss_is_that_of_transformers_own_forward(
    ends: Ends, alpha: float, templates: tuple[str, ...]
) -> None:
    batches = make_batches(SIZES)
    objective = objective_for(ends, batches, templates=templates)
    objective.weights.set_alpha(alpha)
    reference = Reference(ends, templates=templates).at(alpha)
    expected = {batch.number: reference.loss(batch).item() for batch in batches}
    assert objective.losses() == pytest.approx(expected, rel=1e-5)
    assert {b.number: objective.criterion.joint_loss(b).item() for b in batches} == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
@pytest.mark.parametrize("pieces", [False, True])
def test_gradients_are_those_of_one_joint_backward_pass(
    ends: Ends, templates: tuple[str, ...], pieces: bool
) -> None:
    batches = make_batches(SIZES)
    objective = objective_for(
        ends, batches, templates=templates, prompts_at_once=2 if pieces else 512
    )
    objective.weights.set_alpha(0.5)
    reference = Reference(ends, templates=templates).at(0.5)
    found = all_gradients(objective)
    assert len(found) == len(SIZES)
    for batch, gradients in zip(batches, found, strict=True):
        assert gradients.keys() == reference.parameters.keys()
        assert_close(gradients, reference.gradient(batch))


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 5])
def test_gradients_are_the_batchs_however_many_images_are_in_memory(
    ends: Ends, at_once: int, spied: Any
) -> None:
    whole = objective_for(ends, make_batches(SIZES))
    pieces = objective_for(ends, make_batches(SIZES), images_at_once=at_once)
    embedded = spied(pieces.criterion.model, "image_features")
    for objective in (whole, pieces):
        objective.weights.set_alpha(0.5)
    losses = [[value for _, value in objective.gradients()] for objective in (whole, pieces)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    held = [len(call.args[0]) for call in embedded.call_args_list]
    assert max(held) == min(at_once, max(SIZES))
    assert sum(held) == sum(SIZES)
    for found, expected in zip(all_gradients(pieces), all_gradients(whole), strict=True):
        assert_close(found, expected)


def test_a_frozen_text_tower_is_embedded_once_for_a_path(tmp_path: Path, spied: Any) -> None:
    frozen_text, batches = (
        save_ends(tmp_path, moves=("vision_", "visual_", "logit_scale")),
        make_batches(SIZES),
    )
    objective = objective_for(frozen_text, batches)
    embedded = spied(objective.criterion.model, "text_features")
    reference = Reference(frozen_text)
    for alpha in (0.0, 0.5, 1.0):
        objective.weights.set_alpha(alpha)
        reference.at(alpha)
        objective.losses()
        for batch, gradients in zip(batches, all_gradients(objective), strict=True):
            assert not any(name.startswith("text_") for name in gradients)
            assert_close(gradients, reference.gradient(batch))
    assert embedded.call_count == 1
    assert not any(layer.startswith("text.") for layer in objective.weights.layers)


@pytest.mark.parametrize(
    "layer", ["vision.embeddings", "vision.1.mlp", "text.0.attn", "text.projection", "logit_scale"]
)
def test_the_loss_of_one_moving_layer_is_the_whole_loss(ends: Ends, layer: str) -> None:
    batch = make_batches(SIZES)[1]
    objective = objective_for(ends, [batch])
    for alpha in (0.0, 0.5):  # what is kept for a layer is forgotten when the weights move
        objective.weights.set_alpha(alpha)
        reference = Reference(ends).at(alpha)
        with objective.weights.only(layer) as parameters:
            loss = objective.criterion.layer_loss(batch, layer)
            with torch.no_grad():
                for name in objective.weights.layers[layer]:
                    objective.weights.parameters[name].data.mul_(1.1)
                    reference.parameters[name].mul_(1.1)
            value = loss()
            found = dict(
                zip(
                    objective.weights.layers[layer],
                    torch.autograd.grad(value, parameters),
                    strict=True,
                )
            )
        assert value.item() == pytest.approx(reference.loss(batch).item(), rel=1e-5)
        assert_close(found, reference.gradient(batch))


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    broken = save_ends(tmp_path)
    edit(broken[1], visual_projection__weight=torch.full((16, 16), float("nan")))
    with pytest.raises(CheckpointError, match=r"finetuned: tensor .* holds NaN"):
        objective_for(broken, make_batches((2,)))


def test_a_note_is_reported_once(ends: Ends) -> None:
    said = list[str]()
    objective = objective_for(ends, make_batches((2,)), say=said.append)
    for _ in range(2):
        objective.note(Finding.of("less-at-once", images=8, now=4))
    assert texts_of(objective.notes) == said
    assert said == ["memory does not suffice for 8 images at once: going on with 4"]


def test_its_tensors_do_not_wait_for_garbage_collection(ends: Ends) -> None:
    objective = objective_for(ends, make_batches((2,)))
    objective.micro_batcher(None)
    kept = [weakref.ref(part) for part in (objective, objective.weights, objective.inputs)]
    gc.disable()
    try:
        del objective
        assert [part() for part in kept] == [None] * 3
    finally:
        gc.enable()


def test_equal_checkpoints_are_refused(ends: Ends) -> None:
    with pytest.raises(MeasureError, match="hold the same weights"):
        objective_for((ends[0], ends[0]), make_batches((2,)))


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (lambda objective: list(objective.gradients()), "batch 0 is"),
        (
            path_barrier,
            r"the calibration loss at alpha 0\.5 is nan; check that the checkpoints work",
        ),
        (
            lambda objective: try_mixture(objective, (0.5,)),
            r"the calibration loss at weights 0\.5 is nan",
        ),
        (
            lambda objective: learned_coefficients(objective, steps=1),
            "the loss of calibration batch 0 is not finite",
        ),
    ],
)
def test_a_loss_that_is_not_a_number_is_reported_with_its_place(
    ends: Ends, look: Callable[[Objective], Any], told: str
) -> None:
    batches = make_batches((2,))
    batches[0].pixels.fill_(float("nan"))
    with pytest.raises(MeasureError, match=told):
        look(objective_for(ends, batches))


def test_a_mixture_leaves_what_is_not_merged_zero_shot(ends: Ends, tmp_path: Path) -> None:
    partial = (ends[0], Path(shutil.copytree(ends[1], tmp_path / "partial")))
    lost = "visual_projection.weight"
    edit(partial[1], visual_projection__weight=None)
    objective = objective_for(partial, make_batches((2,)), missing="keep-zeroshot")
    try_mixture(objective, (1.0,))
    weights = objective.weights
    assert torch.equal(weights.parameters[lost], objective.inputs.theta_0(lost))
    moved = "text_projection.weight"
    assert torch.equal(weights.parameters[moved], objective.inputs.theta_1(moved))
