"""The flow: merge, plan and apply, by the command and by the function."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

import clipmerge
from clipmerge import (
    ClipmergeError,
    OutputError,
    Progress,
    UsageError,
    VerdictError,
)
from clipmerge.api import _pair
from clipmerge.evaluation import verdict
from clipmerge.learning import interpolate
from clipmerge.models import building
from clipmerge.planning.plan import Plan
from tests.support import tiny_open_clip
from tests.support.command import clipmerge as command_line
from tests.support.command import done
from tests.support.merging import run_and_check_merge
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders, save_images
from tests.support.told import Told

QUIET: dict[str, Any] = {"progress": Progress()}
#: A quick `auto`, whose models know nothing of the images.
FEW: dict[str, Any] = {"images": 20, "set": {"measure.steps": 2}, "allow": "at-chance"}
FLAGS = ("--images", 20, "--set", "measure.steps=2", "--allow", "at-chance")


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_one_alpha_is_the_formula(pair: Folders, tmp_path: Path, alpha: float) -> None:
    record = run_and_check_merge(pair, tmp_path / "out", "--alpha", alpha, alpha=alpha)
    assert record["plan"]["recipe"]["name"] == "wise-ft"
    assert {layer["alpha"] for layer in record["plan"]["layers"].values()} == {alpha}
    assert record["plan"]["zeroshot"]["source"] == "zeroshot"
    assert record["command"].startswith("clipmerge merge zeroshot finetuned --alpha")
    assert record["verdict"] is None


def test_a_pair_whose_blocks_are_equal_has_no_straggler(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    changed = load_file(pair[1] / "model.safetensors")["visual_projection.weight"]
    finetuned = Path(shutil.copytree(pair[0], tmp_path / "finetuned"))
    edit(finetuned, visual_projection__weight=changed)
    given = {**FEW, "set": {"measure.steps": 2, "measure.held_back": 0}}
    given |= {"recipe": "straggler-sparse", "output": tmp_path / "out"}
    result = clipmerge.merge(pair[0], finetuned, data=images, **given, **QUIET)
    assert result.record
    assert "no straggler layers found" in result.record.measured.decision


def test_learning_is_judged_on_images_that_it_does_not_see(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    flags = ("--data", images, *FLAGS, "--ood", f"far={shifted}")
    record = run_and_check_merge(far, tmp_path / "out", *flags)
    assert next(iter(record)) == "verdict"  # the answer comes first
    assert next(iter(record["verdict"])) == "recommendation"
    verdict, used = record["verdict"], record["calibration"]
    assert verdict["target"]["images"] + used["images"] <= 30
    assert [source["name"] for source in verdict["ood"]] == ["far"]
    # of 20 sampled ones
    assert used["ood"]["far"] == verdict["ood"][0]["images"] == 10
    assert verdict["target"]["models"].keys() == {"zero-shot", "fine-tuned", "merged"}
    assert record["seconds"].keys() >= {"read", "check", "learn", "decide", "judge", "merge"}
    # its own plan gives the same bytes again
    plan = tmp_path / "out" / "plan" / "plan.json"
    ends = {"zeroshot": far[0], "finetuned": far[1]}
    clipmerge.apply(plan, output=tmp_path / "again", **ends, **QUIET)
    again, written = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "out")
    )
    assert again == written
    with pytest.raises(VerdictError, match="so nothing was written") as caught:
        clipmerge.merge(
            *far,
            data=images,
            output=tmp_path / "no",
            fail_on=[verdict["recommendation"]],
            ood={"far": shifted},
            **FEW,
            **QUIET,
        )
    assert caught.value.result.record.verdict.model_dump(mode="json") == verdict
    gate = ("--fail-on", verdict["recommendation"], "-o", tmp_path / "no")
    shown = command_line("merge", *far, *flags, *gate)
    assert shown.code == 1
    assert "zero-shot" in shown.out
    words = f"error: the verdict is {verdict['recommendation']}, so nothing was written (--fail-on)"
    assert words in shown.err
    assert verdict["sentence"].partition(":")[0] not in shown.err
    assert not (tmp_path / "no").exists()


def test_without_weight_all_images_of_a_shift_judge(
    far: Folders, images: Path, shifted: Path
) -> None:
    options = {**FEW, "set": {**FEW["set"], "measure.ood_weight": 0}}
    record = clipmerge.merge(*far, data=images, ood={"far": shifted}, **options, **QUIET).record
    assert record.calibration.ood == {}
    assert record.verdict.ood[0].images == 20


def test_checkpoints_are_opened_and_their_model_built_once(
    far: Folders,
    images: Path,
    shifted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spied: Callable[[object, str], Mock],
) -> None:
    """Merged twice: in memory to be judged, and to the disk in pieces, which needs no memory."""
    watched = [
        spied(_pair, "open_checkpoints"),
        spied(building, "model_for"),
        spied(interpolate, "merged_tensors"),
    ]
    monkeypatch.setattr(verdict, "_LOAD_BYTES", 1)  # so that the model is moved for each batch
    sources = {"data": images, "ood": {"far": shifted}}
    clipmerge.merge(*far, output=tmp_path / "out", **sources, **FEW, **QUIET)
    assert [each.call_count for each in watched] == [1, 1, 1]


def test_a_gate_that_cannot_judge_is_shut_before_anything_is_learned(
    far: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = save_images(tmp_path / "two", each=1, classes=("cat", "dog"))
    gate = {"recipe": "auto", "fail_on": "too-few-images", "output": tmp_path / "out"}
    gate |= {**FEW, "allow": "at-chance"}
    told, stages = Told(), []
    monkeypatch.setattr(told, "stage", stages.append)
    for options, said in (
        ({"data": two}, "there are too few images"),
        ({"data": two, "verdict": False}, "give `data`, and leave out `verdict=False`"),
        ({"recipe": "wise-ft", "set": None}, "give `data`"),
    ):
        given = {**gate, "progress": told, **options}
        with pytest.raises(UsageError, match=f"^`fail_on` needs a verdict: {said}"):
            clipmerge.merge(*far, **given)
    callback = clipmerge.RobustMergeCallback(far[0], **given)
    with pytest.raises(UsageError, match=r"^`fail_on` needs a verdict: give `data`"):
        callback.on_train_begin(SimpleNamespace(), None, None, CLIPModel.from_pretrained(far[0]))
    assert set(stages) == {"read", "check"}
    assert not (tmp_path / "out").exists()


def test_a_plan_is_read_edited_and_applied(pair: Folders, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    made = clipmerge.plan(*pair, "wise-ft", output=file, **QUIET)
    assert clipmerge.plan(*pair, "wise-ft", **QUIET) == made == Plan.load(file)
    text = json.loads(file.read_text())
    for layer in text["layers"].values():
        layer["alpha"] = 0.25
    file.write_text(json.dumps(text))
    done("apply", file, "-o", tmp_path / "applied")
    run_and_check_merge(pair, tmp_path / "merged", "--alpha", 0.25, alpha=0.25)
    applied, merged = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("applied", "merged")
    )
    assert applied == merged


def test_a_plan_is_for_its_checkpoints_whatever_their_names(
    copies: Folders, tmp_path: Path
) -> None:
    plan = clipmerge.plan(*copies, "wise-ft", **QUIET)
    best = (copies[1] / "model.safetensors").rename(copies[1] / "best.safetensors")
    clipmerge.apply(plan, output=tmp_path / "out", zeroshot=copies[0], finetuned=best, **QUIET)
    elsewhere = plan.replace(finetuned=(plan.zeroshot.replace(source="finetuned"),))
    two = [best, copies[0]]
    for wrong, given, said in (
        (plan, {"zeroshot": copies[0], "finetuned": two}, "is for 1 fine-tuned checkpoints, but 2"),
        (plan, {"zeroshot": copies[0]}, "give both, or neither"),
        (elsewhere, {}, r"finetuned is not in .* or beside the plan"),
    ):
        with pytest.raises(UsageError, match=said):
            clipmerge.apply(wrong, output=tmp_path / "no", **given, **QUIET)
    assert not (tmp_path / "no").exists()


def test_applying_a_plan_does_not_replace_what_it_reads(
    copies: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a checkpoint that its plan finds beside itself, nor the plan."""
    run, output = copies[1].parent, tmp_path / "merged"
    monkeypatch.chdir(run)
    clipmerge.plan("zeroshot", "finetuned", "wise-ft", output=Path("plan.json"), **QUIET)
    clipmerge.plan(*copies, "wise-ft", output=output / "plan" / "plan.json", **QUIET)
    monkeypatch.chdir(tmp_path.parent)
    for file, held in ((run / "plan.json", copies[1]), (output / "plan" / "plan.json", output)):
        with pytest.raises(OutputError, match=r"holds .*, which this command reads"):
            clipmerge.apply(Plan.load(file), output=held, overwrite=True, **QUIET)


