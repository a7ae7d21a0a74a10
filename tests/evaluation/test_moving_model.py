"""A model between both ends: weights are set where they differ, and refused where they cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.models.building import build_model
from tests.support.small_objective import save_ends


def test_a_weight_that_overflows_is_named_with_its_alpha(pair: tuple[Path, Path]) -> None:
    zeroshot, finetuned = map(open_checkpoint, map(str, pair))
    inputs = align_checkpoints(zeroshot, [finetuned])
    moving = MovingModel(build_model(inputs), inputs, torch.device("cpu"), dtype="float16")
    with pytest.raises(CheckpointError, match=r"^tensor \S+ overflows at alpha 1e\+09; give --alphas in \[0, 1\]$"):
        moving.interpolate(1e9)
    moving.interpolate(1.0)
    assert all(bool(parameter.isfinite().all()) for parameter in moving.model.parameters.values())


def test_shared_weights_are_set_again_after_something_else_moved_them(tmp_path: Path) -> None:
    paths = [str(path) for path in save_ends(tmp_path, moves=("vision_model",))]
    pair = align_checkpoints(open_checkpoint(paths[0]), [open_checkpoint(paths[1])])
    moving = MovingModel(build_model(pair), pair, torch.device("cpu"))
    name = "text_model.final_layer_norm.weight"
    moving.interpolate(0.5)
    before = moving.text_version
    moving.interpolate(1.0)
    assert moving.text_version == before
    with torch.no_grad():
        moving._set(name, moving.model.parameters[name] + 1)
    moving.interpolate(0.5)
    assert torch.equal(moving.model.parameters[name], pair.theta_0(name))
