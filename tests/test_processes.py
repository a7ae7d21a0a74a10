"""Runs of several processes, and processes that are interrupted or fail."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from safetensors.torch import load_file

from clipmerge import distributed
from clipmerge.parallel import cores_per_process
from tests.support.command import ROOT, done, several, start
from tests.support.tiny_clip import Folders

LEARN = ("--images", 24, "--batch-size", 4, "--set", "measure.steps=3", "--allow", "at-chance")


@pytest.mark.slow
def test_more_processes_than_batches_learn_and_judge_as_one_does(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    words = ("merge", *pair, "-r", "auto", "--data", images, *LEARN, "--json")
    words = (*words, "--batch-size", 12, "--set", "measure.precision=float32", "-o")
    alone = done(*words, tmp_path / "alone").json
    ended = several(3, "clipmerge", *words, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    record = json.loads(ended.stdout)  # only the main process prints
    assert record["verdict"] == alone["verdict"]
    written, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("out", "alone")
    )
    for name, value in expected.items():
        assert torch.allclose(written[name], value, rtol=1e-4, atol=1e-5), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("", "error: {output}: "),  # a check of the main process alone
        ("1", "error in process 1: out of memory (a smaller --batch-size needs less)"),
    ],
)
def test_an_error_of_one_process_is_reported_once_and_ends_all(
    pair: Folders, images: Path, tmp_path: Path, lost: str, told: str
) -> None:
    """Started as ``srun`` does: nobody ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "out"
    if not lost:
        output.write_text("")
    flags = ("-r", "auto", "--data", images, *LEARN[:4], "--set", "measure.steps=3000")
    words = ("merge", *pair, *flags, "--allow", "at-chance", "-o", output)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = []
    for rank in ("0", "1"):
        env = {**address, "RANK": rank, "LOCAL_RANK": rank, "FAULT": lost, **cached(tmp_path)}
        processes.append(start(*words, module="tests.support.faulty", env=env))
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode for process in processes)
    lines = [line for _, err in ended for line in err.splitlines() if "note: " not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(told.format(output=output))


def test_a_process_that_does_not_see_a_signal_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a library may not notice a signal."""
    end = Mock()
    store = Mock(**{"check.side_effect": [False, True, RuntimeError("the store has ended")]})
    monkeypatch.setattr(distributed, "_store", store)
    monkeypatch.setattr(distributed, "_is_ending", threading.Event())
    monkeypatch.setattr(distributed, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(os, "kill", end)
    monkeypatch.setattr(os, "_exit", end)
    distributed._end_with_others()
    assert end.mock_calls == [call(os.getpid(), signal.SIGTERM), call(1)]
    monkeypatch.setenv("RANK", "1")
    store.check.side_effect = [False, True]
    assert not distributed.claim_error()
    store.check.side_effect = RuntimeError("the main process was killed")
    assert distributed.claim_error()


def cached(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "cache").mkdir(exist_ok=True)
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture(scope="module")
def learning(pair: Folders, images: Path) -> tuple[object, ...]:
    """A merge that learns for seconds on a fast machine, without its output folder."""
    flags = ("--data", images, *LEARN[:4], "--allow", "at-chance", "--set", "measure.steps=120")
    return ("merge", *pair, *flags, "-v", "-o")


@pytest.fixture(scope="module")
def uninterrupted(learning: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights that this merge writes if nothing interrupts it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:  # in this process, which imports nothing
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        record = done(*learning, folder / "out", "--json").json
    return str(record["files"]["model.safetensors"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_merge_leaves_nothing_and_goes_on_with_the_same_bits(
    learning: tuple[object, ...],
    uninterrupted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    process = start(*learning, tmp_path / "out", env=cached(tmp_path))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("learning ..."):
            break
    time.sleep(0.5)  # a few steps, of 120
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        (error,) = [line for line in rest.splitlines() if line.startswith("error: ")]
        assert error.startswith("error: interrupted")
        assert "Traceback" not in rest
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    resumed = done(*learning, tmp_path / "out", "--json")
    assert ("learning resumes" in resumed.err) == ("learning is saved" in rest)
    assert resumed.json["files"]["model.safetensors"] == uninterrupted


@pytest.mark.slow
def test_an_interrupt_in_a_finalizer_is_not_lost(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    words = ("merge", *pair, "--data", images, *LEARN, "-o", tmp_path / "out")
    env = {"FAULT": "signal", **cached(tmp_path)}
    process = start(*words, module="tests.support.faulty", env=env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if "note: " not in line] == ["error: interrupted"]
    assert not (tmp_path / "out").exists()


def test_a_pipe_may_be_closed() -> None:
    line = f"{sys.executable} -m clipmerge recipes | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_threads_are_shared_among_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed: Any = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cores_per_process() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert cores_per_process() == 1


def test_a_file_too_large_for_the_disk_is_an_error_of_one_line_and_leaves_nothing(
    pair: Folders, tmp_path: Path
) -> None:
    command = ("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out", "-q")
    process = start(
        *command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    told = "cannot be written (File too large); nothing was left behind"
    assert err == f"error: {tmp_path / 'out'}: {told}\n"
    assert list(tmp_path.iterdir()) == []
