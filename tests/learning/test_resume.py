"""Learning that is interrupted: the same command goes on, and ends with the same bits."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from clipmerge.learning import resume
from clipmerge.learning.interpolate import Coefficients
from clipmerge.learning.objective import Objective
from clipmerge.learning.resume import LearningState
from clipmerge.learning.train import BoxAdam, train
from tests.support.small_objective import PLAIN, Ends, make_batches, objective_for

OPTIONS = replace(PLAIN, steps=7, lr=0.05, distill_weight=0.6, weak_aug=0.25)


def learned(objective: Objective) -> list[torch.Tensor]:
    """The losses and the coefficients."""
    coefficients = Coefficients(objective.path, "entry")
    trace = train(objective, coefficients, OPTIONS)
    return [torch.tensor(trace), *coefficients.by_parameter().values()]


def saving(ends: Ends, file: Path, said: list[str]) -> Objective:
    objective = objective_for(ends, make_batches((8, 8)))
    objective.state = LearningState(file, objective.context, said.append)
    return objective


@pytest.mark.parametrize(
    ("place", "seconds"),
    [
        ("", 30.0),  # between steps: the interruption alone saves
        ("lerp_", 0.0),  # each step saves
        ("clamp_", 0.0),
    ],
)
def test_an_interruption_inside_a_step_resumes_after_the_last_whole_one(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, seconds: float
) -> None:
    """Ctrl-C in the third step of Adam."""
    real = BoxAdam.step

    def step(adam: BoxAdam) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if adam.steps_taken == 2 and not place:
                raise KeyboardInterrupt
            if adam.steps_taken == 2:
                patch.setattr(torch.Tensor, place, Mock(side_effect=KeyboardInterrupt))
            real(adam)

    monkeypatch.setattr(resume, "SECONDS", seconds)
    file, said = tmp_path / "state.pt", list[str]()
    objective = saving(ends, file, said)
    assert objective.state is not None
    with monkeypatch.context() as patch:
        patch.setattr(BoxAdam, "step", step)
        with pytest.raises(KeyboardInterrupt), objective.state.saving_if_interrupted():
            learned(objective)
    found = learned(saving(ends, file, said))
    assert said == [
        "the learning is saved; the same command resumes there",
        "learning resumes after step 2, saved by an earlier run",
    ]
    assert all(map(torch.equal, found, learned(objective_for(ends, make_batches((8, 8))))))


def test_learning_starts_over_if_its_state_is_damaged(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    file, said = tmp_path / "state.pt", list[str]()
    expected = learned(saving(ends, file, said))
    file.write_bytes(b"no state")
    found = learned(saving(ends, file, said))
    assert "cannot be used" in said[-1]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("unexpected pos 64 vs 0")])
def test_on_a_full_disk_learning_goes_on(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    said = list[str]()

    def full(_: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    found = learned(saving(ends, tmp_path / "state.pt", said))
    expected = learned(objective_for(ends, make_batches((8, 8))))
    assert all(map(torch.equal, found, expected))
    assert said[0] == f"the state of learning cannot be saved ({error}); learning goes on"
    assert not any(tmp_path.iterdir())
