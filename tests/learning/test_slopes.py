"""Slopes of every layer, batch by batch: against float64 gradients of transformers' own forward
pass."""

from typing import Any

import numpy as np
import pytest
import torch

from clipmerge.learning import activations, slopes
from clipmerge.learning.objective import Objective
from clipmerge.learning.slopes import Slopes
from tests.support.small_objective import (
    TEMPLATES,
    Ends,
    Reference,
    make_batches,
    objective_for,
    save_ends,
)
from tests.support.tiny_clip import layer_of

SIZES = (4, 4, 3)
CLASSES = tuple(letter * 2 for letter in "abcdefghijklmnopqrst")
ALPHA = 0.3


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return save_ends(tmp_path_factory.mktemp("ends"), blocks=1, width=8)


def objective_of(
    ends: Ends, prompts_at_once: int = 512, images_at_once: int | None = None
) -> Objective:
    return objective_for(
        ends,
        make_batches(SIZES, len(CLASSES)),
        templates=TEMPLATES[:2],
        classes=CLASSES,
        prompts_at_once=prompts_at_once,
        images_at_once=images_at_once,
    )


@pytest.fixture(scope="module")
def objective(ends: Ends) -> Objective:
    return objective_of(ends)


@pytest.fixture(scope="module")
def expected(ends: Ends, objective: Objective) -> np.ndarray:
    """task_vector_l . gradient_l of each batch's loss: (batches, layers)."""
    reference = Reference(ends, templates=TEMPLATES[:2], classes=CLASSES).at(ALPHA)
    rows = []
    for batch in make_batches(SIZES, len(CLASSES)):
        row = dict.fromkeys(objective.weights.layers, 0.0)
        for name, gradient in reference.gradient(batch).items():
            zeroshot, finetuned = reference.ends[name]
            row[layer_of(name)] += float(((finetuned - zeroshot) * gradient).sum())
        rows.append(list(row.values()))
    return np.array(rows)


def close_to(expected: np.ndarray) -> object:
    return pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("prompts_at_once", "images_at_once"), [(512, None), (7, 3)])
def test_all_prompts_give_every_batchs_own_slopes(
    ends: Ends,
    expected: np.ndarray,
    gradients: bool,
    prompts_at_once: int,
    images_at_once: int | None,
) -> None:
    found = Slopes(
        objective_of(ends, prompts_at_once, images_at_once), exact=True, gradients=gradients
    )
    assert found.drawn == 2 * len(CLASSES)
    assert found.at(ALPHA)[0] == close_to(expected)


@pytest.mark.parametrize("gradients", [False, True])
def test_with_some_prompts_the_means_stay_exact(
    objective: Objective, expected: np.ndarray, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "_SHARE", 0.02)
    some = Slopes(objective, gradients=gradients)
    assert slopes.FEWEST <= some.drawn < 2 * len(CLASSES)
    found = some.at(ALPHA)[0]
    mean = np.average(expected, axis=0, weights=SIZES)
    assert np.average(found, axis=0, weights=SIZES) == close_to(mean)
    vision = [
        place
        for place, layer in enumerate(objective.weights.layers)
        if not layer.startswith("text.")
    ]
    assert found[:, vision] == close_to(expected[:, vision])
    assert np.abs(found - expected).max() > 1e-3


def test_the_draws_average_to_every_batchs_own_slopes(
    objective: Objective, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "_SHARE", 0.02)
    some = Slopes(objective)
    found = np.array([some.at(ALPHA)[0] for _ in range(40)])
    error = found.std(axis=0) / len(found) ** 0.5
    assert (np.abs(found.mean(axis=0) - expected) <= 4.5 * error + 1e-4).all()


def test_gradients_are_weighted_by_their_points(ends: Ends, objective: Objective) -> None:
    found = Slopes(objective, gradients=True)
    found.at(0.0, part=0.25)
    found.at(ALPHA, part=0.75)
    reference = Reference(ends, templates=TEMPLATES[:2], classes=CLASSES)
    total = {name: torch.zeros_like(value) for name, (value, _) in reference.ends.items()}
    for alpha, part in ((0.0, 0.25), (ALPHA, 0.75)):
        for batch in make_batches(SIZES, len(CLASSES)):
            for name, gradient in reference.at(alpha).gradient(batch).items():
                total[name] += part * len(batch) / sum(SIZES) * gradient
    assert found.gradients.keys() == total.keys()
    for name, value in total.items():
        assert torch.allclose(found.gradients[name], value, rtol=1e-3, atol=1e-6), name


def test_images_whose_activations_do_not_fit_go_one_after_another(
    ends: Ends, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, spied: Any
) -> None:
    objective = objective_of(ends)
    monkeypatch.setattr(activations, "usable_memory", lambda _device: 1)
    found = Slopes(objective, exact=True)
    embedded = spied(objective.criterion, "embed")
    assert found.at(ALPHA)[0] == close_to(expected)
    assert [len(call.args[0]) for call in embedded.call_args_list] == [1] * sum(SIZES)


def test_a_draw_takes_each_place_as_often_as_its_chance() -> None:
    sizes = torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0, 4.0])
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(6)
    for _ in range(2000):
        places, chances = slopes._draw(sizes, 3, generator)
        assert len(places) == 3
        assert torch.equal(
            chances, torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0, 0.8], dtype=torch.float64)[places]
        )
        times[places] += 1
    assert (times / 2000).tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 1.0, 0.8], abs=0.05)