def test_several_finetuned_models_are_averaged(family: list[Path], tmp_path: Path) -> None:
    clipmerge.merge(family[0], family[1:3], output=tmp_path / "out", alpha=1, **QUIET)
    merged, *finetuned = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", *family[1:3])
    )
    for name, weight in merged.items():
        torch.testing.assert_close(weight, (finetuned[0][name] + finetuned[1][name]) / 2)


def test_models_in_memory_get_the_weights_that_files_give(pair: Folders, tmp_path: Path) -> None:
    models = [CLIPModel.from_pretrained(folder).eval() for folder in pair]
    merged = clipmerge.merge_models(*models, alpha=0.3, **QUIET).state_dict()
    result = clipmerge.merge(*models, output=tmp_path / "out", alpha=0.3, **QUIET)
    run_and_check_merge(pair, tmp_path / "files", "--alpha", 0.3, alpha=0.3)
    written, expected, finetuned = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", tmp_path / "files", pair[1])
    )
    for name, weight in expected.items():
        assert torch.equal(written[name], weight)
        assert torch.equal(merged[name], weight)
        assert torch.equal(models[1].state_dict()[name], finetuned[name])
    assert result.plan.zeroshot.source == "CLIPModel in memory"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_models_of_open_clip_in_memory_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_open_clip.model_config()
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    zeroshot, finetuned = tiny_open_clip.build(config), tiny_open_clip.build(config)
    half = {name: value + 0.01 for name, value in zeroshot.state_dict().items()}
    finetuned.load_state_dict({name: value + 0.02 for name, value in zeroshot.state_dict().items()})
    for processor in (tiny_open_clip.save(zeroshot, config, tmp_path / "base"), "tiny"):
        options = {"alpha": 0.5, "processor": processor, **QUIET}
        merged = clipmerge.merge_models(zeroshot, finetuned, **options).state_dict()
        torch.testing.assert_close(merged, half)
    for wrong in ("nowhere", 3):
        with pytest.raises(UsageError, match="is neither a folder nor a model of open_clip"):
            clipmerge.merge_models(zeroshot, finetuned, alpha=0.5, processor=wrong, **QUIET)


