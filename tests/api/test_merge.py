from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.api.apply import write_merge
from clipmerge.api.plan import prepare
from clipmerge.errors import CheckpointError
from clipmerge.planning.recipe import load_recipe
from clipmerge.request import Calibration, MergeRequest
from tests.support.command import clipmerge, refused

Inputs = tuple[Path, Path]


def request_for(pair: Inputs, recipe: str, images: Path | None = None, *sets: str) -> MergeRequest:
    calibration = Calibration(source=str(images) if images else None)
    return MergeRequest(str(pair[0]), (str(pair[1]),), load_recipe(recipe, list(sets)), calibration)


def test_shares_add_up_to_what_forward_passes_measure(pair: Inputs, images: Path) -> None:
    plan = prepare(request_for(pair, "straggler-outlier", images)).plan
    assert plan is not None
    assert plan.measurements is not None
    path = plan.measurements.path
    assert path is not None
    loss = dict(zip(path.alphas, path.losses, strict=True))
    layers = plan.measurements.layers.values()
    barrier = loss[0.5] - (loss[0.0] + loss[1.0]) / 2
    assert sum(layer["barrier"] for layer in layers) == pytest.approx(barrier, rel=0.01)
    assert sum(layer["loss_drop"] for layer in layers) == pytest.approx(loss[1.0] - loss[0.0], rel=0.01)


@pytest.mark.parametrize(("alpha", "which"), [(0, 0), (1, 1)])
def test_both_ends_are_the_inputs_bit_for_bit(pair: Inputs, tmp_path: Path, alpha: int, which: int) -> None:
    write_merge(prepare(request_for(pair, "wise-ft", None, f"method.alpha={alpha}")), tmp_path / "out")
    merged, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair[which]))
    assert merged.keys() == source.keys()
    assert all(torch.equal(merged[name], source[name]) for name in source)


def test_paths_that_are_no_text_are_merged(pair: Inputs, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xff")
    try:
        shutil.copytree(pair[0], odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    ended = clipmerge("merge", odd, pair[1], "-r", "wise-ft", "-o", tmp_path / "out", "--format", "json")
    assert ended.code == 0, ended.err
    assert ended.json["zeroshot"]["source"] == str(odd)
    assert r"b\udcff" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_an_input_that_cannot_be_read_is_blamed_itself(
    pair: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Permissions do not stop root, so the system's refusal is simulated."""
    run = prepare(request_for(pair, "wise-ft"))
    denied, opened = pair[1] / name, os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if path == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(Permission denied\)"):
        write_merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_applied_elsewhere_says_which_input_it_cannot_find(
    pair: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, plans, elsewhere = (tmp_path / name for name in ("in", "plans", "elsewhere"))
    for folder in (plans, elsewhere):
        folder.mkdir()
    for source in pair:
        shutil.copytree(source, inputs / "deep" / source.name)
    monkeypatch.chdir(inputs)
    sources = [f"deep/{source.name}" for source in pair]
    plan = plans / "plan.json"
    assert clipmerge("plan", *sources, "-r", "wise-ft", "-o", plan).code == 0
    monkeypatch.chdir(elsewhere)
    line = refused(clipmerge("apply", plan, "-o", "out"))
    assert f"{plan}: {sources[0]} is not in the working folder or beside the plan" in line
    (inputs / "deep").rename(plans / "deep")
    assert clipmerge("apply", plan, "-o", "out").code == 0


def test_a_plan_with_a_head_for_checkpoints_without_is_refused(pair: Inputs, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert clipmerge("plan", *pair, "-r", "wise-ft", "-o", plan).code == 0
    content = json.loads(plan.read_text()) | {"head": {"classes": ["cat"], "templates": ["a {}"]}}
    plan.write_text(json.dumps(content))
    assert "has the classes of a head" in refused(clipmerge("apply", plan, "-o", tmp_path / "out"))


def test_tensors_beside_a_plan_that_are_none_are_refused(pair: Inputs, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert clipmerge("plan", *pair, "-r", "wise-ft", "-o", plan).code == 0
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    tensors = {"file": "x.safetensors", "sha256": hashlib.sha256(b"torn").hexdigest()}
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"tensors": tensors}))
    assert "the tensors beside the plan: " in refused(clipmerge("apply", plan, "-o", tmp_path / "out"))
