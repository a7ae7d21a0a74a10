"""Learning in processes of its own: several learn what one does, and a device that no other test of
a process meets."""

import re
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


def test_processes_learn_without_labels_what_one_does(tmp_path: Path) -> None:
    check_processes_learn_alike(tmp_path, "cpu", 3, (20, 16), "no-labels")


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
