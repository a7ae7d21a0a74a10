"""Sweeps: every point is what `merge` and `evaluate` say of it, and nothing is evaluated twice."""

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionModel

import clipmerge
from clipmerge.api.apply import write_merge
from clipmerge.api.merge import prepare
from clipmerge.api.sweep import check_sweep, load_source, overlap_notes, run_sweep, write_sweep
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import DataError, UsageError
from clipmerge.evaluation.accuracy import evaluate_sources, load_model
from clipmerge.learning.interpolate import Path as Between
from clipmerge.evaluation.scorer import Scorer, stack_correct
from clipmerge.images.dataset import load_images, open_images
from clipmerge.models.building import build_model
from clipmerge.planning.recipe import load_recipe, recipe_text
from clipmerge.progress import Progress
from clipmerge.report.text import headline, texts_of
from clipmerge.request import Calibration, SweepRequest, parse_named
from clipmerge.run import RunCache
from tests.support.command import done
from tests.support.tasks import inputs_of, plan_of, sweep_of
from tests.support.tasks import request_for as merge_request
from tests.support.tiny_clip import Folders, save_images

TEMPLATE = ("a photo of a {}.",)
QUIET: dict[str, Any] = {"progress": Progress()}
#: Quick settings of path-barrier and the rule for stragglers; the path of `far` would take many
#: points.
QUICK = ["measure.nodes=1", "measure.tolerance=100", "method.bootstraps=5"]


def quick(recipe: str) -> list[str]:
    return QUICK if recipe.startswith("straggler") else []


def request_for(
    pair: Folders, images: Path | str, shifted: Path | str, *names: str, **changes: Any
) -> SweepRequest:
    recipes = (load_recipe(name, quick(name)) for name in names)
    return sweep_of(pair, images, shifted, *recipes, **{"alphas": (0.0, 0.3, 1.0), **changes})


def written_accuracy(
    folder: Path,
    sources: Mapping[str, Any],
    models: Sequence[Path],
    recipe: str,
    *sets: str,
    data: Path | None = None,
) -> dict[str, float]:
    """Accuracies by `evaluate` of the folder written by `merge`."""
    write_merge(
        prepare(
            merge_request(models, recipe, *quick(recipe), *sets, data=data), with_verdict=False
        ),
        folder,
    )
    settings = Calibration(device="cpu", templates=TEMPLATE)
    model = load_model(open_checkpoint(str(folder)))
    loaded = {name: open_images(source) for name, source in sources.items()}
    record = evaluate_sources(model, loaded, settings, Progress())
    return record["accuracy"]


@pytest.mark.slow
def test_every_point_is_what_evaluate_says_of_the_merged_folder(
    far: Folders, images: Path, shifted: Path, calibration: Path, tmp_path: Path
) -> None:
    shrink = recipe_text("straggler-outlier").replace("mask: saliency", "mask: null")
    for shipped, quicker in (("nodes: 3", "nodes: 1"), ("tolerance: 0.01", "tolerance: 100")):
        assert shipped in shrink
        shrink = shrink.replace(shipped, quicker)
    (tmp_path / "shrink.yaml").write_text(shrink)
    recipes = ("lines", "monosoup", "straggler-outlier", str(tmp_path / "shrink.yaml"))
    request = request_for(
        far, images, shifted, *recipes, calibration=Calibration(source=str(calibration))
    )
    record, _ = run_sweep(request)
    for row in record["curve"]:
        alpha = row["alpha"]
        written = written_accuracy(
            tmp_path / f"{alpha}", request.sources, far, "wise-ft", f"method.alpha={alpha}"
        )
        assert row["accuracy"] == written
        assert row["id"] == row["accuracy"]["near"]
        assert row["ood"] == row["accuracy"]["far"]
    assert len({row["ood"] for row in record["curve"]}) > 1  # or the comparison above says nothing
    for row, recipe in zip(record["recipes"], recipes, strict=True):
        assert row["accuracy"] == written_accuracy(
            tmp_path / row["name"], request.sources, far, recipe, data=calibration
        )
    placed, _ = run_sweep(
        replace(request_for(far, images, shifted), points={"mine": str(tmp_path / "monosoup")})
    )
    (mine,) = placed["points"]
    assert mine["accuracy"] == record["recipes"][1]["accuracy"]
    assert [mine["gain"], mine["id_interval"]] == [
        record["recipes"][1][key] for key in ("gain", "id_interval")
    ]
    assert list(mine["checkpoint"]["files"]) == ["model.safetensors"]


