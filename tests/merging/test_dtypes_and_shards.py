"""Half, single and mixed precision, and shards of any size: the numbers are those of a plain
loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from tests.support.command import clipmerge, done
from tests.support.raw_safetensors import edit_json, shard
from tests.support.tiny_clip import Folders

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
MIXED = [
    ("float32", "float16"),
    ("float16", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "float16"),
]


def cast(folder: Path, dtype: str) -> dict[str, Tensor]:
    """Save a folder's weights in another dtype, like save_pretrained, and return them."""
    file = folder / "model.safetensors"
    tensors = {key: tensor.to(DTYPES[dtype]) for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype=dtype)
    return tensors


def plain_loop(
    theta_0: dict[str, Tensor], theta_1: dict[str, Tensor], alpha: float, dtype: str
) -> dict[str, Tensor]:
    if alpha in (0, 1):
        return {
            key: tensor.to(DTYPES[dtype]) for key, tensor in (theta_1 if alpha else theta_0).items()
        }
    return {
        key: (theta_0[key].float() + alpha * (theta_1[key].float() - theta_0[key].float())).to(
            DTYPES[dtype]
        )
        for key in theta_0
    }


def merge(folders: Folders, output: Path, *flags: object) -> dict[str, Any]:
    recipe = () if "--recipe" in flags else ("--recipe", "wise-ft")
    outcome = done("merge", *folders, *recipe, "--output", output, "--json", *flags)
    return dict(outcome.json)


@pytest.mark.parametrize(
    ("zeroshot", "finetuned", "dtype"),
    [*((*mixed, "float16") for mixed in MIXED), (*MIXED[0], "float32"), (*MIXED[2], "bfloat16")],
)
def test_mixed_dtypes_are_rounded_once_to_the_one_named(
    copies: Folders, tmp_path: Path, zeroshot: str, finetuned: str, dtype: str
) -> None:
    theta_0, theta_1 = cast(copies[0], zeroshot), cast(copies[1], finetuned)
    for alpha in (0.25, 1):
        output = tmp_path / f"at-{alpha}"
        merge(copies, output, "--dtype", dtype, "--set", f"method.alpha={alpha}")
        written = load_file(output / "model.safetensors")
        expected = plain_loop(theta_0, theta_1, alpha, dtype)
        assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
        assert written.keys() == expected.keys()
    assert CLIPModel.from_pretrained(output).dtype == DTYPES[dtype]
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == dtype
    assert all(
        config[f"{side}_config"].get("dtype") in (None, dtype) for side in ("text", "vision")
    )


@pytest.mark.parametrize("size", [5, 100])
def test_shards_are_cut_to_size_and_hold_the_same_bytes(
    copies: Folders, tmp_path: Path, size: int
) -> None:
    merge(copies, tmp_path / "one")
    expected = load_file(tmp_path / "one" / "model.safetensors")
    merge(copies, tmp_path / "cut", "--max-shard-size", f"{size}KB")
    shards = [load_file(file) for file in sorted((tmp_path / "cut").glob("*.safetensors"))]
    assert len(shards) > 1
    for tensors in shards:
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 1000 * size
    loaded, info = CLIPModel.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


def test_one_shard_is_one_file_and_a_plan_is_applied_in_shards(
    copies: Folders, tmp_path: Path
) -> None:
    merge(copies, tmp_path / "cut", "--max-shard-size", "20KB")
    clipmerge("plan", *copies, "--recipe", "wise-ft", "--output", tmp_path / "plan.json")
    flags = ("--output", tmp_path / "applied", "--max-shard-size", "20KB", "-q")
    done("apply", tmp_path / "plan.json", *flags)
    for file in sorted((tmp_path / "cut").glob("model*")):
        assert (tmp_path / "applied" / file.name).read_bytes() == file.read_bytes()
    shard(copies[1])
    merge(copies, tmp_path / "out", "--max-shard-size", "5GB")
    assert [file.name for file in tmp_path.glob("out/*.safetensors*")] == ["model.safetensors"]
