"""Losses and gradients against transformers' own forward in float64, and the points of a path."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

import clipmerge
from clipmerge.errors import CheckpointError, ClipmergeError
from clipmerge.learning.choose import weighted_accuracies
from clipmerge.learning.objective import Batch, Labelled, Objective
from clipmerge.measures.learned_coefficients import learned_coefficients
from clipmerge.measures.path_accuracy import path_accuracy
from tests.support.raw_safetensors import edit
from tests.support.small_objective import (
    PLAIN,
    TEMPLATES,
    Ends,
    Reference,
    make_batches,
    objective_for,
    save_ends,
)
from tests.support.tiny_clip import Folders

SIZES = (4, 4, 3)


def assert_gradients(objective: Objective, reference: Reference, batches: list[Batch]) -> None:
    """Equal to float32 rounding, seen from the largest entry of any parameter."""
    for batch, loss in objective.gradients():
        given = batches[batch.number]
        assert loss == pytest.approx(reference.loss(given).item(), rel=1e-5)
        expected = reference.gradient(given)
        largest = max(float(value.abs().max()) for value in expected.values())
        for name in objective.path.names:
            difference = objective.path.gradient(name) - expected[name]
            assert float(difference.abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
@pytest.mark.parametrize("at_once", [None, 1, 3])
@pytest.mark.parametrize("prompts_at_once", [2, 512])
def test_losses_and_gradients_are_those_of_one_joint_backward_pass_also_in_pieces(
    ends: Ends, templates: tuple[str, ...], at_once: int | None, prompts_at_once: int
) -> None:
    batches = make_batches(SIZES)
    objective = objective_for(
        ends, batches, templates=templates, prompts_at_once=prompts_at_once, max_images=at_once
    )
    objective.path.set_alpha(0.5)
    reference = Reference(ends, templates=templates).at(0.5)
    assert set(objective.path.names) == reference.parameters.keys()
    assert_gradients(objective, reference, batches)


def test_a_frozen_text_tower_is_embedded_once_for_a_path(tmp_path: Path, spied: Any) -> None:
    frozen_text = save_ends(tmp_path, moves=("vision_", "visual_", "logit_scale"))
    batches = make_batches(SIZES)
    objective = objective_for(frozen_text, batches)
    embedded = spied(objective.path.model, "text_features")
    reference = Reference(frozen_text)
    for alpha in (0.0, 1.0):
        objective.path.set_alpha(alpha)
        reference.at(alpha)
        objective.loss_and_accuracy()
        assert_gradients(objective, reference, batches)
    assert not any(name.startswith("text_") for name in objective.path.names)
    assert embedded.call_count == 1


def test_both_ends_are_the_checkpoints_bit_for_bit(ends: Ends) -> None:
    path = objective_for(ends, make_batches((2,))).path
    reference = Reference(ends)
    for alpha in (0.0, 1.0):
        path.set_alpha(alpha)
        for name in path.names:
            assert torch.equal(path.parameters[name].double(), reference.ends[name][int(alpha)])


def test_what_is_not_merged_stays_zero_shot(ends: Ends, tmp_path: Path) -> None:
    partial = edit(Path(copytree(ends[1], tmp_path / "partial")), visual_projection__weight=None)
    path = objective_for((ends[0], partial), make_batches((2,)), missing="keep-zeroshot").path
    path.set_alpha(1.0)
    lost, moved = "visual_projection.weight", "text_projection.weight"
    assert torch.equal(path.parameters[lost], path.inputs.theta_0(lost))
    assert torch.equal(path.parameters[moved], path.inputs.theta_1(moved))


def test_unusable_checkpoints_are_refused(ends: Ends, tmp_path: Path) -> None:
    with pytest.raises(ClipmergeError, match="hold the same weights"):
        objective_for((ends[0], ends[0]), make_batches((2,)))
    broken = save_ends(tmp_path)
    edit(broken[1], visual_projection__weight=torch.full((16, 16), float("nan")))
    with pytest.raises(CheckpointError, match=r"finetuned: tensor .* holds NaN"):
        objective_for(broken, make_batches((2,)))


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (lambda objective: list(objective.gradients()), "batch 0 is"),
        (path_accuracy, "batch 0 is nan; check the checkpoints"),
        (lambda objective: learned_coefficients(objective, steps=1), "learning is not finite"),
        (
            lambda objective: weighted_accuracies(
                objective, Labelled(objective.images, objective.classifier), PLAIN
            ),
            r"held-out images, with measure\.precision=float32: .* NaN or infinite",
        ),
    ],
)
def test_a_loss_that_is_not_a_number_is_reported_with_its_place(
    ends: Ends, look: Any, told: str
) -> None:
    batches = make_batches((2,))
    batches[0].pixels.fill_(float("nan"))
    with pytest.raises(ClipmergeError, match=told):
        look(objective_for(ends, batches))


def test_a_weight_that_overflows_is_an_error_of_scores(pair: Folders, images: Path) -> None:
    told = "the model's scores are NaN or infinite, .* any alpha outside"
    with pytest.raises(ClipmergeError, match=told):
        clipmerge.sweep(
            *pair, id={"val": images}, ood={"far": images}, alphas=[0, 1e9], dtype="float16"
        )