@pytest.mark.parametrize("converted", [(False, False), (True, True), (True, False), (False, True)])
def test_a_point_in_the_other_librarys_layout_is_shown_as_it_is(
    far: Folders, images: Path, shifted: Path, tmp_path: Path, converted: tuple[bool, bool]
) -> None:
    merged = tmp_path / "merged"
    clipmerge.merge(*far, "wise-ft", set={"method.alpha": 0.8}, output=merged)
    other = {}
    for source in (*far, merged):
        other[source] = tmp_path / "other" / Path(source).name
        clipmerge.convert(source, other[source], to="open-clip")
    pair = tuple(
        other[end] if swapped else end for end, swapped in zip(far, converted, strict=True)
    )
    result = clipmerge.sweep(
        *pair,
        id={"near": images},
        ood={"far": shifted},
        alphas=[0, 0.8, 1],
        points={"same": merged, "converted": other[merged]},
        allow=["same-images"],
        processor=far[1],
    )
    curve = [row["accuracy"] for row in result.record["curve"]]
    assert curve[1] not in (curve[0], curve[2])
    assert [row["accuracy"] for row in result.record["points"]] == [curve[1]] * 2


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_weights_are_what_merge_writes_bit_for_bit(
    far: Folders, tmp_path: Path, dtype: str, calibration: Path
) -> None:
    pair = cast(far, dtype, tmp_path)
    opened = inputs_of(pair)
    moving = Between(build_model(opened), opened, torch.device("cpu"))
    settings = {
        "monosoup": [],
        "straggler-outlier": [*QUICK, "overrides=[{layers: vision.*, alpha: 0.6, density: 0.3}]"],
        "tpgm": ["measure.steps=2"],
    }
    order = [
        ("wise-ft", 0.7),
        ("wise-ft", 1.0),
        ("wise-ft", 0.1),
        ("monosoup", None),
        ("wise-ft", 0.0),
    ]
    more = (
        []
        if dtype == "bfloat16"
        else [("straggler-outlier", None), ("wise-ft", 0.35), ("tpgm", None)]
    )
    for recipe, alpha in order + more:
        sets = settings.get(recipe, [f"method.alpha={alpha}"])
        run = prepare(merge_request(pair, recipe, *sets, data=calibration), with_verdict=False)
        folder = tmp_path / f"{recipe}-{alpha}"
        write_merge(run, folder)
        written = load_file(folder / "model.safetensors")
        if alpha is None:
            moving.set_plan(run.plan)
        else:
            moving.set_alpha(alpha)
        for name, parameter in moving.model.parameters.items():
            expected = written[name].float()
            assert torch.equal(parameter.view(torch.int32), expected.view(torch.int32)), (
                recipe,
                alpha,
                name,
            )


def cast(pair: Folders, dtype: str, folder: Path) -> Folders:
    copies = (folder / "zeroshot", folder / "finetuned")
    for source, target in zip(pair, copies, strict=True):
        shutil.copytree(source, target)
        CLIPModel.from_pretrained(source, dtype=getattr(torch, dtype)).save_pretrained(target)
    return copies


@pytest.mark.slow
def test_several_are_swept_around_the_curve_to_their_average(
    family: list[Path], images: Path, shifted: Path, tmp_path: Path
) -> None:
    recipes = ("uniform-soup", "ties", "model-stock", "greedy-soup")
    sources = [str(folder) for folder in family]
    flags = [
        "--id",
        f"near={images}",
        "--ood",
        f"far={shifted}",
        "--data",
        images,
        "--alphas",
        "0,0.3,1",
    ]
    asked = [word for name in recipes for word in ("--recipe", name)]
    made = done("sweep", *sources, *flags, *asked, "--output", tmp_path / "out", "--json")
    record = made.json
    assert [each["source"] for each in record["finetuned"]] == sources[1:]
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert all(source in page for source in sources)
    assert "alpha 1 (average of 3)" in page
    scored = [("wise-ft", row, [f"method.alpha={row['alpha']}"]) for row in record["curve"]]
    scored += [(row["name"], row, []) for row in record["recipes"]]
    for name, row, sets in scored:
        measured = {"near": str(images), "far": str(shifted)}
        folder = tmp_path / f"{name}{sets}"
        assert row["accuracy"] == written_accuracy(
            folder, measured, family, name, *sets, data=images
        ), name
    assert record["recipes"][0]["alpha"] == 1  # the uniform soup is the curve's end
    assert record["recipes"][1]["alpha"] is None


