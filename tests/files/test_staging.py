"""The output is complete or absent, the old one is kept until the new one exists, and nothing is
left over."""

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import OutputError
from clipmerge.files import staging
from clipmerge.files.staging import staged, staged_files

IO_ERROR = OSError(errno.EIO, "Input/output error")
REPLACED = ["out", "out/clipmerge.json"]


def write(
    output: Path, text: str, *, overwrite: bool = False, fail: BaseException | None = None
) -> None:
    with staged(output, overwrite=overwrite) as folder:
        (folder / "clipmerge.json").write_text(text)
        if fail:
            raise fail


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def text_of(output: Path) -> str:
    return (output / "clipmerge.json").read_text()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "1")
    assert text_of(tmp_path / "out") == "1"
    assert content(tmp_path) == ["out", "out/clipmerge.json"]


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "out"
    with staged(output) as folder:
        (folder / "x").write_text("1")
        assert not output.exists()
    assert content(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/x"]
    mask = os.umask(0)
    os.umask(mask)
    assert output.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IO_ERROR])
def test_a_block_that_fails_leaves_the_old_output_and_no_parents(
    tmp_path: Path, error: BaseException
) -> None:
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write(tmp_path / "a" / "b" / "out", "1", fail=error)
    assert content(tmp_path) == []
    write(tmp_path / "out", "old")
    with pytest.raises(expected):
        write(tmp_path / "out", "new", overwrite=True, fail=error)
    assert text_of(tmp_path / "out") == "old"
    assert content(tmp_path) == REPLACED


def test_an_old_output_is_replaced_whole_and_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("1")
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == REPLACED
    assert text_of(tmp_path / "out") == "new"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    write(tmp_path / "link", "newer", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert text_of(tmp_path / "out") == "newer"


def test_when_the_move_fails_the_old_output_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise IO_ERROR
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(
        OutputError,
        match=r"out: cannot be written \(Input/output error\); nothing was left behind$",
    ):
        write(tmp_path / "out", "new", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "another", "new")
    assert content(tmp_path) == REPLACED
    assert text_of(tmp_path / "out") == "old"


def test_a_folder_is_staged_in_any_thread(tmp_path: Path) -> None:
    """Signals reach the main thread only; nothing has to wait in another one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write, tmp_path / "out", "new").result()
    assert content(tmp_path) == REPLACED


# --- what other runs left or are writing ---


def stale(output: Path, *, aside: bool = False) -> Path:
    """The remains of a killed run: a stage with a free lock, possibly with the old output set
    aside."""
    stage = output.parent / f"{staging._stage_prefix(output)}abc"
    (stage / "new").mkdir(parents=True)
    (stage / "lock").touch()
    (stage / "new" / "model.safetensors").write_text("half")
    if aside:
        output.rename(stage / "old")
    return stage


def test_what_a_killed_run_left_is_removed_and_what_it_set_aside_comes_back(tmp_path: Path) -> None:
    stale(tmp_path / "out")
    write(tmp_path / "out", "old")
    assert content(tmp_path) == REPLACED
    stale(tmp_path / "out", aside=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="already exists"):
        write(tmp_path / "out", "new")
    assert text_of(tmp_path / "out") == "old"


def test_another_outputs_stage_is_left_alone(tmp_path: Path) -> None:
    left = stale(tmp_path / ("out" + "x" * 60 + "1"))
    write(tmp_path / ("out" + "x" * 60 + "2"), "new")
    assert left.exists()


def test_the_stage_of_a_run_that_goes_on_or_begins_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as first:
        (first / "x").write_text("1")
        write(tmp_path / "out", "second")
        assert (first / "x").exists()
        (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert content(tmp_path / "out") == ["x"]
    stage = stale(tmp_path / "begins" / "out")
    (stage / "lock").unlink()
    write(tmp_path / "begins" / "out", "1")
    assert stage.exists()
    os.utime(stage, (0, 0))
    write(tmp_path / "begins" / "out", "2", overwrite=True)
    assert content(tmp_path / "begins") == REPLACED


# --- names, disks, threads ---


def test_the_longest_name_works(tmp_path: Path) -> None:
    write(tmp_path / ("é" * 127), "1")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / ("x" * 256), "1")


def test_what_is_wrong_with_the_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        OutputError,
        match="the disk is full; nothing was left behind, free some space and run again",
    ):
        write(tmp_path / "out", "1", fail=OSError(errno.ENOSPC, "No space left on device"))
    assert content(tmp_path) == []
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write(tmp_path / "out", "1", fail=IO_ERROR)
    (stage,) = tmp_path.iterdir()
    assert str(caught.value).endswith(f"; {stage} was left behind, remove it")


def test_files_are_moved_together_or_not_at_all(tmp_path: Path) -> None:
    plan = tmp_path / "a" / "plan.json"
    with staged_files(plan) as folder:
        (folder / "plan.json").write_text("old")
        (folder / "plan.tensors.safetensors").write_text("2")
        assert content(tmp_path / "a")[0].startswith(".plan.json")
    with contextlib.suppress(ValueError), staged_files(plan) as folder:
        (folder / "plan.json").write_text("new")
        raise ValueError
    assert content(tmp_path) == ["a", "a/plan.json", "a/plan.tensors.safetensors"]
    assert plan.read_text() == "old"


# --- races: only what was checked is replaced, and the line is true ---


def earlier(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / "clipmerge.json").write_text(text)
    return folder


def meanwhile(output: Path, message: str, happens: Callable[[], object]) -> None:
    """Something happens to the output's place while a folder is written."""
    with pytest.raises(OutputError, match=message), staged(output, overwrite=True) as folder:  # noqa: PT012
        (folder / "new").write_text("")
        happens()


def test_what_came_to_the_place_after_the_check_is_left_alone(tmp_path: Path) -> None:
    output = earlier(tmp_path / "out")

    def replace() -> None:
        output.rename(tmp_path / "mine")
        output.mkdir()
        (output / "thesis.tex").write_text("theirs")

    meanwhile(output, "out: already exists and was not written by this command", replace)
    assert (output / "thesis.tex").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_folder_that_takes_the_place_during_the_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = earlier(tmp_path / "out", '{"mine": 1}')
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = original(self, target)
        if self == output:
            earlier(output, '{"theirs": 1}')
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    place = tmp_path / f"out.replaced-{os.getpid()}"
    meanwhile(output, rf"the earlier output is now {place}", lambda: None)
    assert text_of(output) == '{"theirs": 1}'
    assert text_of(place) == '{"mine": 1}'


# --- signals while an output is moved to its place: they wait until it is safe to stop ---


def interrupting(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Send SIGTERM as a method of `Path` returns for the ``at``-th time."""
    method, calls = getattr(Path, name), []

    def interrupted(self: Path, target: Path) -> Path:
        moved: Path = method(self, target)
        calls.append(target)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return moved

    monkeypatch.setattr(Path, name, interrupted)


def test_a_second_ctrl_c_leaves_nothing_behind_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(folder, **options)

    rmtree = shutil.rmtree
    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a" / "out", "1", fail=KeyboardInterrupt())
    assert content(tmp_path) == []
