"""The output is complete or absent, the old one is kept until the new one exists, and nothing is left over."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipmerge.errors import OutputError
from clipmerge.files import staging
from clipmerge.files.staging import staged, staged_files
from clipmerge.output.checks import check_output, check_output_file


def write(output: Path, text: str, *, overwrite: bool = False, fail: BaseException | None = None) -> None:
    with staged(output, overwrite=overwrite) as folder:
        (folder / "clipmerge.json").write_text(text)
        if fail:
            raise fail


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "out"
    with staged(output) as folder:
        (folder / "x").write_text("1")
        assert not output.exists()
    assert content(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/x"]
    assert output.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x"), SystemExit(3)])
def test_a_block_that_fails_leaves_nothing_not_even_parents(tmp_path: Path, error: BaseException) -> None:
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write(tmp_path / "a" / "b" / "out", "1", fail=error)
    assert content(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_output(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(type(error)):
        write(tmp_path / "out", "new", overwrite=True, fail=error)
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "old"
    assert content(tmp_path) == ["out", "out/clipmerge.json"]


def test_an_old_output_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("1")
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == ["out", "out/clipmerge.json"]
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "new"


def fail_to_move_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the move of a new output to its place fail."""
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)


def test_when_the_move_fails_the_old_output_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    fail_to_move_in(monkeypatch)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Input/output error\); nothing was left behind"):
        write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == ["out", "out/clipmerge.json"]
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "old"


def stale(output: Path, *, aside: bool = False) -> Path:
    """The remains of a killed run: a stage with a free lock, possibly with the old output set aside."""
    stage = output.parent / f"{staging._stage_prefix(output)}abc"
    (stage / "new").mkdir(parents=True)
    (stage / "lock").touch()
    (stage / "new" / "model.safetensors").write_text("half")
    if aside:
        output.rename(stage / "old")
    return stage


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    stale(tmp_path / "out")
    write(tmp_path / "out", "new")
    assert content(tmp_path) == ["out", "out/clipmerge.json"]


def test_an_output_that_a_killed_run_set_aside_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    stale(tmp_path / "out", aside=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="appeared while the merge ran"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "old"


@pytest.mark.parametrize("other", ["out2", "out.clipmerge-x", "o", "out" + "x" * 60 + "1"])
def test_another_outputs_stage_is_left_alone(tmp_path: Path, other: str) -> None:
    left = stale(tmp_path / other)
    write(tmp_path / "out", "new")
    write(tmp_path / ("out" + "x" * 60 + "2"), "new")
    assert left.exists()


def test_a_running_merges_stage_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as first:
        (first / "x").write_text("1")
        write(tmp_path / "out", "second")
        assert (first / "x").exists()
        (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert content(tmp_path / "out") == ["x"]


def test_a_stage_that_is_just_being_made_is_left_alone_and_later_removed(tmp_path: Path) -> None:
    stage = stale(tmp_path / "out")
    (stage / "lock").unlink()
    write(tmp_path / "out", "1")
    assert stage.exists()
    os.utime(stage, (0, 0))
    write(tmp_path / "out", "2", overwrite=True)
    assert content(tmp_path) == ["out", "out/clipmerge.json"]


def test_the_longest_name_works(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write(tmp_path / name, "1")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / ("x" * 256), "1")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "real" / "clipmerge.json").read_text() == "new"


def test_the_disk_that_is_full_is_said_to_be(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind, free some space and run again"):
        write(tmp_path / "out", "1", fail=error)
    assert content(tmp_path) == []


def test_files_are_moved_together_the_named_one_last(tmp_path: Path) -> None:
    with staged_files(tmp_path / "a" / "plan.json") as folder:
        (folder / "plan.json").write_text("1")
        (folder / "plan.tensors.safetensors").write_text("2")
        assert content(tmp_path / "a")[0].startswith(".plan.json")
    assert content(tmp_path) == ["a", "a/plan.json", "a/plan.tensors.safetensors"]


def test_files_are_not_moved_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("old")
    with contextlib.suppress(ValueError), staged_files(tmp_path / "plan.json") as folder:
        (folder / "plan.json").write_text("new")
        raise ValueError
    assert content(tmp_path) == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


# --- races: only what was checked is replaced, and the line is true ---


def earlier(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / "clipmerge.json").write_text(text)
    return folder


def test_a_folder_that_came_to_the_place_after_the_check_is_left_alone(tmp_path: Path) -> None:
    output = earlier(tmp_path / "out")
    check_output(output, overwrite=True)

    def replaced() -> None:
        with staged(output, overwrite=True) as folder:
            (folder / "new").write_text("")
            output.rename(tmp_path / "mine")
            earlier(output, '{"theirs": 1}')

    with pytest.raises(
        OutputError, match=r"out: was replaced or changed by another process while this ran, and was left"
    ):
        replaced()
    assert (output / "clipmerge.json").read_text() == '{"theirs": 1}'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_folder_that_appears_after_the_check_is_left_alone(tmp_path: Path) -> None:
    check_output(tmp_path / "out", overwrite=True)

    def appearing() -> None:
        with staged(tmp_path / "out", overwrite=True):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(OutputError, match="out: appeared while this ran"):
        appearing()
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_takes_the_place_during_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = earlier(tmp_path / "out", '{"mine": 1}')
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = original(self, target)
        if self == output:
            earlier(output, '{"theirs": 1}')
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    place = tmp_path / f"out.replaced-{os.getpid()}"
    with pytest.raises(OutputError, match=rf"the earlier output is now {place}"), staged(output, overwrite=True) as new:
        (new / "new").write_text("")
    assert (output / "clipmerge.json").read_text() == '{"theirs": 1}'
    assert (place / "clipmerge.json").read_text() == '{"mine": 1}'


def test_a_plan_that_changed_after_the_check_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    output.write_text('{"format": "clipmerge-plan/1"}')
    check_output_file(output, tmp_path / "plan.tensors.safetensors", overwrite=True)

    def changing() -> None:
        with staged_files(output) as folder:
            (folder / "plan.json").write_text("new")
            output.write_text("somebody's own words")

    with pytest.raises(OutputError, match=r"plan.json: was replaced or changed"):
        changing()
    assert output.read_text() == "somebody's own words"


def test_a_parent_that_is_renamed_meanwhile_keeps_no_stage(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def renamed() -> None:
        with staged(place / "out") as folder:
            (folder / "weights").write_text("x")
            place.rename(tmp_path / "elsewhere")

    with pytest.raises(
        OutputError, match=r"out: cannot be written \(No such file or directory\); nothing was left beh"
    ):
        renamed()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_is_staged_in_any_thread(tmp_path: Path) -> None:
    """Signals reach the main thread only; nothing has to wait in another one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write, tmp_path / "out", "new").result()
    assert content(tmp_path) == ["out", "out/clipmerge.json"]


def test_without_file_locks_a_folder_is_staged_but_none_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = stale(tmp_path / "out")
    monkeypatch.setattr(staging, "fcntl", None)  # as on Windows
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "clipmerge.json").read_text() == "new"
    assert left.exists()


def test_a_stage_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write(tmp_path / "out", "1", fail=OSError(errno.EIO, "x"))
    (stage,) = tmp_path.iterdir()
    assert str(caught.value).endswith(f"; {stage} was left behind, remove it")


def test_when_the_first_move_fails_there_is_nothing_to_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_move_in(monkeypatch)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Input/output error\); nothing was left behind$"):
        write(tmp_path / "out", "new")
    assert content(tmp_path) == []
