"""Learning in processes of its own: several learn what one does, and a device that no other test of
a process meets."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import pretended_device
from tests.support.command import ROOT, counted, python
from tests.support.several import several
from tests.support.small_objective import save_ends

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not pretended_device.SUPPORTED, reason="torch has no backends in Python before 2.9"
    ),
]


def learned(folder: Path, device: str, processes: int) -> list[dict[str, torch.Tensor]]:
    """The coefficients that every process ends with."""
    run = several(processes, "tests.support.learn_shared", folder, device)
    assert run.returncode == 0, run.stderr[-3000:]
    return [
        load_file(folder / f"{device}-{processes}-{number}.safetensors")
        for number in range(processes)
    ]


@pytest.mark.parametrize(("device", "counts"), [(pretended_device.NAME, (2,)), ("cpu", (8,))])
def test_processes_learn_what_one_does(
    tmp_path: Path, device: str, counts: tuple[int, ...]
) -> None:
    save_ends(tmp_path)
    alone = learned(tmp_path, device, 1)[0]
    assert max(float((value - value.flatten()[0]).abs().max()) for value in alone.values()) > 0.01
    for count in counts:
        every = learned(tmp_path, device, count)
        for name, value in alone.items():
            assert all(torch.equal(each[name], every[0][name]) for each in every), name
            if not name.endswith(
                "k_proj.bias"
            ):  # a softmax does not see it: its gradient is rounding
                assert torch.allclose(every[0][name], value, atol=1e-3), name


def test_the_cases_of_the_pretended_device_pass() -> None:
    """Autograd's engine counts the kinds of devices at its first backward pass."""
    cases = Path(__file__).with_name("pretended_device_cases.py")
    run = python(
        "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", cases, cwd=ROOT, env=counted()
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed in ", run.stdout, re.MULTILINE), (
        run.stdout
    )  # and none was skipped
