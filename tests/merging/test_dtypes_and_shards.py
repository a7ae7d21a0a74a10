"""Merges of mixed precision, against torch, and outputs in shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from tests.support.command import done
from tests.support.raw_safetensors import edit_json
from tests.support.tiny_clip import Folders


def cast(folder: Path, dtype: str) -> dict[str, Tensor]:
    """Save a folder's weights in another dtype, like save_pretrained, and return them."""
    file = folder / "model.safetensors"
    tensors = {key: tensor.to(getattr(torch, dtype)) for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype=dtype)
    return tensors


def merge(folders: Folders, output: Path, *flags: object) -> dict[str, Tensor]:
    """Merge, and return the tensors of all shards."""
    done("merge", *folders, "--recipe", "wise-ft", "--output", output, *flags)
    tensors: dict[str, Tensor] = {}
    for file in output.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize(
    ("zeroshot", "finetuned", "dtype"),
    [
        ("float32", "float16", "float16"),
        ("float16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "float16"),
    ],
)
def test_mixed_dtypes_are_rounded_once_to_the_one_named(
    copies: Folders, tmp_path: Path, zeroshot: str, finetuned: str, dtype: str
) -> None:
    theta_0, theta_1 = cast(copies[0], zeroshot), cast(copies[1], finetuned)
    output, named = tmp_path / "half", getattr(torch, dtype)
    half = merge(copies, output, "--dtype", dtype, "--alpha", 0.25)
    whole = merge(copies, tmp_path / "whole", "--dtype", dtype, "--alpha", 1)
    assert half.keys() == whole.keys() == theta_0.keys()
    for key, finetuned_tensor in theta_1.items():
        start, end = theta_0[key].float(), finetuned_tensor.float()
        assert torch.equal(half[key], (start + 0.25 * (end - start)).to(named))
        assert torch.equal(whole[key], finetuned_tensor.to(named))
    assert CLIPModel.from_pretrained(output).dtype == named
    config = json.loads((output / "config.json").read_text())
    sections = (config, config["text_config"], config["vision_config"])
    assert {section.get("dtype", dtype) or dtype for section in sections} == {dtype}


@pytest.mark.parametrize("size", [5, 100, 10_000])
def test_shards_are_cut_to_size_and_hold_the_same_bytes(
    copies: Folders, tmp_path: Path, size: int
) -> None:
    expected = merge(copies, tmp_path / "one")
    merge(copies, tmp_path / "cut", "--max-shard-size", f"{size}KB")
    shards = [load_file(file) for file in tmp_path.glob("cut/*.safetensors")]
    assert (len(shards) > 1) is (size < 10_000)
    for tensors in shards:
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 1000 * size
    loaded, info = CLIPModel.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
