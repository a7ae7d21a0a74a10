"""Points of a sweep: plans of equal weights are one, a model is moved between them, and answers are
found again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipmerge
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.points import weights_key
from clipmerge.learning.interpolate import Path as Between
from clipmerge.models.building import build_model
from tests.support.raw_safetensors import edit
from tests.support.tasks import decided, inputs_of
from tests.support.tiny_clip import Folders

LACKING = "text_model.final_layer_norm.bias"


@pytest.fixture(scope="module")
def uneven(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair whose fine-tuned checkpoint lacks a bias."""
    folder = shutil.copytree(pair[1], tmp_path_factory.mktemp("uneven") / "finetuned")
    return pair[0], edit(folder, **{LACKING: None})


def key(folders: Folders, end: str) -> Any:
    pair, made = decided(folders, "wise-ft", f"missing=keep-{end}")
    return weights_key(made.plan, pair.inputs)


def test_a_recipe_that_drops_parameters_is_no_point_of_the_curve(
    uneven: Folders, tmp_path: Path
) -> None:
    assert key(uneven, "zeroshot") == 0.5 != key(uneven, "finetuned")
    written = []
    for end in ("zeroshot", "finetuned"):
        output = tmp_path / end
        clipmerge.merge(*uneven, "wise-ft", set=[f"missing=keep-{end}"], output=output)
        written.append(load_file(output / "model.safetensors").keys())
    assert written[0] - written[1] == {LACKING}


def test_a_weight_that_overflows_is_named(pair: Folders) -> None:
    inputs = inputs_of(pair)
    moving = Between(build_model(inputs), inputs, torch.device("cpu"), dtype="float16")
    with pytest.raises(
        CheckpointError, match=r"^tensor \S+ overflows here; give `alphas` in \[0, 1\]$"
    ):
        moving.set_alpha(1e9)
    moving.set_alpha(1.0)
    assert all(bool(parameter.isfinite().all()) for parameter in moving.model.parameters.values())
