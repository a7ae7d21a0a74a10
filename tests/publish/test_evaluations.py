"""Accuracies in a published model: only this model's, in the card, the record and the Hub's own files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from clipmerge.errors import UsageError
from clipmerge.output.record import PUBLISHED, MergeRecord
from clipmerge.publish import evaluations
from clipmerge.publish.evaluations import eval_result_files
from tests.support.command import printed
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import save_hub_parquet
from tests.support.merged_output import RECORD

Inputs = tuple[Path, Path]
WEIGHTS = {"model.safetensors": "ab" * 32}


CALIBRATION = RECORD["calibration"] | {"images": 9}


def add_results(record: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    return evaluations.add_results(MergeRecord.model_validate(record), files).as_json()


def test_evaluate_then_push_puts_accuracies_on_the_hub(
    hub: FakeHub, pair: Inputs, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = save_hub_parquet(tmp_path / "x.parquet", [0, 1, 2] * 4).read_bytes()
    sha = upload(hub, "acme/cars", {"data/test-00000-of-00001.parquet": content}, kind="dataset")
    out = tmp_path / "out"
    printed("merge", *pair, "-r", "wise-ft", "-o", out)
    far = "hf://datasets/acme/cars:test"
    told = printed("evaluate", out, "--data", f"Cars far={far}", "--data", f"val={images}")
    (tmp_path / "e.json").write_text(json.dumps(told))
    printed("push", out, "alice/robust", "--evaluation", tmp_path / "e.json")
    card = ModelCard(hub.content("alice/robust", "README.md").decode())
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == told["accuracy"]
    assert (results["Cars far"].dataset_type, results["Cars far"].dataset_revision) == ("acme/cars", sha)
    assert results["Cars far"].dataset_split == "test"
    assert card.data.datasets == ["acme/cars"]
    assert f"| Cars far | {100 * told['accuracy']['Cars far']:.2f} % | 12 |" in card.text
    (entry,) = yaml.safe_load(hub.content("alice/robust", ".eval_results/cars-far.yaml"))
    assert entry["dataset"] == {"id": "acme/cars", "task_id": "default", "revision": sha}
    assert entry["value"] == told["accuracy"]["Cars far"]
    assert sorted(name for name in hub.files("alice/robust") if name.startswith(".e")) == [
        ".eval_results/cars-far.yaml"
    ]
    record = json.loads(hub.content("alice/robust", "clipmerge.json"))
    assert record["accuracy"] == told["accuracy"]
    assert str(images) not in json.dumps(record)
    again = printed("push", out, "alice/robust")
    assert not again["changed"]
    assert len(hub.requests("POST", "/models/alice/robust/commit/")) == 1


def test_a_sweeps_point_is_found_by_its_recipe(pair: Inputs, images: Path, tmp_path: Path) -> None:
    from tests.support.tiny_clip import save_images

    far = save_images(tmp_path / "far", each=4, seed=9)
    flags = ("--id", f"val={images}", "--ood", f"far={far}", "--alphas", "0,1", "-r", "wise-ft", "-r", "lines")
    swept = printed("sweep", *pair, *flags, "--seed", "3", "-o", tmp_path / "sweep")
    record = printed("merge", *pair, "-r", "lines", "--seed", "3", "-o", tmp_path / "out")
    assert set(record) == set(MergeRecord.model_fields) - set(PUBLISHED)
    told = add_results(record, [tmp_path / "sweep" / "sweep.json"])
    assert told["accuracy"] == swept["recipes"][1]["accuracy"]
    assert told["images"] == {"val": 30, "far": 12}
    (tmp_path / "new.json").write_text(json.dumps(swept | {"format": "clipmerge-sweep/3"}))
    with pytest.raises(UsageError, match=r"'clipmerge-sweep/3', but this version .* 'clipmerge-sweep/2'; update"):
        add_results(record, [tmp_path / "new.json"])
    others = [
        record | {"seed": 4},
        record | {"recipe": record["recipe"] | {"method": {"name": "lines", "alpha": 0.1}}},
        record | {"calibration": CALIBRATION},
        record | {"finetuned": [record["finetuned"][0] | {"files": WEIGHTS}]},
    ]
    for other in others:
        with pytest.raises(UsageError, match=r"holds no point of this merge \(recipes: wise-ft, lines\)"):
            add_results(other, [tmp_path / "sweep" / "sweep.json"])


BAD: dict[str, tuple[str, str]] = {
    "not there": ("", "cannot be read as JSON"),
    "not JSON": ("{", "cannot be read as JSON"),
    "a list": ("[]", "is not a JSON object"),
    "another": ('{"accuracy": 1}', r"not written by `clipmerge evaluate --format json` or `sweep` \("),
    "a broken sweep": ('{"recipes": 3}', r"not written by `clipmerge evaluate"),
    "a list in the place of shares": (
        json.dumps({"checkpoint": {"source": "x", "files": WEIGHTS}, "accuracy": [1], "images": {}, "sources": {}}),
        r"not written by `clipmerge evaluate",
    ),
    "half of a pair": (r'{"accuracy": {"\ud800": 1}}', r"cannot be read as JSON \(a string with half of a surrogate"),
    "other weights": (
        json.dumps({"checkpoint": {"source": "x", "files": {"model.safetensors": "cd" * 32}}, "accuracy": {}}),
        r"measured x, whose weights are not these \(model\.safetensors differs\)",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_evaluations_that_are_not_of_this_model(tmp_path: Path, how: str) -> None:
    text, message = BAD[how]
    file = tmp_path / "e.json"
    if text:
        file.write_text(text)
    record = copy.deepcopy(RECORD) | {"files": WEIGHTS}
    with pytest.raises(UsageError, match=f"--evaluation .*e.json: {message}"):
        add_results(record, [file])


def test_two_names_that_read_alike_keep_their_files() -> None:
    source = {"source": "hf://datasets/acme/cars:test", "revision": None}
    record = RECORD | {"accuracy": {"a b": 0.5, "a-b": 0.75, "c": 1.0}, "sources": {"a b": source, "a-b": source}}
    files = eval_result_files(MergeRecord.model_validate(record))
    assert {yaml.safe_load(text)[0]["value"] for text in files.values()} == {0.5, 0.75}
    assert len(files) == 2
