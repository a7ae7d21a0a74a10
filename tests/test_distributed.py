"""Several processes: the same bytes as one process, and one clear message if a process is lost or the disk is full."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import clipmerge, start
from tests.support.lose_a_process import LOST

pytestmark = pytest.mark.slow
Folders = tuple[Path, Path]
ROOT = Path(__file__).parents[1]
SECONDS_TO_END = 60
# half of the layers are stragglers, so that they get the mask that ranks gradients summed over processes
MASKED = ("--set", "method.threshold=0.001", "--set", "method.mirror=0", "--set", "method.stability=0.01")


def run(
    processes: int, module: str, *arguments: object, preexec_fn: Callable[[], None] | None = None
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a module in several processes; also returns the seconds by which the run outlived a lost process."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [*starter, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=preexec_fn,
    )
    lost = [float(line.removeprefix(LOST)) for line in result.stderr.splitlines() if line.startswith(LOST)]
    return result, time.time() - lost[0] if lost else 0.0


def merge(pair: Folders, images: Path, output: Path, *more: str) -> list[str]:
    flags = ["--data", str(images), "--batch-size", "7", "--device", "cpu", "--output", str(output), "--format", "json"]
    return ["merge", *map(str, pair), "--recipe", "straggler-outlier", *flags, *more]


def clear_line(result: subprocess.CompletedProcess[str], where: Path) -> str:
    """The one line in which clipmerge says what happened; nothing is left, and no traceback leads into clipmerge."""
    assert result.returncode != 0
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr[-3000:]
    assert f"{ROOT}/clipmerge/" not in result.stderr, result.stderr[-3000:]
    assert list(where.iterdir()) == []
    return lines[0]


@pytest.mark.parametrize("lost", ["0", "1"])
def test_a_process_that_is_killed_ends_the_run(pair: Folders, images: Path, tmp_path: Path, lost: str) -> None:
    result, seconds = run(2, "tests.support.lose_a_process", lost, "SIGKILL", *merge(pair, images, tmp_path / "out"))
    line = clear_line(result, tmp_path)
    assert "another process of this run ended" in line or "ended from outside (SIGTERM" in line
    assert seconds < SECONDS_TO_END


def test_what_one_process_cannot_read_ends_the_run(pair: Folders, images: Path, tmp_path: Path) -> None:
    result, seconds = run(2, "tests.support.lose_a_process", "1", "fail", *merge(pair, images, tmp_path / "out"))
    lines = {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    assert "error: images/7.png: cannot be read" in lines
    assert len(lines) <= 2  # the other process may have had the time to say that it was left alone
    assert result.returncode != 0
    assert list(tmp_path.iterdir()) == []
    assert seconds < SECONDS_TO_END


def test_a_disk_that_fills_ends_the_run(pair: Folders, images: Path, tmp_path: Path) -> None:
    size = (pair[0] / "model.safetensors").stat().st_size
    limit = size // 2
    result, _ = run(
        2,
        "clipmerge",
        *merge(pair, images, tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "cannot be written (File too large); nothing was left behind" in clear_line(result, tmp_path)


def test_a_terminated_merge_leaves_nothing(pair: Folders, tmp_path: Path) -> None:
    flags = ("--recipe", "wise-ft", "--output", tmp_path / "a" / "out", "--format", "json")
    process = start("merge", *pair, *flags)
    while process.poll() is None and not (tmp_path / "a").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    if process.returncode == 0:  # it was faster than the signal
        assert (tmp_path / "a" / "out" / "clipmerge.json").exists()
        return
    assert (process.returncode, out) == (143, "")
    assert [line.split("(")[0] for line in err.splitlines()] == ["error: ended from outside "]
    assert list(tmp_path.iterdir()) == []


def test_two_processes_write_the_bytes_of_one(pair: Folders, images: Path, tmp_path: Path) -> None:
    assert clipmerge(*merge(pair, images, tmp_path / "1", *MASKED)).code == 0
    for processes in (2, 3):
        result, _ = run(processes, "clipmerge", *merge(pair, images, tmp_path / str(processes), *MASKED))
        assert result.returncode == 0, result.stderr[-3000:]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "123"]
    assert '"density": 0.5' in (tmp_path / "1" / "clipmerge.json").read_text()
    assert [hashlib.sha256(each).hexdigest() for each in files[1:]] == [hashlib.sha256(files[0]).hexdigest()] * 2


def test_tasks_of_srun_write_the_bytes_of_one_process(pair: Folders, images: Path, tmp_path: Path) -> None:
    """Two processes with the variables that Slurm gives the tasks of a step."""
    assert clipmerge(*merge(pair, images, tmp_path / "1")).code == 0
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    tasks = [
        start(
            *merge(pair, images, tmp_path / "2"),
            env={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    ends = [(*task.communicate(timeout=300), task.returncode) for task in tasks]
    assert [code for *_, code in ends] == [0, 0], ends
    assert [bool(out) for out, *_ in ends] == [True, False]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "12"]
    assert files[0] == files[1]
