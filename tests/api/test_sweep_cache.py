"""A suite of folders on this machine: several pairs, what is kept of them for the next run, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clipmerge as api
from clipmerge.api import _sweep_cache
from clipmerge.api._sweep_cache import SweepCache, key_of
from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.evaluation.points import Point
from clipmerge.planning.recipe import load_recipe
from clipmerge.planning.tensors import PlanTensors
from clipmerge.progress import Silent
from clipmerge.request import Calibration, SweepRequest
from tests.support.command import clipmerge
from tests.support.tiny_clip import save_images

Folders = tuple[Path, Path]
QUIET: dict[str, Any] = {"progress": Silent()}


@pytest.fixture
def suite(pair: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pairs of the same checkpoints, in either order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    far = save_images(tmp_path / "far", each=3, seed=8)
    sources = {"id": {"test": str(images)}, "ood": {"far": str(far)}, "data": str(images)}
    pairs = [
        {"name": name, "zeroshot": str(zeroshot), "finetuned": str(finetuned), **sources}
        for name, (zeroshot, finetuned) in {"forth": pair, "back": pair[::-1]}.items()
    ]
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"title": "t", "model": "m", "gflops": 1, "alphas": [0, 1], "pairs": pairs}))
    return file


def test_a_suite_of_several_pairs_is_told_pair_by_pair(suite: Path, tmp_path: Path, answers: list[int]) -> None:
    command = ("bench", suite, "--recipe", "wise-ft", "--output", tmp_path / "out")
    ended = clipmerge(*command)
    assert ended.code == 0, ended.err
    lines = [line.strip() for line in ended.out.splitlines()]
    assert lines.index("forth") < lines.index("back")
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [each["name"] for each in record["pairs"]] == ["forth", "back"]
    forth, back = ([row["accuracy"] for row in each["sweep"]["curve"]] for each in record["pairs"])
    assert forth == back[::-1]
    # images in a folder may change without its name changing, so no answer is kept
    assert answers
    answers.clear()
    assert clipmerge(*command, "--overwrite").code == 0
    assert answers
    # without an output there is a record all the same
    result = api.bench(suite, recipes=["wise-ft"], alphas=(0, 1), check=False, seed=3, **QUIET)
    assert result.path is None
    assert result.record["command"] == f"clipmerge bench {suite} --seed 3 --recipe wise-ft --alphas 0,1 --no-check"
    assert [each["sweep"]["curve"][0]["accuracy"] for each in result.record["pairs"]] == [forth[0], back[0]]


def request(pair: Folders, images: str, recipe: str) -> SweepRequest:
    return SweepRequest(
        str(pair[0]),
        str(pair[1]),
        {"a": images},
        {"b": images},
        (load_recipe(recipe),),
        calibration=Calibration(source=images),
    )


def test_plans_are_kept_where_images_have_a_commit(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = api.plan(*pair, "wise-ft", **QUIET)
    for cache in (
        tmp_path,
        tmp_path / "file" / "cache",
    ):  # the second cannot be written, which costs only the resumption
        (tmp_path / "file").touch()
        kept = SweepCache(cache)
        free = request(pair, "hf://datasets/acme/cars@1:test", "wise-ft")
        assert kept.plan(free, load_recipe("wise-ft")) is None
        kept.keep_plan(free, load_recipe("wise-ft"), plan, PlanTensors())
        found = kept.plan(free, load_recipe("wise-ft"))
        assert (found is not None) is (cache == tmp_path)
        assert found is None or found[0].settings_digest == plan.settings_digest
    kept = SweepCache(tmp_path)
    for file in (tmp_path / "plans").iterdir():
        file.write_text("{")
    assert kept.plan(free, load_recipe("wise-ft")) is None
    local = request(pair, "some folder", "straggler-outlier")
    kept.keep_plan(local, load_recipe("straggler-outlier"), plan, PlanTensors())
    assert kept.plan(local, load_recipe("straggler-outlier")) is None
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_points_are_told_apart(pair: Folders, images: Path) -> None:
    ends = [align_checkpoints(open_checkpoint(str(pair[0])), [open_checkpoint(str(end))]) for end in pair[::-1]]
    learned = api.plan(*pair, "auto", data=str(images), images=6, set={"measure.steps": 2}, **QUIET)
    other = api.plan(*pair, "auto", data=str(images), images=6, set={"measure.steps": 3}, **QUIET)
    points = [
        *(Point(None, checkpoint=inputs) for inputs in ends),
        *(Point(alpha) for alpha in (0.0, 0.5)),
        *(Point(None, each, tensors=PlanTensors.from_file(each.held_tensors)) for each in (learned, other)),
    ]
    keys = [key_of(point) for point in points]
    assert len(set(keys)) == len(points)
    assert keys == [key_of(point) for point in points]
    assert [key.split()[0] for key in keys] == ["checkpoint"] * 2 + ["alpha"] * 2 + ["plan"] * 2


def test_a_user_without_a_cache_folder_keeps_nothing(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    inputs = align_checkpoints(open_checkpoint(str(pair[0])), [open_checkpoint(str(pair[1]))])
    sweep = request(pair, "hf://datasets/acme/cars@1:test", "wise-ft")
    assert SweepCache.of(sweep, inputs) is not None
    monkeypatch.setattr(_sweep_cache, "user_cache", homeless)
    assert SweepCache.of(sweep, inputs) is None
