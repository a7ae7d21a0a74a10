"""Merges with learned coefficients, from the command to the written weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.planning.recipe import recipe_text
from tests.support.command import done
from tests.support.tiny_clip import Folders, save_images

# the zero-shot model of these tests knows nothing, and nothing would be learned
FEW = ("--set", "measure.steps=4", "--set", "measure.divergence=predictions", "--batch-size", 8)


@pytest.fixture(scope="module")
def merged(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A merge by the recipe, with few steps."""
    output = tmp_path_factory.mktemp("auto") / "merged"
    options = [*FEW, "--data", images, "--format", "json"]
    return output, done("merge", *pair, "--recipe", "auto", *options, "--output", output).json


def test_a_merge_by_the_recipe_tells_numbers(merged: tuple[Path, dict[str, Any]]) -> None:
    for layer, entry in merged[1]["layers"].items():
        low, high = entry["alpha_range"]
        assert 0 <= low <= entry["alpha"] <= high <= 2, layer
        assert entry["density"] == 1
        assert entry["reason"].startswith("learned")
        assert set(merged[1]["measurements"][layer]) == {"at_zero", "at_one", "change"}
    assert "learned coefficients; loss " in merged[1]["verdict"]
    assert merged[1]["stragglers"] == []
    assert json.loads((merged[0] / "plan" / "plan.json").read_text())["measurements"]["trace"]["calibration"]


def test_plan_and_apply_give_the_bytes_of_merge(
    merged: tuple[Path, dict[str, Any]], pair: Folders, images: Path, tmp_path: Path
) -> None:
    done("plan", *pair, "--recipe", "auto", *FEW, "--data", images, "--output", tmp_path / "plan.json")
    for plan in (tmp_path / "plan.json", merged[0] / "plan" / "plan.json"):
        out = tmp_path / f"applied-{plan.parent.name}"
        applied = done("apply", plan, "--output", out, "--format", "json").json
        assert applied["files"] == merged[1]["files"]
        assert applied["layers"] == merged[1]["layers"]


def test_the_written_weights_are_those_that_were_learned(merged: tuple[Path, dict[str, Any]], pair: Any) -> None:
    plan = merged[0] / "plan"
    held = load_file(plan / "plan.tensors.safetensors")
    zeroshot, finetuned, written = (load_file(f / "model.safetensors") for f in (*pair, merged[0]))
    for name, tensor in written.items():
        coefficient = held[f"coefficients:{name}"].double()
        expected = zeroshot[name].double() + coefficient * (finetuned[name].double() - zeroshot[name].double())
        assert torch.allclose(tensor.double(), expected, atol=1e-6, rtol=1e-6), name


def test_a_learning_recipe_sweeps(pair: Any, images: Path, tmp_path: Path) -> None:
    sources = ["--id", f"near={images}", "--ood", f"far={save_images(tmp_path / 'far', seed=9)}", "--data", images]
    file = tmp_path / "tpgm.yaml"
    file.write_text(re.sub(r"steps: \d+", "steps: 2", recipe_text("tpgm")))
    options = ["--recipe", file, "--alphas", "0,1", "--format", "json"]
    record = done("sweep", *pair, *sources, *options, "--output", tmp_path / "sweep").json
    assert record["recipes"][0]["alpha"] is None
    assert record["recipes"][0]["name"] == "tpgm"
