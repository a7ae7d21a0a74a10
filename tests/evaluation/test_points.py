"""Points of a sweep: plans of equal weights are one, a model is moved between them, and answers are
found again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.api.apply import write_merge
from clipmerge.api.merge import prepare
from clipmerge.errors import CheckpointError
from clipmerge.learning.interpolate import Path as Between
from clipmerge.evaluation.points import weights_key
from clipmerge.models.building import build_model
from clipmerge.run import Run
from tests.support.raw_safetensors import edit
from tests.support.tasks import inputs_of, request_for
from tests.support.tiny_clip import Folders

LACKING = "text_model.final_layer_norm.bias"


@pytest.fixture(scope="module")
def uneven(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair whose fine-tuned checkpoint lacks a bias."""
    folder = shutil.copytree(pair[1], tmp_path_factory.mktemp("uneven") / "finetuned")
    return pair[0], edit(folder, **{LACKING: None})


def key(run: Run) -> Any:
    assert run.plan is not None
    return weights_key(run.plan, run.inputs)


def test_a_recipe_that_drops_parameters_is_no_point_of_the_curve(
    uneven: Folders, tmp_path: Path
) -> None:
    kept, dropped = (
        prepare(request_for(uneven, "wise-ft", f"missing=keep-{end}"))
        for end in ("zeroshot", "finetuned")
    )
    assert key(kept) == 0.5
    assert key(dropped) != key(kept)
    for run, name in ((kept, "other_tasks"), (dropped, "dropped")):
        write_merge(run, tmp_path / name)
    written = [
        load_file(tmp_path / name / "model.safetensors").keys()
        for name in ("other_tasks", "dropped")
    ]
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
