"""`inspect`: how far each layer moved, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

import clipmerge
from clipmerge import Progress, UsageError
from clipmerge.types import CHECKS
from tests.models.test_heads import of_wise_ft
from tests.support.command import done, printed
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders, layer_of, save_pair, tiny_config


def test_it_says_how_far_each_layer_moved(pair: Folders) -> None:
    record = printed("inspect", *pair)
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in pair)
    assert record["mismatches"] == []
    for layer, about in record["layers"].items():
        names = [name for name in zeroshot if layer_of(name) == layer]
        assert set(about["shapes"]) == set(names)
        moved = sum(float(((finetuned[n] - zeroshot[n]).double() ** 2).sum()) for n in names)
        size = sum(float((zeroshot[n].double() ** 2).sum()) for n in names)
        assert about["change"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
    shown = done("inspect", *pair).out
    assert "The two match: they can be merged." in shown
    assert len(shown.splitlines()) <= 14
    assert re.search(r"^vision\.\*\.attn .* to ", shown, re.MULTILINE)
    every = done("inspect", *pair, "-v").out
    assert all(
        re.search(rf"^{re.escape(layer)} ", every, re.MULTILINE) for layer in record["layers"]
    )
    assert clipmerge.inspect(pair[0], progress=Progress()).record["finetuned"] is None


def test_it_lists_every_tensor_of_another_shape(pair: Folders, tmp_path: Path) -> None:
    """As the error of a merge says that it does."""
    CLIPModel(tiny_config(3, 48)).save_pretrained(tmp_path / "wide")
    zeroshot, wide = (
        load_file(path / "model.safetensors") for path in (pair[0], tmp_path / "wide")
    )
    differing = [name for name in zeroshot if zeroshot[name].shape != wide[name].shape]
    found = clipmerge.inspect(pair[0], tmp_path / "wide", progress=Progress()).mismatches
    assert sum("differs in shape: " in problem for problem in found) == len(differing) > 100
    name = "vision_model.post_layernorm.bias"
    assert f"{tmp_path}/wide: {name} differs in shape: zeroshot (32,), finetuned (48,)" in found
    every = done("inspect", pair[0], tmp_path / "wide", "-v").out
    assert f"mismatch: {tmp_path}/wide: {name} " in every
    few = done("inspect", pair[0], tmp_path / "wide").out
    assert f"-v lists {len(found) - 3} more mismatches\n" in few
    assert len(few.splitlines()) <= 14


def test_it_measures_a_head_that_is_built(images: Path, tmp_path: Path) -> None:
    zeroshot, finetuned, _ = of_wise_ft(tmp_path)
    checks = [f"--allow={check}" for check in CHECKS]
    layers = printed("inspect", zeroshot, finetuned, "--data", images, *checks)["layers"]
    assert layers["head"]["shapes"] == {
        "classification_head.bias": [3],
        "classification_head.weight": [3, 16],
    }
    assert layers["head"]["change"] > 0
    assert layers["head"]["sharpness"] > 0


def test_weights_that_are_no_numbers_are_named(copies: Folders) -> None:
    name = "vision_model.encoder.layers.0.mlp.fc1.bias"
    bias = load_file(copies[1] / "model.safetensors")[name]
    edit(copies[1], **{name: torch.full_like(bias, float("nan"))})
    found = clipmerge.inspect(*copies, progress=Progress())
    assert "vision.0.mlp: its weights hold NaN or Inf" in found.mismatches


def test_with_images_it_measures_sharpness_and_names_stragglers(
    pair: Folders, images: Path
) -> None:
    record = printed("inspect", *pair, "--data", images, "--allow", "at-chance")
    layers = record["layers"]
    sharp = {layer: about["sharpness"] for layer, about in layers.items() if "sharpness" in about}
    assert set(sharp) == {layer for layer, about in layers.items() if about["change"]}
    stragglers = [layer for layer in sharp if layers[layer]["straggler"]]
    blocks = {layer: value for layer, value in sharp.items() if layer.count(".") == 2}
    assert max(blocks, key=blocks.__getitem__) in stragglers
    assert min(value for layer, value in blocks.items() if layer in stragglers) >= max(
        value for layer, value in blocks.items() if layer not in stragglers
    )
    assert f"stragglers (the sharpest layers of the blocks): {', '.join(stragglers)}" in (
        done("inspect", *pair, "--data", images, "--allow", "at-chance").out
    )


def test_weights_lie_where_the_key_of_a_file_says(copies: Folders) -> None:
    weights = copies[1] / "model.safetensors"
    torch.save({"averaged": load_file(weights), "last": {}}, copies[1] / "pytorch_model.bin")
    weights.unlink()
    found = clipmerge.inspect(*copies, state_key="averaged", progress=Progress())
    assert found.mismatches == ()
    assert found.layers["vision.0.mlp"]["change"]
    with pytest.raises(clipmerge.CheckpointError, match="but averaged, last"):
        clipmerge.inspect(*copies, state_key="there", progress=Progress())


def test_images_need_two_checkpoints_that_match(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="name FINETUNED too"):
        clipmerge.inspect(pair[0], data=images)
    other = save_pair(tmp_path, blocks=2)[1]
    found = clipmerge.inspect(pair[0], other, data=images, progress=Progress())
    assert "images" not in found.record
    assert any("sharpness is not measured" in text for text in found.record["warnings"])
