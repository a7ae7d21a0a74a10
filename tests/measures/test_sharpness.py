"""First-order, worst-case and average-case sharpness, each computed by hand in float64, layer by
layer."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from clipmerge.learning.objective import Batch, Objective
from clipmerge.measures._ball import LayerBall
from clipmerge.measures.average_case import average_case
from clipmerge.measures.first_order import first_order
from clipmerge.measures.worst_case import worst_case
from clipmerge.models.classifier import Prompts
from tests.support.small_objective import Ends, Reference, make_batches, objective_for
from tests.support.tiny_clip import layer_of

SIZES = (4, 3)
Norm = Literal["l2", "linf"]
RADIUS: dict[Norm, float] = {"l2": 0.3, "linf": 2e-3}


@pytest.fixture(scope="module")
def reference(ends: Ends) -> Reference:
    return Reference(ends).at(0.5)


@pytest.fixture
def objective(ends: Ends) -> Objective:
    return objective_for(ends, make_batches(SIZES))


def layers_of(reference: Reference) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name in reference.parameters:
        layers.setdefault(layer_of(name), []).append(name)
    return layers


def scale_of(reference: Reference, name: str, adaptive: bool) -> Tensor:
    value = reference.parameters[name].detach()
    return value.abs() if adaptive else torch.ones_like(value)


@contextmanager
def moved(reference: Reference, deltas: dict[str, Tensor]) -> Iterator[None]:
    before = {name: reference.parameters[name].detach().clone() for name in deltas}
    with torch.no_grad():
        for name, delta in deltas.items():
            reference.parameters[name].add_(delta)
        yield
        for name, value in before.items():
            reference.parameters[name].copy_(value)


def rise(reference: Reference, batch: Batch, deltas: dict[str, Tensor]) -> float:
    base = reference.loss(batch).item()
    with moved(reference, deltas):
        return reference.loss(batch).item() - base


def flat(values: list[Tensor]) -> np.ndarray:
    return np.concatenate([value.numpy().ravel() for value in values])


@pytest.mark.uncounted
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_first_order_is_rho_dual_norms(
    objective: Objective, reference: Reference, norm: Norm, adaptive: bool
) -> None:
    found = first_order(objective, norm=norm, rho=0.7, adaptive=adaptive, at=0.5)
    slopes = [reference.gradient(batch) for batch in make_batches(SIZES)]
    for layer, names in layers_of(reference).items():
        expected = []
        for gradients in slopes:
            entries = flat(
                [gradients[name] * scale_of(reference, name, adaptive) for name in names]
            )
            expected.append(
                0.7 * (np.sqrt((entries**2).sum()) if norm == "l2" else np.abs(entries).sum())
            )
        assert found["first_order"].batches[layer] == pytest.approx(expected, rel=1e-4)
        mean = sum(size * value for size, value in zip(SIZES, expected, strict=True)) / sum(SIZES)
        assert found.layers[layer]["first_order"] == pytest.approx(mean, rel=1e-4)
        count = sum(reference.parameters[name].numel() for name in names)
        assert found.layers[layer]["first_order_scaled"] == pytest.approx(
            mean * np.sqrt(count), rel=1e-4
        )


# every two of the three settings meet in the fast ones
@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("norm", "adaptive", "scaled"),
    [
        pytest.param(norm, adaptive, scaled, marks=() if fast else pytest.mark.slow)
        for norm in ("l2", "linf")
        for adaptive in (True, False)
        for scaled in (True, False)
        for fast in [(norm == "l2") == (adaptive == scaled)]
    ],
)
def test_one_step_is_the_loss_at_the_first_order_maximiser(
    objective: Objective, reference: Reference, norm: Norm, adaptive: bool, scaled: bool
) -> None:
    rho = RADIUS[norm] * (0.05 if scaled else 1.0)
    found = worst_case(objective, norm=norm, rho=rho, adaptive=adaptive, scaled=scaled, at=0.5)
    slopes = [reference.gradient(batch) for batch in make_batches(SIZES)]
    for layer, names in layers_of(reference).items():
        count = sum(reference.parameters[name].numel() for name in names)
        radius = rho * (count**0.5 if scaled else 1.0)
        expected = []
        for batch, gradients in zip(make_batches(SIZES), slopes, strict=True):
            scales = {name: scale_of(reference, name, adaptive) for name in names}
            length = np.sqrt((flat([scales[name] * gradients[name] for name in names]) ** 2).sum())
            deltas = {
                name: radius * scales[name] * gradients[name].sign()
                if norm == "linf"
                else radius * scales[name] ** 2 * gradients[name] / length
                for name in names
            }
            expected.append(rise(reference, batch, deltas))
        # differences of float32 losses of order 1
        assert found["worst_case"].batches[layer] == pytest.approx(expected, rel=2e-4, abs=5e-6), (
            layer
        )


@pytest.mark.parametrize("measure", [worst_case, average_case])
def test_weights_stay_there_bit_for_bit(
    objective: Objective, measure: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a layer moves all other parameters stay, and afterwards the layer is restored."""
    objective.path.set_alpha(0.5)
    before = {
        name: parameter.detach().clone() for name, parameter in objective.path.parameters.items()
    }
    original = Prompts.logits
    moving: set[frozenset[str]] = set()

    def watched(self: Prompts, *args: object, **options: object) -> Tensor:
        changed = {
            layer_of(n)
            for n, p in objective.path.parameters.items()
            if not torch.equal(p.detach(), before[n])
        }
        moving.add(frozenset(changed))
        return original(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Prompts, "logits", watched)
    measure(objective, at=0.5)  # type: ignore[operator]
    assert moving - {frozenset()} == {frozenset({layer}) for layer in objective.path.layers}
    assert all(
        torch.equal(parameter.detach(), before[n])
        for n, parameter in objective.path.parameters.items()
    )


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.parametrize("adaptive", [True, False])
def test_average_case_is_the_mean_over_its_draws(
    objective: Objective, reference: Reference, adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("clipmerge.measures.average_case")
    original = module._draw_noise
    drawn: dict[int, list[Tensor]] = {}

    def recorded(objective: Objective, parameters: object, draw: int) -> list[Tensor]:
        noise: list[Tensor] = original(objective, parameters, draw)
        assert all(
            torch.equal(a, b) for a, b in zip(noise, drawn.setdefault(draw, noise), strict=True)
        )
        return noise

    monkeypatch.setattr(module, "_draw_noise", recorded)
    found = average_case(objective, rho=0.1, draws=3, adaptive=adaptive, at=0.5)
    layers = layers_of(reference)
    for column, (layer, names) in enumerate(
        (layer, list(names)) for layer, names in objective.path.layers.items()
    ):
        assert sorted(names) == sorted(layers[layer])
        expected = []
        for batch in make_batches(SIZES):
            rises = []
            for draw in range(3 * column, 3 * column + 3):
                deltas = {
                    name: 0.1 * scale_of(reference, name, adaptive) * value.double()
                    for name, value in zip(names, drawn[draw], strict=True)
                }
                rises.append(rise(reference, batch, deltas))
            expected.append(sum(rises) / 3)
        assert found["average_case"].batches[layer] == pytest.approx(
            expected, rel=2e-4, abs=5e-6
        ), layer


def test_a_layer_without_gradient_stays_where_it_is() -> None:
    for norm in ("l2", "linf"):
        ball = LayerBall([Parameter(torch.ones(3))], norm=norm, radius=1.0, adaptive=True)  # type: ignore[arg-type]
        assert torch.equal(ball.maximiser(torch.zeros(3)), torch.zeros(3))
