"""What users combine: captions as images, a push with the merge, results in a notebook, and the
mistakes that they make at the keyboard of Python."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

import clipmerge
from clipmerge import ClipmergeError, OutputError, Progress, UsageError
from tests.support.command import done, one_line, printed
from tests.support.published import publishing
from tests.support.tiny_clip import Folders, save_captions
from tests.support.tiny_open_clip import ARCHITECTURES, model_config, save_open_clip_pair
from tests.support.told import Told

QUIET: dict[str, Any] = {"progress": Progress()}
#: Models that know nothing of the images, and a quick `auto`.
GUESSING: dict[str, Any] = {"allow": "at-chance", **QUIET}
FEW: dict[str, Any] = {"images": 20, "set": {"measure.steps": 2}, **GUESSING}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captions(tmp_path_factory.mktemp("captions") / "pairs", each=12)


def test_captions_teach_and_judge(far: Folders, images: Path, captions: Path) -> None:
    made = clipmerge.merge(*far, "auto", data=captions, ood={"named": images}, **FEW)
    assert made.record is not None
    assert made.record.calibration is not None
    assert made.record.calibration.classes_with_images == made.record.calibration.images
    assert made.record.verdict is not None
    assert [each.name for each in made.record.verdict.sources] == ["target", "named"]
    judged = clipmerge.merge(*far, "auto", data=images, ood={"told": captions}, **FEW)
    assert judged.record is not None
    assert judged.record.calibration is not None
    assert judged.record.calibration.ood["told"] > 0


def test_results_show_themselves(far: Folders, images: Path, shifted: Path, captions: Path) -> None:
    sources = {"val": images, "told": captions}
    found = clipmerge.evaluate(far[1], sources, **GUESSING)
    frame = found.to_frame()
    assert frame.loc["val", "accuracy"] == found.accuracy["val"]
    first = found.recall["told"]["image_to_text"]["1"]
    assert frame.loc["told", "image_to_text R@1"] == first
    assert f"told R@1 {first:.1%}" in repr(found)
    inspected = clipmerge.inspect(*far, **QUIET)
    assert [*inspected.to_frame().index] == [*inspected.layers]
    assert "0 mismatches" in repr(inspected)
    planned = clipmerge.plan(*far, alpha=0.25, **QUIET)
    assert "The layers go 0.25 of the way" in repr(planned)
    swept = clipmerge.sweep(*far, id=images, ood={"far": shifted}, **GUESSING)
    row = swept.to_frame().loc["alpha 0.5"]
    assert row["far"] == row["mean shift"]
    assert swept.record["answer"] in repr(swept)
    for result in (found, inspected, planned, swept):
        assert "<table" in result._repr_html_()
    shown = done("evaluate", far[1], "--data", f"told={captions}", "--allow", "at-chance").out
    assert f"image to text R@1 36, 36 captions {first:.1%}" in " ".join(shown.split())


def test_a_merge_is_published(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = publishing(monkeypatch)
    flags = ("--alpha", 0.5, "-o", tmp_path / "out", "--push", "alice/robust")
    shown = done("merge", *pair, *flags).out
    assert "Published https://huggingface.co/alice/robust." in shown
    assert "model.safetensors" in hub.models["alice/robust"]
    record = printed("push", tmp_path / "out", "alice/again")
    assert record["url"].endswith("/alice/again")


def test_a_layer_that_a_plan_does_not_name_stays_zero_shot(pair: Folders, tmp_path: Path) -> None:
    plan = clipmerge.plan(*pair, alpha=0.5, **QUIET)
    data = json.loads(plan.to_json())
    dropped = next(iter(data["layers"]))
    del data["layers"][dropped]
    (tmp_path / "fewer.json").write_text(json.dumps(data))
    told = Told()
    clipmerge.apply(
        tmp_path / "fewer.json",
        zeroshot=pair[0],
        finetuned=pair[1],
        output=tmp_path / "out",
        progress=told,
    )
    said = f"layers without a setting stay zero-shot: {dropped}"
    assert any(said in line for line in told.lines)


#: Untyped, because a type checker would find some of these mistakes.
API: Any = clipmerge
PAIR = ("zeroshot", "finetuned")
REFUSED: dict[str, tuple[Any, tuple[object, ...], dict[str, object], str]] = {
    "no sources": (API.evaluate, ("zeroshot", []), {}, "nothing to evaluate"),
    "a number as source": (API.evaluate, ("zeroshot", [3]), {}, "sources are named"),
    "an empty source": (API.evaluate, ("zeroshot", [" "]), {}, "names no images"),
    "one name twice": (API.evaluate, ("zeroshot", ["a=x", "a=y"]), {}, "same name"),
    "another model": (API.inspect, (torch.nn.Linear(1, 1),), {}, "is not a model of"),
    "no models": (API.merge, ("zeroshot", []), {}, "an empty list"),
    "paths as models": (API.merge_models, PAIR, {}, "give torch modules"),
    "a long output": (API.merge, PAIR, {"output": "x" * 5000}, "cannot be a path"),
    "a null character": (API.evaluate, ("zeroshot", "a\0b"), {}, "cannot be a path"),
    "no name": (API.inspect, ("",), {}, "the name of the checkpoint is empty"),
    "one prompt for all": (
        API.merge,
        PAIR,
        {"data": "images", "template": "very " * 90 + "{}"},
        "the prompts of all classes, or all captions, are the same to the model",
    ),
    "no such statistic": (
        API.merge,
        (*PAIR, "straggler-outlier"),
        {"data": "images", "set": {"method.statistic": "size"}, "allow": "at-chance"},
        "statistic 'size' is not measured by path-barrier",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_is_one_line(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    function, given, options, said = REFUSED[what]
    for name, folder in (("zeroshot", pair[0]), ("finetuned", pair[1]), ("images", images)):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with one_line(ClipmergeError, said):
        function(*given, **options, **QUIET)


@pytest.mark.parametrize("processor", [3, "no/such-model", "no//name"])
def test_what_is_no_processor_is_refused(pair: Folders, processor: Any) -> None:
    models = [CLIPModel.from_pretrained(folder) for folder in pair]
    with one_line(UsageError, "processor"):
        clipmerge.merge_models(*models, alpha=0.5, processor=processor, **QUIET)


def test_models_in_memory_get_the_type_that_was_asked_for(pair: Folders) -> None:
    models = [torch.nn.DataParallel(CLIPModel.from_pretrained(folder)) for folder in pair]
    merged = API.merge_models(*models, alpha=0.5, dtype="bfloat16", **QUIET)
    assert {value.dtype for value in merged.parameters()} == {torch.bfloat16}


def test_statistics_of_batch_norms_are_merged_and_their_counters_kept(tmp_path: Path) -> None:
    ends = save_open_clip_pair(tmp_path / "pair", model_config(**ARCHITECTURES["resnet"]))
    weights = []
    for alpha in (0, 0.5, 1):
        clipmerge.merge(*ends, alpha=alpha, output=tmp_path / str(alpha), **QUIET)
        weights.append(load_file(tmp_path / str(alpha) / "open_clip_model.safetensors"))
    for name, middle in weights[1].items():
        if name.endswith("num_batches_tracked"):
            assert [each[name].item() for each in weights] == [7, 7, 14]
        elif name.endswith("running_var"):
            torch.testing.assert_close(middle, (weights[0][name] + weights[2][name]) / 2)
    with one_line(ClipmergeError, "is a variance and becomes negative"):
        clipmerge.merge(*ends, alpha=-1000, output=tmp_path / "beyond", **QUIET)
    with one_line(OutputError, "leave out `max_shard_size`"):
        clipmerge.merge(*ends, output=tmp_path / "shards", max_shard_size="10KB", **QUIET)
    assert not (tmp_path / "shards").exists()


def test_a_doubt_may_be_allowed_and_names_may_be_a_json_file(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    clipmerge.merge(pair[0], pair[0], alpha=0.5, allow="equal-models", progress=told)
    assert any("hold the same weights" in line for line in told.lines)
    (tmp_path / "names.json").write_text(json.dumps(["bird", "cat", "dog"]))
    monkeypatch.chdir(images)
    named = clipmerge.evaluate(pair[1], ".", classes=tmp_path / "names.json", **GUESSING)
    assert named.accuracy == clipmerge.evaluate(pair[1], images, **GUESSING).accuracy
    assert [*named.accuracy] == [images.name]
