"""Measures and learning at real sizes, by tensors that have shapes alone: no operation mixes devices,
no shape depends on a number, and a step of a bigG/14 fits an H100."""

from pathlib import Path

import pytest

from clipmerge.learning.coefficients import Coefficients
from clipmerge.learning.learn import LearningConfig, learn
from clipmerge.learning.learning_loss import LossConfig
from clipmerge.plugins import plugin_names
from tests.support.measure_everything import measured
from tests.support.pretended_device import counted
from tests.support.real_sizes import SIZES, hollow_objective

# One pass or more for every layer: minutes, and the same operations as the others.
LAYER_BY_LAYER = {"average-case", "worst-case"}
BOTH = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale")


@pytest.mark.parametrize("name", sorted(set(plugin_names("measures")) - LAYER_BY_LAYER))
def test_a_measure_of_a_vit_b_32(tmp_path: Path, name: str) -> None:
    with counted(hollow=True, most=80 << 30) as counts:
        objective = hollow_objective(tmp_path, "B/32", images=16, classes=10, moves=BOTH)
        measured(name, objective)
    assert counts.kernels


@pytest.mark.parametrize("size", SIZES)
def test_a_step_fits_an_h100(tmp_path: Path, size: str) -> None:
    """Both towers, in 80 GB, of which a driver takes one; and in 24 GB where it should."""
    loss = LossConfig(0.5, distill="both", weak_aug=1.0, strong_aug=40, precision="auto")
    for room in (79, 23):
        if size == "bigG/14" and room == 23:
            continue
        with counted(hollow=True, most=room << 30) as counts:
            objective = hollow_objective(tmp_path, size, images=1024, moves=BOTH)
            config = LearningConfig(loss, 1, 0.03, batch=40)
            learn(objective, Coefficients(objective, "entry"), config)
            assert not any("does not suffice" in note for note in objective.notes)
            assert counts.peak <= room << 30
