"""Memory that a process may use, told by the files of Linux's control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from clipmerge.models import memory as module
from clipmerge.models.memory import _limits, memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    listed, mounted = folder / "cgroup", folder / "mounted"
    listed.write_text(own, encoding="utf-8")
    for name, text in files.items():
        (mounted / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted / name).write_text(text, encoding="utf-8")
    return listed, mounted


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "17179869184\n"}, [1 << 34]),  # a container of version 2
        ("0::/\n", {"memory.max": "max\n"}, []),
        # a batch job: its own group has no limit, and one around it has
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/step_0/memory.max": "max\n", "slurm/job_7/memory.max": "5\n"}, [5]),
        ("9:name=systemd:/\n4:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": "7\n"}, [7]),  # version 1
        # a container of version 1 sees the host's path, and its own group at the root
        ("4:memory:/docker/0a\n3:cpu:/docker/0a\n", {"memory/memory.limit_in_bytes": "9\n"}, [9]),
        ("nothing that the kernel writes", {}, []),
    ],
)
def test_limits_of_containers_and_batch_jobs(
    tmp_path: Path, own: str, files: dict[str, str], limits: list[int]
) -> None:
    assert list(_limits(*_groups(tmp_path, own, files))) == limits


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert list(_limits(tmp_path / "none", tmp_path)) == []


@pytest.mark.parametrize(("limits", "expected"), [([], PHYSICAL), ([3, PHYSICAL * 2], 3), ([1 << 62], PHYSICAL)])
def test_memory_is_what_the_machine_has_or_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], expected: int
) -> None:
    monkeypatch.setattr(module, "_limits", lambda: iter(limits))
    assert memory(torch.device("cpu")) == expected
