from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.pipeline import Calibration, MergeRequest, make_plan, write_merge
from clipmerge.recipe import load_recipe

Pair = tuple[Path, Path]


def request_for(pair: Pair, recipe: str, images: Path | None = None, *sets: str) -> MergeRequest:
    calibration = Calibration(source=str(images) if images else None)
    return MergeRequest(str(pair[0]), (str(pair[1]),), load_recipe(recipe, list(sets)), calibration)


def test_shares_add_up_to_what_forward_passes_measure(pair: Pair, images: Path) -> None:
    plan = make_plan(request_for(pair, "straggler-sparse", images)).plan
    assert plan is not None
    assert plan.measurements is not None
    path = plan.measurements.path
    assert path is not None
    loss = dict(zip(path.alphas, path.losses, strict=True))
    layers = plan.measurements.layers.values()
    barrier = loss[0.5] - (loss[0.0] + loss[1.0]) / 2
    assert sum(layer["barrier"] for layer in layers) == pytest.approx(barrier, rel=0.01)
    assert sum(layer["loss_drop"] for layer in layers) == pytest.approx(loss[1.0] - loss[0.0], rel=0.01)


@pytest.mark.parametrize(("alpha", "which"), [(0, 0), (1, 1)])
def test_both_ends_are_the_inputs_bit_for_bit(pair: Pair, tmp_path: Path, alpha: int, which: int) -> None:
    write_merge(make_plan(request_for(pair, "wise-ft", None, f"method.alpha={alpha}")), tmp_path / "out")
    merged, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair[which]))
    assert merged.keys() == source.keys()
    assert all(torch.equal(merged[name], source[name]) for name in source)
