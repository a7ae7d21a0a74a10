"""The state of an interrupted run in several processes: the main one reads it, and the others get it from there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipmerge.calibration import resume
from clipmerge.calibration.resume import LearningState

SAVED = {"taken": torch.tensor(3), "values": torch.tensor([0.5, 0.25])}


def blank() -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in SAVED.items()}


def process(file: Path, *, main: bool) -> LearningState:
    state = SimpleNamespace(device=torch.device("cpu"))
    accelerator: Any = SimpleNamespace(num_processes=2, is_main_process=main, state=state)
    return LearningState(lambda: file, accelerator, print)


@pytest.mark.parametrize("exists", [True, False])
def test_the_other_processes_get_the_state_of_the_main_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    file = tmp_path / "state.safetensors"
    if exists:
        save_file(SAVED, file)
    sent: list[Tensor] = []
    monkeypatch.setattr(resume, "broadcast", lambda tensor: sent.append(tensor.clone()) or tensor)
    main, other = blank(), blank()
    assert process(file, main=True).restore(main) is exists

    monkeypatch.setattr(resume, "broadcast", lambda _: sent.pop(0))
    assert process(tmp_path / "not read", main=False).restore(other) is exists
    assert sent == []
    for state in (main, other):
        for name, value in (SAVED if exists else blank()).items():
            assert torch.equal(state[name], value), name
