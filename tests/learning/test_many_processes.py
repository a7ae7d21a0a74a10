"""Learning in several processes: they learn what one does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import several
from tests.support.small_objective import save_ends

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "count", "sizes"),
    [
        ("classes", 2, (20, 16)),
        ("captions", 2, (8, 8, 8)),
        ("classes", 9, (4, 3)),  # fewer images in a step than processes
    ],
)
def test_processes_learn_what_one_does(
    tmp_path: Path, kind: str, count: int, sizes: tuple[int, ...]
) -> None:
    """They end with equal coefficients, those of one, bit for bit."""
    save_ends(tmp_path)
    for processes in (1, count):
        run = several(processes, "tests.support.learn_shared", tmp_path, kind, *sizes)
        assert run.returncode == 0, run.stderr[-3000:]
    alone = load_file(tmp_path / "1-0.safetensors")
    assert max(float((value - value.flatten()[0]).abs().max()) for value in alone.values()) > 0.01
    every = [load_file(tmp_path / f"{count}-{rank}.safetensors") for rank in range(count)]
    for name, value in alone.items():
        assert all(torch.equal(each[name], value) for each in every), name
