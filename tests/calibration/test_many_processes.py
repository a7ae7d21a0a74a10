"""Two, four and eight processes learn what one does, and collectives get what NCCL takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import pretended_device
from tests.support.small_objective import save_ends

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not pretended_device.SUPPORTED, reason="torch has no backends in Python before 2.9"),
]
ROOT = Path(__file__).parents[2]


def learned(folder: Path, device: str, processes: int) -> list[dict[str, torch.Tensor]]:
    """The coefficients that every process ends with."""
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(starter if processes > 1 else []), "-m", "tests.support.learn_shared"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(folder), device], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [load_file(folder / f"{device}-{processes}-{number}.safetensors") for number in range(processes)]


@pytest.mark.parametrize(("device", "counts"), [(pretended_device.NAME, (2,)), ("cpu", (4, 8))])
def test_processes_learn_what_one_does(tmp_path: Path, device: str, counts: tuple[int, ...]) -> None:
    save_ends(tmp_path)
    alone = learned(tmp_path, device, 1)[0]
    assert max(float((value - value.flatten()[0]).abs().max()) for value in alone.values()) > 0.01
    for count in counts:
        every = learned(tmp_path, device, count)
        for name, value in alone.items():
            assert all(torch.equal(each[name], every[0][name]) for each in every), name
            if not name.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
                assert torch.allclose(every[0][name], value, atol=1e-3), (count, name)
