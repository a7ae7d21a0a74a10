"""Evaluated mixtures: the model is the one that a merge would write."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.calibration.mixtures import try_mixture
from tests.support.small_objective import Reference, make_batches, objective_for, save_ends


def test_a_parameter_that_only_the_zero_shot_model_has_stays(tmp_path: Path) -> None:
    ends = save_ends(tmp_path)
    reference, alone = Reference(ends).at(1.0), "vision_model.post_layernorm.weight"
    with torch.no_grad():
        reference.parameters[alone].copy_(reference.ends[alone][0])
    file = ends[1] / "model.safetensors"
    save_file({name: value.clone() for name, value in load_file(file).items() if name != alone}, file)
    (batch,) = make_batches((4,))
    found = try_mixture(objective_for(ends, [batch], missing="keep-zeroshot"), (1.0,))
    assert found.loss == pytest.approx(reference.loss(batch).item(), rel=1e-5)
