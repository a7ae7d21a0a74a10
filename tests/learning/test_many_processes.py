"""Learning in several processes: they learn what one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.several import several
from tests.support.small_objective import save_ends

pytestmark = pytest.mark.slow


def check_processes_learn_alike(
    folder: Path,
    device: str,
    count: int,
    sizes: tuple[int, ...],
    labels: str = "labels",
    **options: Any,
) -> None:
    """Several processes end with equal coefficients, and with those of one to rounding."""
    save_ends(folder)
    for processes in (1, count):
        words = (folder, device, labels, *sizes)
        run = several(processes, "tests.support.learn_shared", *words, **options)
        assert run.returncode == 0, run.stderr[-3000:]
    alone = load_file(folder / f"{device}-1-0.safetensors")
    assert max(float((value - value.flatten()[0]).abs().max()) for value in alone.values()) > 0.01
    every = [load_file(folder / f"{device}-{count}-{rank}.safetensors") for rank in range(count)]
    for name, value in alone.items():
        assert all(torch.equal(each[name], every[0][name]) for each in every), name
        if not name.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(every[0][name], value, atol=1e-3), name


@pytest.mark.parametrize(("count", "sizes"), [(3, (20, 16)), (9, (8, 8, 8, 8, 4))])
def test_processes_learn_what_one_does(tmp_path: Path, count: int, sizes: tuple[int, ...]) -> None:
    """Also where there are fewer batches than processes."""
    check_processes_learn_alike(tmp_path, "cpu", count, sizes)
