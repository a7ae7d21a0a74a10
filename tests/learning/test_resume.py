"""Learning that is interrupted: the same command goes on, and ends with the same bits."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

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


class Signal(TorchFunctionMode):
    """Ctrl-C in place of one of torch's functions: the one before which so many are called."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        return func(*args, **(kwargs or {}))


def test_an_interruption_inside_a_step_resumes_after_the_last_whole_one(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At twelve moments of the third step."""
    real, signal = BoxAdam.step, Signal(10**6)

    def step(adam: BoxAdam) -> None:
        with signal if adam.steps_taken == 2 else nullcontext():
            real(adam)

    monkeypatch.setattr(BoxAdam, "step", step)
    expected = learned(objective_for(ends, make_batches((8, 8))))
    calls = 10**6 - signal.calls
    for moment in range(12):
        signal.calls = moment * (calls - 1) // 11
        file, said = tmp_path / f"{moment}" / "state.pt", list[str]()
        # at the first moment the interruption alone writes, later each step does
        monkeypatch.setattr(resume, "SECONDS", 0.0 if moment else 30.0)
        objective = saving(ends, file, said)
        assert objective.state is not None
        # the last call turns gradients on again
        with (
            pytest.raises(KeyboardInterrupt),
            objective.state.saving_if_interrupted(),
            torch.enable_grad(),
        ):
            learned(objective)
        signal.calls = 10**6
        found = learned(saving(ends, file, said))
        assert said == [
            "the learning is saved; the same command resumes there",
            "learning resumes after step 2, saved by an earlier run",
        ]
        assert all(map(torch.equal, found, expected))


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
