"""Learned coefficients against transformers' own forward in float64, autograd and an Adam written
out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clipmerge.errors import RecipeError
from clipmerge.learning import steps as step_layout
from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.descent import Descent
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.learning.objective import Batch, Objective
from clipmerge.measures.projection_radii import projection_radii
from clipmerge.methods.learned import learned
from clipmerge.planning.measurements import Measurements
from tests.support.small_objective import (
    TEMPLATES,
    Ends,
    Reference,
    descend,
    make_batches,
    objective_for,
    prepare,
)
from tests.support.tasks import task_of

SIZES = (4, 4, 3)
STILL = LossConfig(0.7, augmentations=())
GRANULARITIES = ("layer", "parameter", "channel", "entry")


class SlowLearner:
    """The goal as a function of coefficients, by functional calls of ``CLIPModel`` in float64."""

    def __init__(self, ends: Ends, objective: Objective, granularity: str) -> None:
        self.reference = Reference(ends)
        self.layer_of = {
            name: layer for layer, names in objective.weights.layers.items() for name in names
        }
        self.granularity = granularity

    def key(self, name: str) -> str:
        return self.layer_of[name] if self.granularity == "layer" else name

    def start(self, value: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in self.layer_of:
            shape = self.reference.ends[name][0].shape
            if self.granularity in ("layer", "parameter"):
                shape = torch.Size([])
            elif self.granularity == "channel" and len(shape) > 1:
                shape = torch.Size([shape[0]] + [1] * (len(shape) - 1))
            found[self.key(name)] = torch.full(
                shape, value, dtype=torch.float64, requires_grad=True
            )
        return found

    def logits(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        inputs = {"pixel_values": batch.pixels.double(), **self.reference.tokens}
        output = torch.func.functional_call(self.reference.model, weights, kwargs=inputs)
        text = output.text_embeds / output.text_embeds.norm(dim=-1, keepdim=True)
        images = output.image_embeds / output.image_embeds.norm(dim=-1, keepdim=True)
        return weights["logit_scale"].exp() * images @ text.T

    def loss(
        self, coefficients: dict[str, Tensor], batch: Batch, weight: float
    ) -> tuple[Tensor, Tensor]:
        ends = self.reference.ends
        weights = {name: zero.clone() for name, (zero, _) in ends.items()}
        for name in self.layer_of:
            zero, fine = ends[name]
            weights[name] = (1 - coefficients[self.key(name)]) * zero + coefficients[
                self.key(name)
            ] * fine
        with torch.no_grad():
            old = self.logits({name: zero for name, (zero, _) in ends.items()}, batch).softmax(-1)
        new = self.logits(weights, batch).softmax(-1)
        loss = -new[range(len(batch)), batch.labels].log().mean()
        return loss, (old * (old / new).log()).sum(-1).mean()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_autograds(ends: Ends, granularity: Any) -> None:
    batches = make_batches(SIZES)
    objective = objective_for(ends, batches)
    coefficients = Coefficients(objective, granularity, 0.3)
    step = prepare(objective, STILL, 2)[1]
    coefficients.place()
    with coefficients.collect_gradients():
        seen = descend(objective, step, STILL)
    slow = SlowLearner(ends, objective, granularity)
    own = slow.start(0.3)
    loss, divergence = slow.loss(own, step.batch, 0.7)
    (loss + 0.7 * divergence).backward()
    assert seen.cross_entropy == pytest.approx(loss.item(), rel=1e-5)
    assert seen.distillation_loss == pytest.approx(divergence.item(), rel=1e-4)
    assert own.keys() == coefficients.values.keys()
    for key, value in coefficients.values.items():
        expected = own[key].grad
        scale = float(expected.abs().max())
        assert torch.allclose(value.grad.double(), expected, rtol=1e-3, atol=1e-4 * scale + 1e-7), (
            key
        )


def test_steps_are_adams_with_a_falling_rate_and_one_second_moment_per_parameter_in_the_box(
    ends: Ends,
) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    steps = prepare(objective, STILL, 5)
    coefficients = Coefficients(objective, "channel", 0.9)
    learn(objective, coefficients, LearningConfig(STILL, steps=5, rate=0.2))
    slow = SlowLearner(ends, objective, "channel")
    values = slow.start(0.9)
    first: dict[str, Any] = dict.fromkeys(values, 0.0)
    second = dict.fromkeys(values, 0.0)
    for t in range(5):
        loss, divergence = slow.loss(values, steps[t].batch, 0.7)
        (loss + 0.7 * divergence).backward()
        rate = 0.2 * (1 + math.cos(math.pi * t / 5)) / 2
        for key, value in values.items():
            g: Any = value.grad
            first[key] = 0.9 * first[key] + 0.1 * g
            second[key] = 0.999 * second[key] + 0.001 * float((g * g).mean())
            move = (
                first[key]
                / (1 - 0.9 ** (t + 1))
                / (math.sqrt(second[key] / (1 - 0.999 ** (t + 1))) + 1e-8)
            )
            values[key] = (value - rate * move).detach().clamp(0, 1).requires_grad_()
    assert any(bool(((value == 0) | (value == 1)).any()) for value in values.values())
    for key, value in values.items():
        if not key.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(coefficients.values[key].double(), value, atol=2e-3), key


def test_a_coefficient_that_the_loss_does_not_reach_stays() -> None:
    value = torch.full((), 0.5)
    Descent({"never": value}, 0.1, steps=1).step()
    assert float(value) == 0.5


# with one step, all prompts would be more than the step's own: each step embeds its own, else all
# are embedded once
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("limit", [2, 3, 6, 9])
def test_many_prompts_are_drawn_from(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, limit: int, count: int
) -> None:
    monkeypatch.setattr(step_layout, "PROMPTS_A_STEP", limit)
    objective = objective_for(ends, make_batches(SIZES), templates=TEMPLATES)
    steps = prepare(objective, STILL, count)
    for step in steps:
        templates = 3 if step.templates is None else len(step.templates)
        classes = objective.criterion.prompts.classes if step.classes is None else len(step.classes)
        present = set(step.batch.labels.tolist())
        assert templates * classes <= max(limit, len(present))
        if step.classes is not None:
            assert present <= set(step.classes.tolist())
        assert step.targets.predictions.shape == (len(step.batch), classes)
        objective.weights.set_alpha(0.0)
        # at zero-shot, whatever is drawn, nothing diverges
        assert descend(objective, step, STILL).distillation_loss == pytest.approx(0, abs=1e-6)
    assert (steps[0].templates is None) is (limit == 9)


def test_a_drawn_step_is_the_loss_over_its_classes(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_layout, "PROMPTS_A_STEP", 2)
    batch = Batch(0, make_batches((2,))[0].pixels, torch.tensor([2, 2]))
    objective = objective_for(ends, [batch])
    step = prepare(objective, LossConfig(0.0), 1)[0]
    kept = step.classes.tolist()
    assert len(kept) == 2
    objective.weights.set_alpha(1.0)
    seen = descend(objective, step, LossConfig(0.0))
    reference = Reference(ends).at(1.0)
    output = reference.model(pixel_values=batch.pixels.double(), **reference.tokens)
    logits = output.logits_per_image[:, kept]
    assert seen.cross_entropy == pytest.approx(
        -logits.log_softmax(-1)[:, kept.index(2)].mean().item(), rel=1e-5
    )


def test_radii_step_by_the_rate_in_the_weights_unit(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = projection_radii(objective, steps=1, rate=0.003)
    moved = 0
    both = Reference(ends).ends
    for name, value in found.coefficients.items():
        if name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding
            continue
        zero, fine = both[name]
        radius = float(value) * float((fine - zero).norm())
        # Adam's first step is its rate, one way or the other; a radius below zero is none
        assert radius == pytest.approx(0.003, rel=1e-3) or radius == 0, name
        moved += radius > 0
    assert moved > 0
    assert found.trace["distillation_loss"] == (0.0,)


def test_the_method_needs_coefficients(ends: Ends) -> None:
    with pytest.raises(
        RecipeError, match="path-barrier learns no coefficients; measure with learned-coefficients"
    ):
        learned(task_of(ends, Measurements(measure="path-barrier")))
