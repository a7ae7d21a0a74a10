"""Losses that are no number are refused where they appear, with the place on the path."""

import pytest
import torch

from clipmerge.calibration.coefficients import Coefficients
from clipmerge.calibration.mixtures import try_mixture
from clipmerge.calibration.objective import Objective
from clipmerge.errors import MeasureError
from clipmerge.measures.path_barrier import path_barrier
from tests.support.small_objective import Ends, make_batches, objective_for


@pytest.fixture
def spoiled(ends: Ends) -> Objective:
    """An objective whose images are not numbers, so that no loss is one."""
    batches = make_batches((2,))
    batches[0].pixels.fill_(float("nan"))
    return objective_for(ends, batches)


def test_a_path_names_the_point(spoiled: Objective) -> None:
    with pytest.raises(
        MeasureError, match=r"the calibration loss at alpha 0\.5 is nan; check that the checkpoints work"
    ):
        path_barrier(spoiled)


def test_a_mixture_names_its_weights(spoiled: Objective) -> None:
    with pytest.raises(MeasureError, match=r"the calibration loss at weights 0\.5 is nan"):
        try_mixture(spoiled, (0.5,))


def test_a_density_of_one_drops_nothing(ends: Ends) -> None:
    objective = objective_for(ends, make_batches((2,)))
    coefficients = Coefficients(objective, "entry", 0.5)
    coefficients.make_sparse(objective.path.layers["vision.0.mlp"], 1.0)
    assert all(bool((value == 0.5).all()) for value in coefficients.by_parameter().values())
    coefficients.make_sparse(objective.path.layers["vision.0.mlp"], 0.5)
    dropped = {name for name, value in coefficients.by_parameter().items() if bool((value == 0).any())}
    assert dropped == {
        name for name in objective.path.layers["vision.0.mlp"] if objective.path.theta_0[name].numel() > 1
    }


def test_what_lies_in_memory_alone_is_copied(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends with other storage at each reading, as those of an adapter, are held, and move like mapped ones."""
    from clipmerge.checkpoint import Inputs

    mapped = objective_for(ends, make_batches((2,)))
    for end in ("theta_0", "theta_1"):
        read = getattr(Inputs, end)
        monkeypatch.setattr(Inputs, end, lambda *given, read=read, **named: read(*given, **named).clone())
    held = objective_for(ends, make_batches((2,)))
    for objective in (mapped, held):
        objective.path.move_to(0.3)
    assert all(torch.equal(value, mapped.path.parameters[name]) for name, value in held.path.parameters.items())
    first, second = held.path.theta_0, mapped.path.theta_0
    assert all(torch.equal(first[name], second[name]) for name in second)
