"""The output is complete or absent, the old one is kept until the new one exists, and nothing is
left over."""

import contextlib
import errno
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import OutputError
from clipmerge.files import staging
from clipmerge.files.staging import check_output, check_output_file, staged, staged_files

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


# --- names and disks ---


def test_the_longest_name_works(tmp_path: Path) -> None:
    write(tmp_path / ("é" * 127), "1")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / ("x" * 256), "1")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind"):
        write(tmp_path / "out", "1", fail=OSError(errno.ENOSPC, "No space left on device"))
    assert content(tmp_path) == []


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


def test_what_came_to_the_place_after_the_check_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, "old")
    told = "was not written by this command"
    with pytest.raises(OutputError, match=told), staged(output, overwrite=True) as folder:  # noqa: PT012
        (folder / "new").write_text("")
        output.rename(tmp_path / "mine")
        output.mkdir()
        (output / "thesis.tex").write_text("theirs")
    assert (output / "thesis.tex").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


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


# --- refusals before any work ---


def test_overwrite_never_touches_what_clipmerge_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "file", "dangling"):
        with pytest.raises(OutputError, match="was not written by this command"):
            check_output(tmp_path / name, overwrite=True)
    write(tmp_path / "out", json.dumps({"files": {"model.safetensors": "0"}}))
    for name in ("model.safetensors", "report.html", "README.md"):
        (tmp_path / "out" / name).write_text("x")
    check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="already exists"):
        check_output(tmp_path / "out", overwrite=False)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds notes\.txt, which this command did not"):
        check_output(tmp_path / "out", overwrite=True)


def test_an_output_that_holds_what_is_read_or_lies_in_it_is_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    for place in ("cat/new", "../photos/new"):
        with pytest.raises(OutputError, match=f"lies inside {photos}, which this command reads"):
            check_output(photos / place, overwrite=True, read=[photos])
    check_output(tmp_path / "photos-swept", overwrite=False, read=[photos])
    for read in (photos, photos / "cat"):
        with pytest.raises(OutputError, match=f"holds {read}, which this command reads"):
            check_output(photos, overwrite=True, inputs=[read])


def test_an_impossible_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be created because .*file is a file"):
        check_output(tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(OutputError, match=r"cannot be created in /proc \("):
        check_output(Path("/proc/out"), overwrite=False)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="loop: "):
        check_output(tmp_path / "loop", overwrite=False)


def test_a_plan_replaces_plans_alone(tmp_path: Path) -> None:
    plan, beside = tmp_path / "plan.json", tmp_path / "plan.tensors.safetensors"
    check_output_file(plan, overwrite=False)
    for wrong in (tmp_path, beside):
        with pytest.raises(OutputError, match="a plan is a JSON file"):
            check_output_file(wrong, overwrite=True)
    plan.write_text('{"format": "clipmerge-plan/3"}')
    beside.write_text("tensors")
    check_output_file(plan, overwrite=True)
    with pytest.raises(OutputError, match="already exists"):
        check_output_file(plan, overwrite=False)
    for text in ('{"model_type": "clip"}', '["clipmerge-plan/3"]', "{"):
        plan.write_text(text)
        with pytest.raises(OutputError, match="was not written as a plan by clipmerge"):
            check_output_file(plan, overwrite=True)
    plan.unlink()
    with pytest.raises(OutputError, match=r"tensors\.safetensors: was not written as a plan"):
        check_output_file(plan, overwrite=True)
