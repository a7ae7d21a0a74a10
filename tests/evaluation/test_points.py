"""Plans have equal keys if and only if they produce the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from clipmerge.api.apply import write_merge
from clipmerge.api.plan import prepare
from clipmerge.evaluation.points import Points, weights_key
from clipmerge.planning.recipe import load_recipe
from clipmerge.request import MergeRequest, Run

Folders = tuple[Path, Path]
LACKING = "text_model.final_layer_norm.bias"


@pytest.fixture(scope="module")
def uneven(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair whose fine-tuned checkpoint lacks a bias."""
    folder = tmp_path_factory.mktemp("uneven") / "finetuned"
    shutil.copytree(pair[1], folder)
    weights = load_file(folder / "model.safetensors")
    del weights[LACKING]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return pair[0], folder


def planned(folders: Folders, recipe: str, **options: Any) -> Run:
    request = MergeRequest(str(folders[0]), (str(folders[1]),), load_recipe(recipe, options))
    return prepare(request)


def key(run: Run) -> Any:
    assert run.plan is not None
    return weights_key(run.plan, run.inputs)


def test_an_even_pair_has_the_curves_points_whatever_the_recipe_says_of_missing_keys(pair: Folders) -> None:
    for missing in ("error", "keep-zeroshot", "keep-finetuned"):
        assert key(planned(pair, "wise-ft", missing=missing)) == ("alpha", 0.5)


def test_a_recipe_that_drops_parameters_is_no_point_of_the_curve(uneven: Folders, tmp_path: Path) -> None:
    kept, dropped = (planned(uneven, "wise-ft", missing=f"keep-{side}") for side in ("zeroshot", "finetuned"))
    assert key(kept) == ("alpha", 0.5)
    assert key(dropped) != key(kept)
    for run, name in ((kept, "kept"), (dropped, "dropped")):
        write_merge(run, tmp_path / name)
    written = [load_file(tmp_path / name / "model.safetensors").keys() for name in ("kept", "dropped")]
    assert written[0] - written[1] == {LACKING}


def test_points_are_told_apart_by_their_weights(pair: Folders) -> None:
    same = planned(pair, "wise-ft")
    points = Points(same.inputs)
    assert [points.add_alpha(alpha) for alpha in (0.0, 0.5)] == [0, 1]
    assert same.plan is not None
    assert points.add_plan(same.plan, same.tensors) == 1
    changes: list[dict[str, Any]] = [
        {"method.alpha": 0.25},
        {"overrides": [{"layers": "vision.0.*", "alpha": 0.1}]},
        {"overrides": [{"layers": "vision.0.*", "density": 0.5}]},
    ]
    for number, change in enumerate(changes, start=2):
        run = planned(pair, "wise-ft", **change)
        assert run.plan is not None
        assert points.add_plan(run.plan, run.tensors) == number
        assert points.add_plan(run.plan, run.tensors) == number
    assert [point.alpha for point in points.points] == [0.0, 0.5, None, None, None]
