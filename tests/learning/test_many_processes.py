"""Learning in processes of its own: several learn what one does, and a device that no other test of
a process meets."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import pretend
from tests.support.command import ROOT, counted, python
from tests.support.several import several
from tests.support.small_objective import save_ends

pytestmark = pytest.mark.slow
can_pretend = pytest.mark.skipif(bool(pretend.refusal("cuda")), reason=pretend.refusal("cuda"))


def learned(
    folder: Path, device: str, processes: int, sizes: tuple[int, ...]
) -> list[dict[str, torch.Tensor]]:
    """The coefficients that every process ends with."""
    arguments = [folder, device, *sizes]
    if device == "cpu":
        run = several(processes, "tests.support.learn_shared", *arguments)
        assert run.returncode == 0, run.stderr[-3000:]
    else:
        pretended(processes, arguments)
    return [
        load_file(folder / f"{device}-{processes}-{number}.safetensors")
        for number in range(processes)
    ]


def pretended(processes: int, arguments: list[Any]) -> None:
    """Learn in processes that have not imported torch before the device exists."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    module = "tests.support.learn_shared"
    command = [sys.executable, "-m", "tests.support.pretend", "cuda", module, *map(str, arguments)]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {name: str(value) for name, value in place.items()}
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        )
    for process in started:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said[-3000:]


@pytest.mark.parametrize(
    ("device", "count", "sizes"),
    [
        pytest.param("cuda", 2, (8, 8, 8, 8, 4), marks=can_pretend),
        ("cpu", 3, (20, 16)),
        ("cpu", 9, (8, 8, 8, 8, 4)),
    ],
)
def test_processes_learn_what_one_does(
    tmp_path: Path, device: str, count: int, sizes: tuple[int, ...]
) -> None:
    """Also where there are fewer batches than processes."""
    save_ends(tmp_path)
    alone = learned(tmp_path, device, 1, sizes)[0]
    assert max(float((value - value.flatten()[0]).abs().max()) for value in alone.values()) > 0.01
    every = learned(tmp_path, device, count, sizes)
    for name, value in alone.items():
        assert all(torch.equal(each[name], every[0][name]) for each in every), name
        if not name.endswith("k_proj.bias"):  # a softmax does not see it: its gradient is rounding
            assert torch.allclose(every[0][name], value, atol=1e-3), name


@can_pretend
@pytest.mark.parametrize(
    ("kind", "only"),
    [
        ("cuda", ""),
        # what learns is on Apple's the same but for where it comes from
        ("mps", "first-order or gram or learned-coefficients or steps or changes or evaluation"),
    ],
)
def test_the_cases_of_the_pretended_device_pass(kind: str, only: str) -> None:
    """Autograd's engine counts the kinds of devices at its first backward pass."""
    cases = Path(__file__).with_name("pretended_device_cases.py")
    words = ("-q", "-n", "0", "-p", "no:cacheprovider", cases, "-k", only)
    run = python("-m", "tests.support.pretend", kind, "pytest", *words, cwd=ROOT, env=counted())
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed", run.stdout, re.MULTILINE), run.stdout