def test_an_output_tells_neither_folders_nor_what_another_program_was_given(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret client"
    shutil.copytree(images, secret / "val")
    for folder in pair:
        (secret / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "hf_secret"])
    ends = [f"secret client/{folder.name}" for folder in pair]
    more = {"allow": "at-chance", "processor": CLIPProcessor.from_pretrained(pair[0]), **QUIET}
    model = CLIPModel.from_pretrained(pair[1])
    clipmerge.merge(
        ends[0], model, data="secret client/val", alpha=0.5, output=secret / "out", **more
    )
    plan = clipmerge.plan(*ends, "wise-ft", output="secret client/plan.json", **QUIET)
    clipmerge.apply(Path("secret client/plan.json"), output=secret / "again", **QUIET)
    clipmerge.apply(plan, output=secret / "same", **QUIET)
    sides = {"id": "v=secret client/val", "ood": {"o": secret / "val"}, "alphas": [0, 1]}
    clipmerge.sweep(*ends, **sides, points=ends[1], output="secret client/swept", **more)
    commands = {
        "out": "merge zeroshot 'CLIPModel in memory' --data val --alpha 0.5 --allow at-chance",
        "again": "apply plan.json",
        "same": "apply 'Plan in memory'",
        "swept": "sweep zeroshot finetuned --id v=val --ood o=val --alphas 0,1 --point finetuned"
        " --allow at-chance",
    }
    for name, command in commands.items():
        (record,) = [*(secret / name).glob("clipmerge.json"), *(secret / name).glob("sweep.json")]
        expected = f"clipmerge {command} --output {name}"
        assert json.loads(record.read_text())["command"] == expected
        for file in (secret / name).rglob("*.*"):
            is_text = file.suffix in (".json", ".html", ".md")
            assert not is_text or "secret" not in file.read_text()


def test_what_happens_is_told_once(pair: Folders, images: Path) -> None:
    told = Told()
    made = clipmerge.merge(*pair, data=images, alpha=1.2, allow="at-chance", progress=told)
    assert made.record is not None
    assert len(set(made.warnings)) == len(made.warnings)
    assert [warning for warning in made.warnings if "extrapolates" in warning]
    assert sum("no recipe was named, so it is wise-ft" in note for note in told.lines) == 1
    assert len(set(told.lines)) == len(told.lines)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such option": ({"imags": 3}, TypeError, "Did you mean 'images'"),
    "ood alone": ({"ood": {"a": "b"}}, UsageError, "`ood` needs `data`"),
    "push alone": ({"push": "a/b", "output": None}, UsageError, "`push` needs `output`"),
    "density of a mask without one": (
        {"recipe": "monosoup", "set": ["overrides=[{layers: '*', density: 0.5}]"]},
        UsageError,
        "density 0.5, which the mask 'spectral' does not have",
    ),
    "layers": ({"set": ["overrides=[{layers: x, alpha: 0}]"]}, ClipmergeError, "'x'"),
    "alpha too far": ({"alpha": 1e39}, ClipmergeError, "overflow"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_and_nothing_written(
    pair: Folders, tmp_path: Path, what: str
) -> None:
    options, error, said = REFUSED[what]
    given = {"recipe": "wise-ft", "output": tmp_path / "out", **QUIET, **options}
    with pytest.raises(error, match=said) as caught:
        clipmerge.merge(*pair, **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
