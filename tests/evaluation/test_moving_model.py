"""A model between both ends: weights that cannot be written are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.models.building import build_model


def test_a_weight_that_overflows_is_named_with_its_alpha(pair: tuple[Path, Path]) -> None:
    zeroshot, finetuned = map(open_checkpoint, map(str, pair))
    inputs = align_checkpoints(zeroshot, [finetuned])
    moving = MovingModel(build_model(inputs), inputs, torch.device("cpu"), dtype="float16")
    with pytest.raises(CheckpointError, match=r"^tensor \S+ overflows at alpha 1e\+09; give --alphas in \[0, 1\]$"):
        moving.interpolate(1e9)
    moving.interpolate(1.0)
    assert all(bool(parameter.isfinite().all()) for parameter in moving.model.parameters.values())
