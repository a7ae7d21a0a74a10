"""Outputs that would destroy something or cannot be written are refused before any work."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clipmerge.errors import OutputError
from clipmerge.files.staging import staged_files
from clipmerge.files.staging import check_output, check_output_file
from clipmerge.planning.plan import named_tensors
from tests.files.test_staging import content, write


def test_overwrite_never_touches_what_clipmerge_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "file", "dangling"):
        with pytest.raises(
            OutputError, match=r"was not written by this command \(it holds no clipmerge\.json\)"
        ):
            check_output(tmp_path / name, overwrite=True)


def test_overwrite_keeps_what_the_user_put_beside_an_output(tmp_path: Path) -> None:
    record = {"files": {"model.safetensors": None}}
    (tmp_path / "clipmerge.json").write_text(json.dumps(record))
    for name in ("model.safetensors", "report.html", "README.md"):
        (tmp_path / name).write_text("x")
    check_output(tmp_path, overwrite=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds notes\.txt, which this command did not"):
        check_output(tmp_path, overwrite=True)
    (tmp_path / "clipmerge.json").write_text("[")
    with pytest.raises(OutputError, match=r"clipmerge\.json: cannot be read"):
        check_output(tmp_path, overwrite=True)


@pytest.mark.parametrize("place", ["cat/new", "../photos/new", "link"])
def test_an_output_among_images_that_are_read_is_refused(tmp_path: Path, place: str) -> None:
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path)
    with pytest.raises(
        OutputError,
        match=f"lies inside {photos}, which this command reads as images; choose another",
    ):
        check_output(photos / place, overwrite=True, read=[photos])
    assert content(tmp_path) == before
    check_output(tmp_path / "photos-swept", overwrite=False, read=[photos])


def test_an_impossible_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OutputError, match=r"cannot be created because .*file is a file; choose another output"
    ):
        check_output(tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(OutputError, match=r"cannot be created in /proc \("):
        check_output(Path("/proc/out"), overwrite=False)


PLAN = '{"format": "clipmerge-plan/1"}'


def test_a_plan_never_takes_the_place_of_something_else(tmp_path: Path) -> None:
    beside = tmp_path / "plan.tensors.safetensors"
    check_output_file(tmp_path / "plan.json", overwrite=False)
    save_file(named_tensors({"a": torch.zeros(2)}, {"b": torch.zeros(1)}), beside)
    with pytest.raises(OutputError, match="is in the way of the tensors"):
        check_output_file(tmp_path / "plan.json", overwrite=True)
    (tmp_path / "plan.json").write_text(PLAN)
    check_output_file(tmp_path / "plan.json", overwrite=True)
    with pytest.raises(OutputError, match="already exists"):
        check_output_file(tmp_path / "plan.json", overwrite=False)
    for wrong in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(OutputError, match="a plan is a JSON file"):
            check_output_file(wrong, overwrite=True)


@pytest.mark.parametrize("text", ['{"model_type": "clip"}', '["clipmerge-plan/1"]', "{", None])
def test_overwrite_replaces_plans_alone_and_waits_for_no_pipe(
    tmp_path: Path, text: str | None
) -> None:
    output = tmp_path / "config.json"
    if text is None:
        os.mkfifo(output)
    else:
        output.write_text(text)
    with pytest.raises(
        OutputError,
        match=r"config\.json: is not a plan written by clipmerge.*choose another output",
    ):
        check_output_file(output, overwrite=True)


@pytest.mark.parametrize("kind", ["weights", "text", "link"])
def test_overwrite_replaces_no_tensors_that_are_no_plans(tmp_path: Path, kind: str) -> None:
    (tmp_path / "plan.json").write_text(PLAN)
    beside = tmp_path / "plan.tensors.safetensors"
    if kind == "link":
        beside.symlink_to(tmp_path / "nowhere")
    elif kind == "text":
        beside.write_text("x")
    else:
        save_file({"logit_scale": torch.zeros(1)}, beside)
    with pytest.raises(OutputError, match="is in the way of the tensors"):
        check_output_file(tmp_path / "plan.json", overwrite=True)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_plan_is_not_written_to_a_link(tmp_path: Path, dangling: bool) -> None:
    link, real = tmp_path / "link.json", tmp_path / "sub" / "real.json"
    real.parent.mkdir()
    link.symlink_to(real)
    if not dangling:
        real.write_text(PLAN)
    before = content(tmp_path)
    with pytest.raises(
        OutputError, match=r"link\.json: is a link to .*real\.json; give the file itself"
    ):
        check_output_file(link, overwrite=True)
    with pytest.raises(OutputError, match="is a link to"), staged_files(link) as folder:
        pytest.fail(f"{folder} was made")
    assert content(tmp_path) == before


def test_an_output_that_holds_what_is_read_is_refused(tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write(output, json.dumps({"files": {"a": None, "x": None}}))
    elsewhere.write_text("1")
    (output / "a").mkdir()
    (output / "a" / "b.yaml").write_text("1")
    (output / "x").symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(output / "clipmerge.json")
    for read in (output / "a" / "b.yaml", output / "x", tmp_path / "link"):
        told = f"out: holds {read}, which this command reads; choose another output"
        with pytest.raises(OutputError, match=told):
            check_output(output, overwrite=True, read=[read])
    check_output(output, overwrite=True, read=[elsewhere])


@pytest.mark.parametrize("place", ["loop", "loop/out"])
def test_a_loop_of_links_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"is a link that leads back to itself; remove it, or"):
        check_output(tmp_path / place, overwrite=False)
