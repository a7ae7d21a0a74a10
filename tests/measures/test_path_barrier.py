"""The path's attribution against dense integration in float64, and against its Hessian-vector
form."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import simpson

from clipmerge.measures import path_barrier as module
from clipmerge.measures.path_barrier import path_barrier
from clipmerge.planning.measurements import Measurements
from tests.support.small_objective import Ends, Reference, make_batches, objective_for, save_ends
from tests.support.tiny_clip import layer_of

SIZES = (4, 4, 3)
Table = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def found(short_ends: Ends) -> Measurements:
    return path_barrier(objective_for(short_ends, make_batches(SIZES)), nodes=8)


@pytest.fixture(scope="module")
def dense(short_ends: Ends) -> dict[str, Table]:
    """One value per batch by statistic and layer, from 65 gradients of each batch."""
    reference = Reference(short_ends)
    slopes = defaultdict[str, np.ndarray](lambda: np.zeros((65, len(SIZES))))
    for row, alpha in enumerate(np.linspace(0, 1, 65)):
        reference.at(float(alpha))
        for column, batch in enumerate(make_batches(SIZES)):
            for name, gradient in reference.gradient(batch).items():
                zero, fine = reference.ends[name]
                slopes[layer_of(name)][row, column] += float(((fine - zero) * gradient).sum())
    halves = {
        layer: [simpson(half, dx=1 / 64, axis=0) for half in (each[:33], each[32:])]
        for layer, each in slopes.items()
    }
    return {
        "barrier": {layer: (first - second) / 2 for layer, (first, second) in halves.items()},
        "loss_drop": {layer: first + second for layer, (first, second) in halves.items()},
    }


def test_shares_are_those_of_dense_integration(
    found: Measurements, dense: dict[str, Table]
) -> None:
    for statistic, table in dense.items():
        assert found.layers.keys() == table.keys()
        for layer, expected in table.items():
            mean = float(np.average(expected, weights=SIZES))
            # float32 gradients and eight nodes a half
            near = {"rel": 1e-3, "abs": 1e-5}
            assert found.layers[layer][statistic] == pytest.approx(mean, **near), layer
            batches = found[statistic].batches[layer]
            assert batches == pytest.approx(expected.tolist(), **near), layer


def test_shares_add_up_to_the_measured_totals(short_ends: Ends, found: Measurements) -> None:
    reference = Reference(short_ends)
    assert found.path is not None
    path = dict(zip(found.path.alphas, found.path.losses, strict=True))
    assert len(path) == 1 + 2 * 8
    assert list(path) == sorted(path)
    for alpha, value in path.items():
        reference.at(alpha)
        mean = np.average([reference.loss(b).item() for b in make_batches(SIZES)], weights=SIZES)
        assert value == pytest.approx(mean, rel=1e-5)
    expected = {"barrier": path[0.5] - (path[0] + path[1]) / 2, "loss_drop": path[1] - path[0]}
    for statistic, total in expected.items():
        assert sum(found[statistic].values.values()) == pytest.approx(total, rel=1e-3)
        assert found.checks[statistic].measured == pytest.approx(total)


@pytest.mark.slow
def test_a_bent_path_gets_more_nodes_and_rounding_does_not(
    short_ends: Ends, tmp_path: Path
) -> None:
    found = path_barrier(objective_for(short_ends, make_batches(SIZES)), nodes=1, tolerance=1e-3)
    assert found.path is not None
    used = (len(found.path.alphas) - 1) // 2
    assert used > 1
    (note,) = found.notes
    assert note.startswith(f"the loss bends along the path: {used} points")
    assert all(check.relative_error <= 1e-3 for check in found.checks.values())
    near = save_ends(tmp_path / "near", blocks=1, width=8, change=1e-6)
    found = path_barrier(objective_for(near, make_batches(SIZES)))
    assert found.notes == ()
    assert found.path is not None
    assert len(found.path.alphas) == 1 + 2 * 3


def test_an_attribution_that_does_not_add_up_is_reported(
    short_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_for(short_ends, make_batches((4,)))
    original = module._slopes
    monkeypatch.setattr(module, "_slopes", lambda *arguments: 1.5 * original(*arguments))
    found = path_barrier(objective)
    assert "off the measured total" in found.notes[0]
    assert "with 24 nodes" in found.notes[0]
