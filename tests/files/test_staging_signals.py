"""Signals while an output is moved to its place: they wait until it is safe to stop."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from clipmerge.distributed import Terminated, termination
from clipmerge.files.staging import completed, forget_completed, staged, staged_files
from tests.files.test_staging import content, write

SIGNALS = pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)


@SIGNALS
def test_a_signal_while_the_place_is_made_takes_it_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException]
) -> None:
    def interrupted(**where: Any) -> str:
        made = mkdtemp(**where)
        signal.raise_signal(number)  # before anybody knows what was made
        return made

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", interrupted)
    with pytest.raises(raised), termination(), staged(tmp_path / "a" / "out"):
        pytest.fail("the block is not entered")
    assert list(tmp_path.iterdir()) == []


def interrupting(monkeypatch: pytest.MonkeyPatch, name: str, number: int, at: int) -> None:
    """Send a signal as a method of `Path` returns for the ``at``-th time."""
    method, calls = getattr(Path, name), []

    def interrupted(self: Path, target: Path) -> Path:
        moved: Path = method(self, target)
        calls.append(target)
        if len(calls) == at:
            signal.raise_signal(number)
        return moved

    monkeypatch.setattr(Path, name, interrupted)


@SIGNALS
@pytest.mark.parametrize("at", [1, 2])
def test_a_signal_while_the_outputs_are_exchanged_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException], at: int
) -> None:
    write(tmp_path / "out", "old")
    forget_completed()
    interrupting(monkeypatch, "rename", number, at)
    with pytest.raises(raised), termination():
        write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "new"
    assert content(tmp_path) == ["out", "out/clipmerge.json"]
    assert completed() == (tmp_path / "out",)


@SIGNALS
def test_a_signal_between_a_plan_and_its_tensors_comes_after_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException]
) -> None:
    interrupting(monkeypatch, "replace", number, 1)

    def write_both() -> None:
        with termination(), staged_files(tmp_path / "plan.json") as folder:
            (folder / "plan.json").write_text("1")
            (folder / "plan.tensors.safetensors").write_text("2")

    with pytest.raises(raised):
        write_both()
    assert content(tmp_path) == ["plan.json", "plan.tensors.safetensors"]


def test_a_second_ctrl_c_leaves_nothing_behind_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(folder, **options)

    rmtree = shutil.rmtree
    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a" / "out", "1", fail=KeyboardInterrupt())
    assert content(tmp_path) == []


def test_only_what_stands_counts_as_completed_and_signals_are_as_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    forget_completed()
    with contextlib.suppress(ValueError), staged(tmp_path / "out") as folder:
        with staged_files(folder / "plan" / "plan.json") as inner:
            (inner / "plan.json").write_text("1")
        assert completed() == (folder / "plan" / "plan.json",)
        raise ValueError
    assert completed() == ()
    write(tmp_path / "out", "1")
    assert completed() == (tmp_path / "out",)
    forget_completed()
    assert completed() == ()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
