"""Learned coefficients against transformers' own forward in float64, autograd and an Adam written
out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clipmerge.learning.augment import AUGMENTATIONS, strong_augment, weak_augment
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Batch, Labelled, Objective
from clipmerge.learning.train import LearningOptions, draw_order, train
from clipmerge.measures.projection_radii import projection_radii
from tests.support.small_objective import (
    PLAIN,
    TEMPLATES,
    Ends,
    Reference,
    joined,
    make_batches,
    objective_for,
)

SIZES = (4, 4, 3)
RATE = 0.01
STILL = replace(PLAIN, steps=5, batch_size=4, augmentations=(), distill_weight=0.7)


def one_step(
    objective: Objective, options: LearningOptions, at_once: int
) -> tuple[dict[str, Tensor], Batch, list[float]]:
    """The coefficients after a step, which is in proportion to the gradient; also the step's
    images, and its mean cross-entropy and distillation loss."""
    objective.micro_batcher.max_images = at_once
    coefficients = Coefficients(objective.path, "entry", 0.9)
    (losses,) = train(objective, coefficients, replace(options, steps=1, lr=RATE))
    order = draw_order(len(objective.images), 1, options.batch_size, objective.seed)
    return coefficients.values, objective.images.take(order[0]), losses


def doubled(coefficients: Coefficients) -> dict[str, Tensor]:
    values = coefficients.values.items()
    return {key: value.double().requires_grad_() for key, value in values}


class SlowLearner:
    """The goal as a function of coefficients, by functional calls of ``CLIPModel`` in float64."""

    def __init__(self, ends: Ends, objective: Objective) -> None:
        self.reference = Reference(ends)
        layers = objective.path.layers.items()
        self.layer_of = {name: layer for layer, names in layers for name in names}

    def answer(self, weights: dict[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings and the probabilities of images."""
        inputs = {"pixel_values": pixels.double(), **self.reference.tokens}
        output = torch.func.functional_call(self.reference.model, weights, kwargs=inputs)
        return output.image_embeds, output.logits_per_image.softmax(-1)

    def entropy(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        _, seen = self.answer(weights, batch.pixels)
        return -seen[range(len(batch)), batch.labels].log().mean()

    def distance(self, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """The mean distance from the zero-shot model and from the middle."""
        ends = self.reference.ends.items()
        with torch.no_grad():
            old, of_old = self.answer({name: zero for name, (zero, _) in ends}, pixels)
            middle = {name: (zero + fine) / 2 for name, (zero, fine) in ends}
            half, of_half = self.answer(middle, pixels)
        own, new = self.answer(weights, pixels)
        both = (of_old + of_half) / 2
        divergence = (both * (both / new).log()).sum(-1)
        cosine = (cosine_similarity(own, old) + cosine_similarity(own, half)) / 2
        return (divergence / 2 + 2 * (1 - cosine)).mean()

    def weights(self, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Coefficients are named by parameter or by layer."""
        return {
            name: zero
            + coefficients[name if name in coefficients else self.layer_of[name]] * (fine - zero)
            for name, (zero, fine) in self.reference.ends.items()
        }

    def loss(
        self, coefficients: dict[str, Tensor], batch: Batch, shift: Batch | None = None
    ) -> Tensor:
        weights = self.weights(coefficients)
        loss = self.entropy(weights, batch) + 0.7 * self.distance(weights, batch.pixels)
        return loss if shift is None else loss + 0.5 * self.entropy(weights, shift)


@pytest.mark.parametrize(
    ("granularity", "sizes_of_shifts"),
    [("layer", ()), ("parameter", ()), ("channel", (3,)), ("entry", ()), ("entry", (3, 7))],
)
def test_steps_are_adams_with_a_falling_rate_and_one_second_moment_per_parameter_in_the_box(
    ends: Ends, granularity: Any, sizes_of_shifts: tuple[int, ...]
) -> None:
    """Shifts teach in turn."""
    objective = objective_for(ends, make_batches(SIZES))
    shifts = [joined(make_batches((size,), seed=size)) for size in sizes_of_shifts]
    objective.ood = [Labelled(shift, objective.classifier) for shift in shifts]
    of_shifts = [draw_order(size, 5, 4, 0) for size in sizes_of_shifts]
    coefficients = Coefficients(objective.path, granularity, 0.9)
    sizes = {"layer": 1, "parameter": 1, "channel": 16, "entry": 256}
    assert list(coefficients.values.values())[-2].numel() == sizes[granularity]
    values = doubled(coefficients)
    train(objective, coefficients, replace(STILL, lr=0.2, ood_weight=0.5, ood_batch_size=4))
    slow = SlowLearner(ends, objective)
    first: dict[str, Any] = dict.fromkeys(values, 0.0)
    second = dict.fromkeys(values, 0.0)
    for t, positions in enumerate(draw_order(sum(SIZES), 5, SIZES[0], 0)):
        batch = Batch(0, objective.images.pixels[positions], objective.images.labels[positions])
        shift = None
        if shifts:
            turn = t % len(shifts)
            shift = shifts[turn].take(of_shifts[turn][t])
        slow.loss(values, batch, shift).backward()
        rate = 0.2 * (1 + math.cos(math.pi * t / 5)) / 2
        for key, value in values.items():
            g: Any = value.grad
            first[key] = 0.9 * first[key] + 0.1 * g
            second[key] = 0.999 * second[key] + 0.001 * float((g * g).mean())
            scale = math.sqrt(second[key] / (1 - 0.999 ** (t + 1))) + 1e-8
            move = first[key] / (1 - 0.9 ** (t + 1)) / scale
            values[key] = (value - rate * move).detach().clamp(0, 1).requires_grad_()
    for key, value in values.items():
        if not key.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(coefficients.values[key].double(), value, atol=2e-3), key


@pytest.mark.parametrize("at_once", [999, 3, 1])
def test_a_step_is_the_loss_of_views_and_the_distance_of_changed_copies_also_in_pieces(
    ends: Ends, at_once: int
) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    views = {"weak_aug": 0.25, "num_strong": 3, "augmentations": AUGMENTATIONS}
    options = replace(STILL, distill_weight=1.0, **views)
    values, batch, (entropy, distance) = one_step(objective, options, at_once)
    slow = SlowLearner(ends, objective)
    weights = slow.weights(doubled(Coefficients(objective.path, "entry", 0.9)))
    view = replace(batch, pixels=weak_augment(batch.pixels, 1, 0.25))
    assert entropy == pytest.approx(slow.entropy(weights, view).item(), rel=1e-4)
    expected = slow.distance(weights, strong_augment(batch.pixels[:3], 0))
    assert distance == pytest.approx(expected.item(), rel=1e-3)
    whole, *_ = one_step(objective, options, 999)
    for key, value in whole.items():
        if not key.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(values[key], value, atol=2e-3 * RATE), key
    assert all(objective.path.parameters[name].grad is None for name in objective.path.names)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_learn_nearly_the_same(ends: Ends, precision: Any) -> None:
    def learned(used: Any) -> tuple[Tensor, Tensor]:
        objective = objective_for(ends, make_batches(SIZES))
        coefficients = Coefficients(objective.path, "layer")
        options = replace(PLAIN, steps=6, distill_weight=0.6, lr=0.02, precision=used)
        trace = train(objective, coefficients, options)
        return torch.tensor(trace)[:, 0], torch.stack([*coefficients.values.values()])

    (losses, values), (near_losses, near) = map(learned, ("float32", precision))
    assert torch.allclose(losses, near_losses, rtol=0.05)
    assert 0 < float((values - near).abs().mean()) < 0.02


@pytest.mark.parametrize("limit", [2, 3, 6, 9])
def test_many_prompts_are_drawn_from(ends: Ends, limit: int) -> None:
    classifier = objective_for(ends, make_batches(SIZES), templates=TEMPLATES).classifier
    labels = torch.tensor([2, 2, 0])
    prompts, columns = classifier.draw(labels, 0, limit)
    assert (prompts is None) is (limit == 9)
    drawn = torch.arange(9).view(3, 3) if prompts is None else prompts
    assert drawn.numel() <= limit
    assert (drawn // 3 == drawn[:, :1] // 3).all()
    assert (drawn[:, 0] // 3)[columns].tolist() == labels.tolist()


def test_every_image_is_seen_before_any_is_repeated() -> None:
    order = draw_order(10, 7, 4, seed=1).flatten()
    assert order[:10].sort().values.tolist() == order[10:20].sort().values.tolist() == [*range(10)]
    assert not torch.equal(order[:10], draw_order(10, 7, 4, seed=2).flatten()[:10])


def test_radii_step_by_the_rate_in_the_weights_unit(ends: Ends) -> None:
    objective = objective_for(ends, make_batches(SIZES))
    found = projection_radii(objective, steps=1, lr=0.003)
    both = Reference(ends).ends
    radii = []
    for name, value in found.coefficients.items():
        if name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding
            continue
        zero, fine = both[name]
        radii.append(float(value) * float((fine - zero).norm()))
        # Adam's first step is its rate, one way or the other; a radius below zero is none
        assert radii[-1] == pytest.approx(0.003, rel=1e-3) or radii[-1] == 0, name
    assert max(radii) > 0
