"""The output is complete or absent, the old one is kept until the new one exists, and what a killed
run left is not in the way.
"""

import errno
import json
from pathlib import Path

import pytest

from clipmerge.errors import OutputError
from clipmerge.files.staging import check_output, check_output_file, stage_output

IO_ERROR = OSError(errno.EIO, "Input/output error")
WRITTEN = ["out", "out/clipmerge.json"]


def write(
    output: Path, text: str, *, overwrite: bool = False, fail: BaseException | None = None
) -> None:
    with stage_output(output, overwrite=overwrite) as folder:
        (folder / "clipmerge.json").write_text(text)
        if fail:
            raise fail


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def text_of(output: Path) -> str:
    return (output / "clipmerge.json").read_text()


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "out"
    with stage_output(output) as folder:
        (folder / "x").write_text("1")
        assert not output.exists()
    assert content(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/x"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "1")
    assert text_of(tmp_path / "empty") == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), IO_ERROR])
def test_a_block_that_fails_leaves_the_old_output(tmp_path: Path, error: BaseException) -> None:
    expected = OutputError if isinstance(error, OSError) else type(error)
    write(tmp_path / "out", "old")
    for output in (tmp_path / "a" / "b" / "out", tmp_path / "out"):
        with pytest.raises(expected):
            write(output, "new", overwrite=True, fail=error)
    assert text_of(tmp_path / "out") == "old"
    assert content(tmp_path) == WRITTEN


def test_an_old_output_is_replaced_whole_and_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    write(tmp_path / "link", "new", overwrite=True)
    assert content(tmp_path) == ["link", *WRITTEN]
    assert (tmp_path / "link").is_symlink()
    assert text_of(tmp_path / "out") == "new"


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
    told = r"out: cannot be written \(Input/output error\); nothing was left behind$"
    with pytest.raises(OutputError, match=told):
        write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == WRITTEN
    assert text_of(tmp_path / "out") == "old"


def test_what_a_killed_run_left_is_removed_and_what_it_set_aside_comes_back(tmp_path: Path) -> None:
    stage = tmp_path / ".out.clipmerge"
    (stage / "new").mkdir(parents=True)
    (stage / "new" / "model.safetensors").write_text("half")
    write(tmp_path / "out", "old")
    assert content(tmp_path) == WRITTEN
    stage.mkdir()
    (tmp_path / "out").rename(stage / "old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "new", fail=KeyboardInterrupt())
    assert content(tmp_path) == WRITTEN
    assert text_of(tmp_path / "out") == "old"
    (stage / "old").mkdir(parents=True)  # a run was killed after the move
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == WRITTEN


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    with stage_output(tmp_path / "out"), pytest.raises(OutputError, match="another run is writ"):
        write(tmp_path / "out", "second")
    assert content(tmp_path) == ["out"]


# --- refusals before any work ---


def test_overwrite_never_touches_what_clipmerge_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
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


def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OutputError, match=r"cannot be created, because .*file is not a writable folder"
    ):
        check_output(tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(OutputError, match=r"/: holds .*, which this command reads"):
        check_output(Path("/"), overwrite=True, read=[tmp_path])


@pytest.mark.parametrize("read", ["run#1", "run#1/last.pt#ema", "link/last.pt", "folder of links"])
def test_an_output_that_holds_an_input_is_refused_however_it_is_named(
    tmp_path: Path, read: str
) -> None:
    run, links = tmp_path / "run#1", tmp_path / "folder of links"
    write(run, "{}")
    (run / "last.pt").write_text("x")
    (tmp_path / "link").symlink_to(run)
    links.mkdir()
    (links / "model.safetensors").symlink_to(run / "last.pt")
    with pytest.raises(OutputError, match=r"holds .*, which this command reads"):
        check_output(run, overwrite=True, read=[str(tmp_path / read)])


def test_the_working_folder_is_not_replaced_and_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, output = tmp_path / "gone", tmp_path / "out"
    for folder in (gone, output):
        folder.mkdir()
    monkeypatch.chdir(gone)
    for working in ("", ".", gone):
        with pytest.raises(OutputError, match="is the working folder"):
            check_output(Path(working), overwrite=True)
    gone.rmdir()
    check_output(output, overwrite=False)


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