@pytest.mark.slow
def test_recipes_with_equal_weights_are_one_point(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    recipes = []
    for alpha, of_text in ((0.3, None), (0.45, None), (0.45, 0.45), (0.45, 0.9)):
        overrides = [] if of_text is None else [{"layers": "text.*", "alpha": of_text}]
        file = tmp_path / f"{alpha}-{of_text}.yaml"
        file.write_text(
            json.dumps({"method": {"name": "wise-ft", "alpha": alpha}, "overrides": overrides})
        )
        recipes.append(str(file))
    record, correct = run_sweep(
        request_for(far, images, shifted, *recipes, calibration=Calibration(batch_size=10))
    )
    points = 3 + 2  # three alphas, 0.45 once, and the one that differs in a coefficient
    assert [row["alpha"] for row in record["recipes"]] == [0.3, None, None, None]
    assert record["recipes"][0]["accuracy"] == record["curve"][1]["accuracy"]
    assert correct["near"].shape == (points, 30)


def test_a_recipe_that_learns_says_what_a_merge_would(
    far: Folders, images: Path, shifted: Path, calibration: Path
) -> None:
    sets = ["measure.steps=2", "measure.batch=4", "measure.strong_aug=2"]
    settings = Calibration(source=str(calibration), device="cpu", templates=TEMPLATE)
    request = sweep_of(
        far, images, shifted, load_recipe("auto", sets), alphas=(0.0, 1.0), calibration=settings
    )
    (row,) = run_sweep(request)[0]["recipes"]
    run = prepare(request.merge_request(request.recipes[0]), Progress(), with_verdict=False)
    assert run.plan is not None
    assert row["decision"]["text"] == headline(run.plan)
    assert "nats while learning; on " in row["decision"]["text"]


@pytest.mark.slow
def test_answers_do_not_depend_on_how_many_images_are_in_memory(
    far: Folders, images: Path, shifted: Path
) -> None:
    request = request_for(far, images, shifted, "lines")
    _, expected = run_sweep(request)
    opened = inputs_of(far)
    plan = plan_of(far, "lines")
    moves = [*[lambda m, a=a: m.interpolate(a) for a in request.alphas], lambda m: m.set_plan(plan)]
    for held in (1, 100_000, 10**9):
        loaded = {"near": load_images(str(images)), "far": load_images(str(shifted))}
        settings = Calibration(device="cpu", templates=TEMPLATE)
        found = Scorer(build_model(opened), opened, settings, load_bytes=held).score(
            moves, loaded, Progress()
        )
        assert all((stack_correct(found[name]) == expected[name]).all() for name in expected)


@pytest.mark.slow
def test_the_record_and_the_files_tell_the_same(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    request = request_for(far, images, shifted, "lines")
    record, recognised = run_sweep(request)
    write_sweep(record, recognised, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "correct.safetensors",
        "curve.pdf",
        "curve.png",
        "curve.svg",
        "sweep.csv",
        "sweep.html",
        "sweep.json",
    }
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == record
    assert record["format"] == "clipmerge-sweep/3"
    assert [each["source"] for each in record["finetuned"]] == [str(far[1])]
    correct = load_file(tmp_path / "out" / "correct.safetensors")
    rows = [*record["curve"], *record["recipes"]]
    for name, right in correct.items():
        assert right.float().mean(dim=1).tolist() == pytest.approx(
            [row["accuracy"][name] for row in rows]
        )
    assert record["images"] == {"near": 30, "far": 21}
    # the same seed gives the same numbers; the seed draws the resamples of the gain
    again, _ = run_sweep(request)
    assert [record | {"seconds": None}] == [again | {"seconds": None}]
    other, _ = run_sweep(replace(request, seed=1))
    gains = [each["recipes"][0]["gain_interval"] for each in (record, other)]
    assert None not in gains
    assert gains[0] != gains[1]


@pytest.mark.parametrize("kind", ["the same folder", "copy"])
def test_ood_images_among_the_calibration_images_are_refused(
    far: Folders, images: Path, calibration: Path, tmp_path: Path, kind: str
) -> None:
    ood = calibration
    if kind != "the same folder":
        ood = save_images(tmp_path / "ood", each=4, seed=9)
        source, target = calibration / "cat" / "2.png", ood / "bird" / "other.png"
        shutil.copyfile(source, target)
    request = request_for(
        far, images, ood, "straggler-outlier", calibration=Calibration(source=str(calibration))
    )
    count = "18 images are" if kind == "the same folder" else "1 image is"
    with pytest.raises(UsageError, match=f"`ood` far: {count} also in the calibration source"):
        run_sweep(request)


@pytest.mark.slow
def test_only_what_was_compared_is_called_checked(
    far: Folders, images: Path, shifted: Path, calibration: Path
) -> None:
    pixels = [(torch.zeros(3, 32, 32), "cat"), (-torch.ones(3, 32, 32), "dog")]
    for source, compares, checked in (
        (str(calibration), True, True),
        (str(calibration), False, False),
        (pixels, True, False),
        (None, True, False),
    ):
        given: dict[str, Any] = {
            "calibration": Calibration(source=source),
            "checks_overlap": compares,
        }
        request = request_for(far, images, shifted, alphas=(0.0, 0.5), **given)
        assert run_sweep(request)[0]["ood_checked"] is checked


@pytest.mark.slow
def test_images_used_twice_are_noted(far: Folders, images: Path, calibration: Path) -> None:
    used_twice = Calibration(source=str(calibration))
    for request, told in (
        (request_for(far, images, images), "30 images are also in `id` near"),
        (request_for(far, calibration, images, calibration=used_twice), "flatters"),
    ):
        loaded = {name: load_source(name, request, Progress()) for name in request.sources}
        notes = texts_of(overlap_notes(request, loaded, {}, RunCache(), Progress()))
        assert any(told in note for note in notes)
    request = request_for(far, images, Path("digits"), calibration=Calibration(source="digits"))
    with pytest.raises(UsageError, match="not out of distribution"):
        run_sweep(request)


def test_a_source_that_cannot_be_read_is_named_with_its_option(far: Folders, images: Path) -> None:
    for request, told in (
        (
            request_for(far, images / "x", images),
            f"`id` near: {images / 'x'}: no such folder; give a folder with one",
        ),
        (
            request_for(far, images, images / "x"),
            f"`ood` far: {images / 'x'}: no such folder; give a folder with",
        ),
    ):
        with pytest.raises(DataError, match=re.escape(told)):
            run_sweep(request)


def test_a_point_may_be_a_model_in_memory(far: Folders, images: Path) -> None:
    model = CLIPModel.from_pretrained(far[1])
    given: dict[str, Any] = {
        "id": {"a": images},
        "ood": {"b": images},
        "alphas": [0.0, 1.0],
        "images": 6,
    }
    swept = clipmerge.sweep(
        *far, **given, points={"mine": model}, allow=["same-images"], progress=Progress()
    )
    (mine,) = swept.record["points"]
    assert mine["accuracy"] == swept.record["curve"][-1]["accuracy"]


def test_sources_may_be_one_text_or_one_path(images: Path) -> None:
    name, expected = images.name, {images.name: str(images)}
    for given in (str(images), images, f"{name}={images}", [images], {name: images}):
        assert parse_named("id", given) == expected
    for wrong in (5, [(1, "cat")]):
        with pytest.raises(UsageError, match=r'^`id` takes sources by name: id=\{"val": SOURCE\}$'):
            parse_named("id", wrong)  # type: ignore[arg-type]


def test_sources_may_be_called_like_other_columns(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    result = clipmerge.sweep(
        *far, id={"id": images}, ood={"ood": shifted, "x": images}, alphas=[0, 1],
        output=tmp_path / "out", allow=["same-images"],
    )  # fmt: skip
    frame = result.to_frame()
    table = (tmp_path / "out" / "sweep.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    for at, row in enumerate(result.record["curve"]):
        for source in ("id", "ood"):
            assert frame[f"source {source}"].iloc[at] == row["accuracy"][source]
            assert float(rows[at][f"source {source}"]) == row["accuracy"][source]
            assert frame[source].iloc[at] == row[source]
        assert frame["x"].iloc[at] == row["accuracy"]["x"]
    with pytest.raises(UsageError, match="`set` changes recipes, and there are none"):
        clipmerge.sweep(*far, id=images, ood=shifted, set={"method.alpha": 0.3})


def test_contradictions_are_refused(far: Folders, images: Path, shifted: Path) -> None:
    for request, told in (
        (request_for(far, images, shifted, "straggler-outlier"), "straggler-outlier' measures"),
        (request_for(far, images, shifted, "lines", "lines"), "two recipes are named 'lines'"),
        (
            request_for(far, images, shifted, "lines", points={"lines": "x"}),
            "`points` lines: a recipe has this name",
        ),
        (request_for(far, images, shifted, alphas=(0.5, 0.5)), "two different values"),
        (
            SweepRequest("a", ("b",), {"near": "x"}, {"near": "y"}),
            "both have a source named 'near'",
        ),
        (SweepRequest("a", ("b",), {"near": "x"}, {}), "at least one"),
    ):
        with pytest.raises(UsageError, match=told):
            check_sweep(request)


@pytest.mark.slow
def test_a_fine_tuned_tower_is_swept_in_its_base(
    far: Folders, images: Path, shifted: Path, tmp_path: Path
) -> None:
    tower = tmp_path / "tower"
    CLIPVisionModel.from_pretrained(far[1]).save_pretrained(tower)
    request = request_for((far[0], tower), images, shifted, "lines")
    record, _ = run_sweep(request)
    for row, recipe, sets in (
        (record["curve"][1], "wise-ft", ["method.alpha=0.3"]),
        (record["curve"][2], "wise-ft", ["method.alpha=1"]),
        (record["recipes"][0], "lines", []),
    ):
        folder = tmp_path / f"{recipe}{sets}"
        assert row["accuracy"] == written_accuracy(
            folder, request.sources, (far[0], tower), recipe, *sets
        )
    assert any("vision tower only" in note["text"] for note in record["warnings"])
