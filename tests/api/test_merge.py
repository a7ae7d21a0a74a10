"""Merges by the pipeline, what inspecting says before them, and what is refused."""

import errno
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

import clipmerge as api
from clipmerge.api.apply import write_merge
from clipmerge.api.merge import prepare
from clipmerge.api.merge_models import _copy_with_weights
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.progress import Progress
from tests.support.command import clipmerge, done, printed, refused
from tests.support.raw_safetensors import edit, edit_json
from tests.support.tasks import request_for
from tests.support.tiny_clip import Folders, save_pair

QUIET: dict[str, Any] = {"progress": Progress()}


def test_an_unreadable_input_is_blamed_itself(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop root, so the system's refusal is simulated."""
    run = prepare(request_for(pair, "wise-ft"))
    denied, opened = pair[1] / "tokenizer.json", os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if path == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: cannot be read \(Permission denied\)"
    ):
        write_merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_applied_elsewhere_says_which_input_it_cannot_find(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, plans, elsewhere = (tmp_path / name for name in ("in", "plans", "elsewhere"))
    for folder in (plans, elsewhere):
        folder.mkdir()
    for source in pair:
        shutil.copytree(source, inputs / "deep" / source.name)
    monkeypatch.chdir(inputs)
    sources = [f"deep/{source.name}" for source in pair]
    plan = plans / "plan.json"
    done("plan", *sources, "-r", "wise-ft", "-o", plan)
    monkeypatch.chdir(elsewhere)
    line = refused(clipmerge("apply", plan, "-o", "out"))
    assert f"{plan}: {sources[0]} is not in the working folder or beside the plan" in line
    (inputs / "deep").rename(plans / "deep")
    done("apply", plan, "-o", "out")


def test_a_plan_with_a_head_or_tensors_that_do_not_fit_is_refused(
    pair: Folders, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    done("plan", *pair, "-r", "wise-ft", "-o", plan)
    content = plan.read_text()
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    tensors = {"file": "x.safetensors", "sha256": hashlib.sha256(b"torn").hexdigest()}
    for change, told in (
        ({"head": {"classes": ["cat"], "templates": ["a {}"]}}, "has the classes of a head"),
        ({"tensors": tensors}, "the tensors beside the plan: "),
    ):
        plan.write_text(content)
        edit_json(plan, **change)
        assert told in refused(clipmerge("apply", plan, "-o", tmp_path / "out"))


def test_models_in_memory_are_merged_in_one_process(
    pair: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [CLIPModel.from_pretrained(folder) for folder in pair]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        UsageError, match=r"merge_models works in one process; under `accelerate launch` use merge"
    ):
        api.merge_models(*models, "wise-ft", **QUIET)


def test_tasks_and_images_that_cannot_be_measured_are_an_error(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    for folder in ("zeroshot", "finetuned"):
        shutil.copyfile(
            pair[folder == "finetuned"] / "model.safetensors", tmp_path / f"{folder}.safetensors"
        )
    bare = [tmp_path / "zeroshot.safetensors", tmp_path / "finetuned.safetensors"]
    for flags in (("--ood", f"other={images}"), ("--data", images)):
        line = refused(
            clipmerge("merge", *bare, "-r", "wise-ft", *flags, "-o", tmp_path / "out"),
            CheckpointError.exit_code,
        )
        assert "measuring needs the config.json beside the weights" in line
        assert "cannot be measured, so nothing was written" in line
    assert not (tmp_path / "out").exists()
    done("merge", *bare, "-r", "wise-ft", "-o", tmp_path / "out")


WEIGHT = "text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(("which", "value"), [(0, math.nan), (1, -math.inf)])
def test_nan_and_inf_are_reported_by_name_as_merge_does(
    tmp_path: Path, which: int, value: float
) -> None:
    pair = save_pair(tmp_path)
    weight = load_file(pair[which] / "model.safetensors")[WEIGHT]
    weight[3, 1] = value
    edit(pair[which], **{WEIGHT: weight})
    record = printed("inspect", *pair)
    (fault,) = record["mismatches"]
    assert fault.startswith(
        f"{pair[which]}: tensor {WEIGHT} holds {'NaN' if math.isnan(value) else 'Inf'}"
    )
    assert record["layers"]["text.0.mlp"]["change"] is None
    merged = clipmerge("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "out")
    assert fault in merged.err
    assert "they can be merged" not in clipmerge("inspect", *pair).out


def test_a_model_with_further_weights_is_refused(pair: Folders) -> None:
    """A name that no file of the model has cannot be filled."""
    model = CLIPModel.from_pretrained(pair[0])
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert not any(
        bool(value.any())
        for value in _copy_with_weights(model, weights, "keep").state_dict().values()
    )
    with pytest.raises(
        CheckpointError,
        match=r"CLIPModel: its merged weights have names that the model lacks, such as x",
    ):
        _copy_with_weights(model, weights | {"x": torch.zeros(1)}, "keep")
