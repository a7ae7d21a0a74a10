"""The functions and the commands write the same bytes and report the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmerge
from clipmerge.progress import Silent
from tests.support.command import clipmerge as command

Folders = tuple[Path, Path]
QUIET: dict[str, Any] = {"progress": Silent()}
TIMED = ("seconds", "command", "output")
pytestmark = pytest.mark.draws


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of every file; of JSON records only the parts that are equal in equal runs."""
    files: dict[str, Any] = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(path.relative_to(folder))
        files[name] = path.read_bytes()
        if name in ("clipmerge.json", "sweep.json", "conversion.json"):
            record = json.loads(files[name])
            files[name] = {key: value for key, value in record.items() if key not in TIMED}
    return files


def both(
    name: str, flags: list[object], call: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the command and the function, each with its own folder ``out``."""
    outputs = []
    for place in ("command", "function"):
        (folder / place).mkdir()
        monkeypatch.chdir(folder / place)
        if place == "command":
            ended = command(name, *flags, "--output", "out")
            assert ended.code == 0, ended.err
        else:
            call(Path("out"))
        outputs.append(folder / place / "out")
    first, second = outputs
    if first.is_dir():
        return contents(first), contents(second)
    return {first.name: first.read_bytes()}, {second.name: second.read_bytes()}


MERGES: dict[str, tuple[str, list[object], dict[str, Any]]] = {
    "without data": ("wise-ft", [], {}),
    "overrides as a mapping": ("wise-ft", ["--set", "method.alpha=0.3"], {"set": {"method.alpha": 0.3}}),
    "overrides as texts": ("lines", ["--set", "method.alpha=0.3"], {"set": ["method.alpha=0.3"]}),
    "dtype and shards": (
        "wise-ft",
        ["--dtype", "bfloat16", "--max-shard-size", "40KB"],
        {"dtype": "bfloat16", "max_shard_size": "40KB"},
    ),
    "nothing hashed": ("wise-ft", ["--no-hash"], {"hash": False}),
}


@pytest.mark.parametrize("which", MERGES)
def test_a_merge_writes_what_the_command_writes(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    recipe, flags, options = MERGES[which]
    asked = [*pair, "--recipe", recipe, *flags]
    spelled = f"clipmerge merge {pair[0]} {pair[1]}"

    def call(output: Path) -> None:
        result = clipmerge.merge(*pair, recipe, output=output, **options, **QUIET)
        assert result.path == output
        assert result.record is not None
        assert result.record.to_text() == (output / "clipmerge.json").read_text()
        assert result.record.command.startswith(spelled)

    one, other = both("merge", asked, call, tmp_path, monkeypatch)
    assert one == other


def test_a_measured_merge_writes_what_the_command_writes(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, names = "a bad photo of a {}.", tmp_path / "names.txt"
    names.write_text("ant\nbee\ncow\n")
    flags = ["--data", images, "--classes", names, "--template", template, "--images", 20, "--batch-size", 5]
    options: dict[str, Any] = {"batch_size": 5, "images": 20, "classes": names, "template": template, "data": images}
    recipe: list[object] = [*pair, "--recipe", "straggler-outlier"]

    def call(output: Path) -> None:
        clipmerge.merge(*pair, "straggler-outlier", output=output, seed=3, **options, **QUIET)

    one, other = both("merge", [*recipe, *flags, "--seed", 3], call, tmp_path, monkeypatch)
    assert "path.png" in one
    assert one == other


def test_a_plan_and_its_tensors_are_those_of_the_command_and_apply_alike(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*pair, "--recipe", "tpgm", "--data", images, "--set", "measure.steps=2"]
    monkeypatch.chdir(tmp_path)
    assert command("plan", *flags, "--output", "command.json").code == 0
    made = clipmerge.plan(*pair, "tpgm", data=images, set={"measure.steps": 2}, **QUIET)
    made.save("function.json")
    names = ("command", "function")
    plans = [json.loads(Path(f"{name}.json").read_text()) for name in names]
    tensors = [Path(f"{name}.tensors.safetensors").read_bytes() for name in names]
    assert tensors[0] == tensors[1]
    for plan, name in zip(plans, names, strict=True):
        assert plan["tensors"].pop("file") == f"{name}.tensors.safetensors"
    assert plans[0] == plans[1]

    assert command("apply", "command.json", "--output", "by-command").code == 0
    clipmerge.apply("function.json", output="by-function", **QUIET)
    clipmerge.apply(clipmerge.Plan.load("function.json"), output="loaded", **QUIET)
    clipmerge.apply(made, output="made", **QUIET)
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("by-command", "by-function", "loaded", "made")]
    assert all(each == weights[0] for each in weights)


def test_several_fine_tuned_checkpoints_are_merged_as_by_the_command(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(output: Path) -> None:
        clipmerge.merge(family[0], family[1:], "ties", output=output, **QUIET)

    one, other = both("merge", [*family, "--recipe", "ties"], call, tmp_path, monkeypatch)
    assert one["model.safetensors"] == other["model.safetensors"]
    assert one["clipmerge.json"] == other["clipmerge.json"]


def test_a_recipe_is_a_name_a_file_a_mapping_or_itself(pair: Folders, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nmethod:\n  name: wise-ft\n  alpha: 0.25\n")
    mapping = {"name": "mine", "method": {"name": "wise-ft", "alpha": 0.25}}
    recipes = [file, str(file), mapping, clipmerge.load_recipe(file)]
    plans = [clipmerge.plan(*pair, recipe, **QUIET) for recipe in recipes]
    assert all(plan == plans[0] for plan in plans)
    assert {layer.alpha for layer in plans[0].layers.values()} == {0.25}
    assert mapping == {"name": "mine", "method": {"name": "wise-ft", "alpha": 0.25}}  # not changed


def test_evaluating_reports_what_the_command_reports(pair: Folders, images: Path) -> None:
    by_command = command("evaluate", pair[1], "--data", f"val={images}", "--batch-size", 7, "--format", "json")
    result = clipmerge.evaluate(pair[1], {"val": images}, batch_size=7, **QUIET)
    assert result.record == by_command.json
    assert result.accuracy == by_command.json["accuracy"]
    assert clipmerge.evaluate(pair[1], {"val": images}, images_at_once=2, **QUIET).accuracy == result.accuracy


def test_inspecting_reports_what_the_command_reports(pair: Folders) -> None:
    result = clipmerge.inspect(*pair, **QUIET)
    assert result.record == command("inspect", *pair, "--format", "json").json
    assert (result.family, result.mismatches) == ("CLIP", ())
    alone = clipmerge.inspect(pair[0], weights=False, **QUIET)
    assert alone.record == command("inspect", pair[0], "--no-weights", "--format", "json").json


def test_a_sweep_writes_what_the_command_writes(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.tiny_clip import save_images

    other = save_images(tmp_path / "other", seed=1)
    flags = [*pair, "--id", f"val={images}", "--ood", f"odd={other}", "--recipe", "lines", "--alphas", "0,0.5,1"]
    results = []

    def call(output: Path) -> None:
        asked: dict[str, Any] = {"id": {"val": images}, "ood": {"odd": other}, "alphas": (0, 0.5, 1)}
        results.append(clipmerge.sweep(*pair, recipes=["lines"], output=output, **asked, **QUIET))

    one, two = both("sweep", flags, call, tmp_path, monkeypatch)
    assert one == two
    (result,) = results
    assert result.correct["odd"].shape == (4, 30)
    assert list(result.to_frame().index) == ["alpha 0", "alpha 0.5", "alpha 1", "lines"]


def test_converting_writes_what_the_command_writes(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("convert", pair[0], "command", "--to", "open-clip").code == 0
    result = clipmerge.convert(pair[0], "function", to="open-clip", **QUIET)
    assert contents(Path("command")) == contents(Path("function"))
    assert result.path == Path("function")
    assert result.record["command"] == f"clipmerge convert {pair[0]} function --to open-clip"


def test_a_dry_run_decides_and_writes_nothing(pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = clipmerge.merge(*pair, "wise-ft", **QUIET)
    assert result.path is None
    assert result.record is not None
    assert result.record.output is None
    assert list(tmp_path.iterdir()) == []
    clipmerge.apply(result.plan, output="applied", **QUIET)
    clipmerge.merge(*pair, "wise-ft", output="merged", **QUIET)
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("applied", "merged")]
    assert weights[0] == weights[1]


def test_what_is_wrong_is_one_error_of_the_tree(pair: Folders, images: Path, tmp_path: Path) -> None:
    with pytest.raises(clipmerge.UsageError, match="is given twice"):
        clipmerge.merge(pair[0], pair[0], "wise-ft", output=tmp_path / "out")
    with pytest.raises(clipmerge.UsageError, match="measures, and needs labelled images"):
        clipmerge.plan(*pair, "auto")
    with pytest.raises(clipmerge.UsageError, match="--device tpu: choose from"):
        clipmerge.plan(*pair, "auto", data=images, device="tpu")
    with pytest.raises(clipmerge.UsageError, match="holds these settings itself"):
        clipmerge.plan(*pair, "auto", data=clipmerge.Calibration(source=str(images)), images=5)
    with pytest.raises(clipmerge.RecipeError, match="no option 'alhpa'"):
        clipmerge.plan(*pair, {"method": {"name": "wise-ft", "alhpa": 1}})
    (tmp_path / "there").mkdir()
    with pytest.raises(clipmerge.OutputError, match="already exists"):
        clipmerge.merge(*pair, "wise-ft", output=tmp_path / "there")
    with pytest.raises(clipmerge.UsageError, match="list is not a checkpoint"):
        clipmerge.inspect([1])  # type: ignore[arg-type]
    with pytest.raises(clipmerge.UsageError, match="give both, or neither"):
        clipmerge.apply(clipmerge.plan(*pair, "wise-ft", **QUIET), output=tmp_path / "out", zeroshot=pair[0])
