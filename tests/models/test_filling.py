"""Weights that are missing or of another shape: the message names the checkpoint that lacks them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.command import clipmerge, refused

KEY = "vision_model.encoder.layers.1.mlp.fc1.weight"


def test_a_merged_checkpoint_that_lacks_a_weight_is_named_itself(
    pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(pair[1], merged)
    tensors = load_file(merged / "model.safetensors")
    del tensors[KEY]
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    line = refused(clipmerge("evaluate", merged, "--data", images))
    assert line.startswith(f"error: {merged}: has no {KEY}")
    assert "zero-shot" not in line


def test_a_config_that_does_not_fit_is_that_of_the_checkpoint(
    pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(pair[1], merged)
    config = json.loads((merged / "config.json").read_text())
    config["projection_dim"] *= 2
    (merged / "config.json").write_text(json.dumps(config))
    line = refused(clipmerge("evaluate", merged, "--data", images))
    assert line.startswith(f"error: {merged}: config.json does not match the weights")
