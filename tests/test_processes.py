"""Several processes of one run, and how a process ends: signals, kills, lost peers."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from clipmerge import distributed
from clipmerge.parallel import cores_per_process
from tests.support.command import ROOT, done, start
from tests.support.several import several
from tests.support.tiny_clip import Folders

LEARN = ("--images", 24, "--batch-size", 4, "--set", "measure.steps=3", "--allow", "at-chance")


@pytest.mark.slow
def test_several_processes_measure_and_judge_as_one_does(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    flags = ("--data", images, "--images", 24, "--batch-size", 4, "--allow", "at-chance")
    words = ("merge", *pair, "-r", "straggler-outlier", "--set", "measure.nodes=1", *flags)
    words = (*words, "--set", "measure.tolerance=100")
    alone = done(*words, "-o", tmp_path / "alone", "--json").json
    ended = several(2, "clipmerge", *words, "-o", tmp_path / "out", "--json")
    assert ended.returncode == 0, ended.stderr
    record = json.loads(ended.stdout)  # only the main process prints
    assert record["verdict"] == alone["verdict"]
    for layer, values in alone["measurements"].items():
        assert record["measurements"][layer] == pytest.approx(values, rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_more_processes_than_batches_learn_together(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    words = ("merge", *pair, "-r", "auto", "--data", images, *LEARN)
    ended = several(9, "clipmerge", *words, "-o", tmp_path / "out", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["verdict"]["target"]["images"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    flags = ("-r", "auto", "--data", images, *LEARN[:4], "--set", "measure.steps=3000")
    words = ("merge", *pair, *flags, "--allow", "at-chance", "-o", tmp_path / "out")
    ended = several(2, "tests.support.lose_a_process", *words)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("", "error: {output}: "),  # a check of the main process alone
        ("0", "error: out of memory (a smaller --batch-size needs less): no more memory"),
        ("1", "error in process 1: out of memory (a smaller --batch-size needs less)"),
    ],
)
def test_an_error_of_one_process_is_told_once_and_ends_all(
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
        env = {**address, "RANK": rank, "LOCAL_RANK": rank, "LOSE": lost, **cached(tmp_path)}
        processes.append(start(*words, module="tests.support.lose_a_process", env=env))
    try:
        ended = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode for process in processes)
    lines = [line for _, err in ended for line in err.splitlines() if "note: " not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(told.format(output=output))


def test_a_process_that_does_not_see_a_signal_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in the code of a card's library."""
    sent: list[tuple[int, ...]] = []
    failed = Mock(**{"check.side_effect": [False, True, RuntimeError("the store has ended")]})
    ending = threading.Event()
    monkeypatch.setattr(distributed, "_is_ending", ending)
    for name, value in (("_store", failed), ("_LOOK_SECONDS", 0.0)):
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    monkeypatch.setattr(os, "_exit", lambda code: sent.append((code,)))
    distributed._end_with_others()
    assert sent == [(os.getpid(), signal.SIGTERM), (1,)]
    monkeypatch.setenv("RANK", "1")
    failed = Mock(**{"check.side_effect": [False, True]})
    monkeypatch.setattr(distributed, "_store", failed)
    assert not distributed.claim_error()
    failed.check.side_effect = RuntimeError("its main process was killed, and told nothing")
    assert distributed.claim_error()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "learning"), (signal.SIGTERM, "writing")]
)
def test_a_signal_ends_with_one_line_and_leaves_nothing(
    pair: Folders, images: Path, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    flags: tuple[object, ...] = ("--data", images, *LEARN[:4], "--allow", "at-chance")
    flags += ("--set", "measure.steps=100000" if moment == "learning" else "measure.steps=1")
    stage = "learning" if moment == "learning" else "merging|writing|drawing"
    process = start("merge", *pair, *flags, "-o", tmp_path / "out", "-v", env=cached(tmp_path))
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.match(rf"({stage}) \.\.\.", line):
            break
    time.sleep(1 if moment == "learning" else 0)
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    if moment == "writing" and process.returncode == 0:  # it was done before
        assert (tmp_path / "out" / "clipmerge.json").is_file()
        return
    assert process.returncode == 130, lines
    errors = [line for line in rest.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: interrupted")
    assert "Traceback" not in rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def cached(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "cache").mkdir(exist_ok=True)
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.mark.slow
def test_learning_goes_on_after_a_kill(pair: Folders, images: Path, tmp_path: Path) -> None:
    flags = ("--data", images, *LEARN[:4], "--allow", "at-chance", "--set", "measure.steps=40")
    words = ("merge", *pair, *flags, "-o", tmp_path / "out")
    process = start(*words, "-v", env=cached(tmp_path))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("learning ..."):
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    other = {"XDG_CACHE_HOME": str(tmp_path / "other")}
    whole = start(*words[:-1], tmp_path / "whole", env=other)
    assert "Wrote" in whole.communicate(timeout=300)[0]
    killed = start(*words, env=cached(tmp_path))
    time.sleep(3)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out").exists()
    resumed = start(*words, env=cached(tmp_path))
    assert "Wrote" in resumed.communicate(timeout=300)[0]
    written, expected = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")
    )
    assert written == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "other", "out", "whole"]


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
