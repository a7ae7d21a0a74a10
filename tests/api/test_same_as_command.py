"""The functions and the commands write the same bytes and report the same numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmerge as api
from clipmerge.progress import Progress
from clipmerge.report.text import record_text
from tests.support.command import clipmerge as command
from tests.support.command import done
from tests.support.tiny_clip import Folders, save_images

QUIET: dict[str, Any] = {"progress": Progress()}
TIMED = ("seconds", "command", "output")
pytestmark = [pytest.mark.slow, pytest.mark.draws]


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of every file; of JSON records only the parts that are equal in equal runs."""
    files: dict[str, Any] = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(path.relative_to(folder))
        files[name] = path.read_bytes()
        if name in ("clipmerge.json", "sweep.json"):
            record = json.loads(files[name])
            files[name] = {key: value for key, value in record.items() if key not in TIMED}
    return files


@pytest.fixture(scope="module")
def given(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "names.txt").write_text("ant\nbee\ncow\n")
    other = save_images(folder / "other", seed=1)
    return {"pair": pair, "images": images, "other": other, "names": folder / "names.txt"}


TEMPLATE = "a bad photo of a {}."
#: By case: the words of a command, and the same call.
CASES: dict[str, tuple[Callable[[Any], list[object]], Callable[[Any, Path], Any]]] = {
    "merge without data": (
        lambda at: ["merge", *at["pair"], "--recipe", "wise-ft", "--set", "method.alpha=0.3"],
        lambda at, out: api.merge(
            *at["pair"], "wise-ft", set={"method.alpha": 0.3}, output=out, **QUIET
        ),
    ),
    "merge that measures": (
        lambda at: [
            "merge",
            *at["pair"],
            "--recipe",
            "straggler-outlier",
            "--data",
            at["images"],
            "--classes",
            at["names"],
            "--template",
            TEMPLATE,
            "--images",
            20,
            "--batch-size",
            5,
            "--seed",
            3,
        ],
        lambda at, out: api.merge(
            *at["pair"],
            "straggler-outlier",
            data=at["images"],
            classes=at["names"],
            template=TEMPLATE,
            images=20,
            batch_size=5,
            seed=3,
            output=out,
            **QUIET,
        ),
    ),
    "sweep": (
        lambda at: [
            "sweep",
            *at["pair"],
            "--id",
            f"val={at['images']}",
            "--ood",
            f"odd={at['other']}",
            "--recipe",
            "lines",
            "--alphas",
            "0,0.5,1",
        ],
        lambda at, out: api.sweep(
            *at["pair"],
            recipes=["lines"],
            id={"val": at["images"]},
            ood={"odd": at["other"]},
            alphas=(0, 0.5, 1),
            output=out,
            **QUIET,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_function_writes_what_the_command_writes(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    words, call = CASES[case]
    for name in ("command", "function"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "command")
    done(*words(given), "--output", "out")
    monkeypatch.chdir(tmp_path / "function")
    result = call(given, Path("out"))
    assert contents(tmp_path / "command" / "out") == contents(tmp_path / "function" / "out")
    assert result.path == Path("out")
    if case == "sweep":
        assert result.correct["odd"].shape == (4, 30)
        assert list(result.to_frame().index) == ["alpha 0", "alpha 0.5", "alpha 1", "lines"]
    else:
        assert record_text(result.record) == Path("out", "clipmerge.json").read_text()
        assert result.record.command.startswith(
            f"clipmerge merge {words(given)[1]} {words(given)[2]}"
        )
        assert Path("out", "path.png").exists() == ("measures" in case)


def test_a_plan_and_its_tensors_are_those_of_the_command_and_apply_alike(
    pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*pair, "--recipe", "tpgm", "--data", images, "--set", "measure.steps=2"]
    monkeypatch.chdir(tmp_path)
    done("plan", *flags, "--output", "command.json")
    made = api.plan(*pair, "tpgm", data=images, set={"measure.steps": 2}, **QUIET)
    made.save("function.json")
    names = ("command", "function")
    plans = [json.loads(Path(f"{name}.json").read_text()) for name in names]
    tensors = [Path(f"{name}.tensors.safetensors").read_bytes() for name in names]
    assert tensors[0] == tensors[1]
    for plan, name in zip(plans, names, strict=True):
        assert plan["tensors"].pop("file") == f"{name}.tensors.safetensors"
    assert plans[0] == plans[1]

    done("apply", "command.json", "--output", "by-command")
    api.apply("function.json", output="by-function", **QUIET)
    api.apply(api.Plan.load("function.json"), output="loaded", **QUIET)
    api.apply(made, output="made", **QUIET)
    weights = [
        Path(name, "model.safetensors").read_bytes()
        for name in ("by-command", "by-function", "loaded", "made")
    ]
    assert all(each == weights[0] for each in weights)


def test_a_recipe_is_a_name_a_file_a_mapping_or_itself(pair: Folders, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nmethod:\n  name: wise-ft\n  alpha: 0.25\n")
    mapping = {"name": "mine", "method": {"name": "wise-ft", "alpha": 0.25}}
    recipes = [file, str(file), mapping, api.load_recipe(file)]
    plans = [api.plan(*pair, recipe, **QUIET) for recipe in recipes]
    assert all(plan == plans[0] for plan in plans)
    assert {layer.alpha for layer in plans[0].layers.values()} == {0.25}
    assert mapping == {"name": "mine", "method": {"name": "wise-ft", "alpha": 0.25}}  # not changed


def test_evaluating_and_inspecting_report_what_the_command_reports(
    pair: Folders, images: Path
) -> None:
    by_command = command(
        "evaluate", pair[1], "--data", f"val={images}", "--batch-size", 7, "--format", "json"
    )
    result = api.evaluate(pair[1], {"val": images}, batch_size=7, **QUIET)
    assert result.record == by_command.json
    assert result.accuracy == by_command.json["accuracy"]
    assert (
        api.evaluate(pair[1], {"val": images}, images_at_once=2, **QUIET).accuracy
        == result.accuracy
    )
    both = api.inspect(*pair, **QUIET)
    assert both.record == command("inspect", *pair, "--format", "json").json
    assert (both.family, both.mismatches) == ("CLIP", ())
    assert api.inspect(*pair, weights=False, **QUIET).record["ancestry"] is None
    alone = api.inspect(pair[0], weights=False, **QUIET)
    assert alone.record == command("inspect", pair[0], "--no-weights", "--format", "json").json


def test_settings_may_be_given_together(pair: Folders, images: Path) -> None:
    held = api.Calibration(source=str(images), images=9, batch_size=4)
    one = api.plan(*pair, "wise-ft-id", data=held, **QUIET)
    other = api.plan(*pair, "wise-ft-id", data=images, images=9, batch_size=4, **QUIET)
    assert (one.calibration, one.layers) == (other.calibration, other.layers)


def test_what_is_wrong_is_one_error_of_the_tree(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    held = api.Calibration(source=str(images))
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (api.UsageError, "int is not a plan", lambda: api.apply(5, output="x")),  # type: ignore[arg-type]
        (api.UsageError, "measures, and needs labelled images", lambda: api.plan(*pair, "auto")),
        (
            api.UsageError,
            "`device` tpu: expected 'auto', 'cpu', 'cuda', 'mps' or 'xpu'",
            lambda: api.plan(*pair, "auto", data=images, device="tpu"),
        ),
        (
            api.UsageError,
            "`images` 0: expected at least 1",
            lambda: api.plan(*pair, "wise-ft", data=images, images=0),
        ),
        (
            api.UsageError,
            "`max_loss` nan: expected",
            lambda: api.plan(*pair, "wise-ft", max_loss=math.nan),
        ),
        (
            api.UsageError,
            "finetuned: an empty list; give",
            lambda: api.plan(pair[0], [], "wise-ft"),
        ),
        (
            api.UsageError,
            "holds these settings itself",
            lambda: api.plan(*pair, "auto", data=held, images=5),
        ),
        (
            api.RecipeError,
            "no option 'alhpa'",
            lambda: api.plan(*pair, {"method": {"name": "wise-ft", "alhpa": 1}}),
        ),
        (api.UsageError, "list is not a checkpoint", lambda: api.inspect([1])),  # type: ignore[arg-type]
        (
            api.UsageError,
            "give both, or neither",
            lambda: api.apply(
                api.plan(*pair, "wise-ft", **QUIET), output=tmp_path / "out", zeroshot=pair[0]
            ),
        ),
    ]
    for error, told, call in cases:
        with pytest.raises(error, match=told):
            call()
